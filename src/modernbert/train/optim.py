"""The optimizers of pretraining: which one, over which parameters, and how it follows the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer

from modernbert.errors import ConfigError
from modernbert.model.layers import FUSED, PRODUCTS
from modernbert.train.dtensor import local
from modernbert.train.grouped import Group
from modernbert.train.muon import Muon
from modernbert.train.schedule import Phase, Setting
from modernbert.train.stable_adamw import StableAdamW

HIDDEN = tuple(f"{name}.weight" for name in (*PRODUCTS, "head.dense"))
"""How the names of hidden matrices end: what neither reads token ids nor gives scores."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Which optimizer, and its constants; the learning rate and weight decay stand in the phases.

    Attributes:
        name: `stable_adamw` as published (paper 2.2.2), `adamw`, or `muon`: Muon for the hidden matrices and
            AdamW for everything else.
        betas: Coefficients of the running means of the gradient and of its square.
        eps: Added to the root of the mean square.
        momentum: Coefficient of the running mean of a hidden matrix's gradient, for `muon`.
        clip_norm: The gradient is scaled down to this norm if it is larger; null for never. For `adamw` only:
            StableAdamW clips each tensor's update, and Muon's does not grow with the gradient.
        fused: Whether `stable_adamw` steps by Triton kernels on a GPU; off until that is measured.
    """

    name: Literal["stable_adamw", "adamw", "muon"] = "stable_adamw"
    betas: tuple[float, ...] = (0.9, 0.98)
    eps: float = 1e-6
    momentum: float = 0.95
    clip_norm: float | None = None
    fused: bool = False

    def __post_init__(self) -> None:
        are_right = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        clip = self.clip_norm
        rules = {
            "betas": (are_right, "two numbers, each at least 0 and below 1"),
            "eps": (self.eps > 0, "above 0"),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "clip_norm": (
                clip is None or (clip > 0 and self.name == "adamw"),
                "above 0 with `adamw`, or null",
            ),
            "fused": (
                not self.fused or self.name == "stable_adamw",
                "false; only `stable_adamw` has a choice",
            ),
        }
        for key, (is_right, rule) in rules.items():
            if not is_right:
                value = list(self.betas) if key == "betas" else getattr(self, key)
                raise ConfigError(f"`{key}` is {value!r}; it must be {rule}")


def build_optimizer(model: nn.Module, settings: OptimizerSettings, phase: Phase) -> Optimizer:
    """Return the optimizer of a run over a model's parameters, as it is when a phase begins.

    Args:
        model: With parameters under their published names, on the device, and already split over ranks if it
            will be.
        settings: Which optimizer.
        phase: Gives learning rate and weight decay; see `follow_schedule` for the later steps.
    """
    groups = parameter_groups(model, phase.weight_decay)
    lr, betas = phase.learning_rate, (settings.betas[0], settings.betas[1])
    if settings.name == "stable_adamw":
        return StableAdamW(groups, lr, betas=betas, eps=settings.eps, fused=settings.fused)
    for group in groups:
        group["weight_decay"] /= lr
    if settings.name == "muon":
        return Muon(_hidden_apart(groups), lr, betas=betas, eps=settings.eps, momentum=settings.momentum)
    for group in groups:
        group["clip_norm"] = settings.clip_norm
    is_cuda = any(param.is_cuda for param in model.parameters())
    return AdamW(groups, lr, betas=betas, eps=settings.eps, fused=is_cuda, foreach=not is_cuda)


def follow_schedule(optimizer: Optimizer, setting: Setting) -> None:
    """Give an optimizer the learning rate and weight decay of a step.

    A phase's `weight_decay` is the share of a weight that a step at the phase's peak takes away, whichever
    the optimizer; AdamW and Muon, which have it relative to the learning rate, get it divided by the peak. It
    is each phase's own peak. The authors' code seems to keep that of the first phase; it would make the later
    phases' decay 3/8 of what their rows say.

    Args:
        optimizer: Over groups named as `parameter_groups` names them.
        setting: What the schedule says of the step.
    """
    peak = setting.phase.learning_rate
    for group in optimizer.param_groups:
        group["lr"] = setting.learning_rate
        decay = setting.phase.weight_decay
        if "max_lr" in group:
            group["max_lr"] = peak
        else:
            decay /= peak
        if group.get("name") == "decay":
            group["weight_decay"] = decay


def clip_gradients(optimizer: Optimizer, norm: float) -> None:
    """Scale the gradients down, in place, where the optimizer has a `clip_norm` that they exceed.

    Args:
        optimizer: Over parameters with their gradients.
        norm: Of all gradients together, on all ranks.
    """
    for group in optimizer.param_groups:
        limit = group.get("clip_norm")
        if limit is not None and norm > limit:
            for param in group["params"]:
                if param.grad is not None:
                    local(param.grad).mul_(limit / norm)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Split a model's parameters into those that decay and those that do not, as published.

    Vectors, scalars and everything named `bias` do not decay; matrices do, the embedding among them.
    A tied weight is listed once, frozen parameters not at all.

    Args:
        model: Any module.
        weight_decay: For the first group; the second has 0.

    Returns:
        Two groups for an optimizer, named `decay` and `no_decay`, either perhaps empty.
    """
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    decays = {name: param.ndim > 1 and name.rpartition(".")[2] != "bias" for name, param in named}
    return [
        {
            "name": group_name,
            **_listed([item for item in named if decays[item[0]] is is_decayed]),
            "weight_decay": weight_decay if is_decayed else 0.0,
        }
        for group_name, is_decayed in (("decay", True), ("no_decay", False))
    ]


def _hidden_apart(groups: list[Group]) -> list[Group]:
    """Take the hidden matrices out of the parameters that decay, into a group of their own."""
    decay, no_decay = groups
    named = list(zip(decay["parameter_names"], decay["params"], strict=True))
    hidden = [(name, param) for name, param in named if name.endswith(HIDDEN)]
    rest = [(name, param) for name, param in named if not name.endswith(HIDDEN)]
    counts = [next((FUSED[end] for end in FUSED if name.endswith(end)), 1) for name, _ in hidden]
    return [
        {**decay, **_listed(hidden), "num_matrices": counts},
        {**decay, **_listed(rest)},
        no_decay,
    ]


def _listed(named: list[tuple[str, nn.Parameter]]) -> Group:
    return {"params": [param for _, param in named], "parameter_names": [name for name, _ in named]}
