"""The loop over examples: a generator that takes a step and yields a report; its caller decides the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import nn
from torch.optim import AdamW, Optimizer

from modernbert.data.counter_random import key_of
from modernbert.errors import ConfigError, DivergenceError
from modernbert.model.checkpoint import Pretrained
from modernbert.model.heads import encoder_of
from modernbert.train.gradients import TuningFigures
from modernbert.train.grouped import Group
from modernbert.train.optim import clip_gradients, parameter_groups
from modernbert.train.parallel import Spread

Decay = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """How weights follow the examples; the defaults are near to the best that were published (paper E.1).

    Attributes:
        learning_rate: At the peak, of the head and, with a `layer_decay` of 1, of all layers.
        epochs: Passes over the examples; parts of one count too.
        batch_size: Examples of one step, over all processes.
        warmup: Share of the steps in which the learning rate rises to its peak.
        decay: How it falls from there: to 0 `linear` or by a `cosine`, or not at all.
        weight_decay: Share of a weight that a step at the peak takes away.
        layer_decay: By what the learning rate is multiplied for each layer farther from the head.
        frozen_layers: So many layers, the first ones, and the embeddings stay as they are; 0: nothing does.
        new_layers: So many layers, the last ones, begin anew with random weights.
        attn_out_dropout: On the attention's output; null: as the checkpoint says, 0.1 where it says nothing,
            which the published models were pretrained with (transformers fine-tunes them without).
        betas: AdamW's coefficients of the running means of the gradient and of its square.
        eps: Added to the root of the mean square.
        clip_norm: The gradient is scaled down to this norm if it is larger; null: never.
    """

    learning_rate: float = 5e-5
    epochs: float = 3.0
    batch_size: int = 32
    warmup: float = 0.1
    decay: Decay = "linear"
    weight_decay: float = 5e-6
    layer_decay: float = 1.0
    frozen_layers: int = 0
    new_layers: int = 0
    attn_out_dropout: float | None = None
    betas: tuple[float, ...] = (0.9, 0.98)
    eps: float = 1e-6
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        are_betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        rules = {
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "epochs": (0 < self.epochs < math.inf, "above 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "warmup": (0 <= self.warmup < 1, "at least 0 and below 1"),
            "weight_decay": (0 <= self.weight_decay < 1, "at least 0 and below 1"),
            "layer_decay": (0 < self.layer_decay <= 1, "above 0 and at most 1"),
            "frozen_layers": (self.frozen_layers >= 0, "at least 0"),
            "new_layers": (self.new_layers >= 0, "at least 0"),
            "betas": (are_betas, "two numbers, each at least 0 and below 1"),
            "eps": (self.eps > 0, "above 0"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "above 0, or null"),
        }
        for key, (is_right, rule) in rules.items():
            if not is_right:
                raise ConfigError(f"`{key}` is {getattr(self, key)!r}; it must be {rule}")

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Return the learning rate of a step, counted from 1, of so many."""
        rising = math.ceil(self.warmup * num_steps)
        if step <= rising:
            return self.learning_rate * step / rising
        if self.decay == "constant":
            return self.learning_rate
        left = (num_steps - step + 1) / (num_steps - rising + (rising > 0))
        return self.learning_rate * (left if self.decay == "linear" else math.sin(math.pi / 2 * left) ** 2)


class TuningStep(Protocol):
    """What one optimizer step consumes, and how its gradients come of it."""

    @property
    def number(self) -> int:
        """Steps taken once it is done."""

    @property
    def rows(self) -> Sequence[object]:
        """This rank's micro-batches."""

    @property
    def num_examples(self) -> int:
        """Of all ranks."""

    @property
    def identity(self) -> str:
        """Which examples these are, for messages."""

    def gradients(self, spread: Spread[Any], seeds: Sequence[int]) -> TuningFigures:
        """Compute the gradients, which add to those that there are; a seed a row fixes its dropout."""


@dataclass(frozen=True)
class TuningReport:
    """What one step did, over all ranks.

    Attributes:
        step: What it consumed.
        loss: Mean loss before the update.
        gradient_norm: Of the step's gradient, before any clipping.
        learning_rate: Of the head.
        num_tokens: What it consumed.
        seconds: From the end of the step before, or the start.
    """

    step: TuningStep
    loss: float
    gradient_norm: float
    learning_rate: float
    num_tokens: int
    seconds: float


def tune(
    optimizer: Optimizer,
    steps: Iterable[TuningStep],
    *,
    spread: Spread[Any],
    settings: TuningSettings,
    num_steps: int,
    seed: int,
) -> Iterator[TuningReport]:
    """Take one optimizer step after the other.

    Args:
        optimizer: That of `tuning_optimizer`.
        steps: What they consume.
        spread: The model.
        settings: Learning rate and clipping.
        num_steps: Of the whole run.
        seed: Fixes dropout.

    Raises:
        DivergenceError: The loss or the gradient is not finite; the weights are as they were before.
    """
    began = time.perf_counter()
    for step in steps:
        learning_rate = settings.learning_rate_at(step.number, num_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        seeds = [
            key_of("dropout", seed, step.number, spread.ranks.rank, place) for place in range(len(step.rows))
        ]
        found = step.gradients(spread, seeds)
        if not (math.isfinite(found.loss) and math.isfinite(found.gradient_norm)):
            optimizer.zero_grad(set_to_none=True)
            raise DivergenceError(
                f"step {step.number} has the loss {found.loss} and a gradient of norm {found.gradient_norm}; "
                f"both must be finite; the batch is {step.identity}; lower `tuning.learning_rate`, or mend "
                "these examples"
            )
        clip_gradients(optimizer, found.gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ended = time.perf_counter()
        yield TuningReport(
            step=step,
            loss=found.loss,
            gradient_norm=found.gradient_norm,
            learning_rate=learning_rate,
            num_tokens=found.num_tokens,
            seconds=ended - began,
        )
        began = time.perf_counter()


def freeze(model: Pretrained, num_layers: int) -> None:
    """Leave the embeddings and the first layers out of training, if `num_layers` is above 0.

    Raises:
        ConfigError: The model has not so many layers.
    """
    encoder = encoder_of(model)
    if num_layers > len(encoder.layers):
        raise ConfigError(
            f"`frozen_layers` is {num_layers}; it must be at most the model's {len(encoder.layers)} layers"
        )
    parts: list[nn.Module] = [encoder.embeddings, *encoder.layers[:num_layers]] if num_layers else []
    for part in parts:
        part.requires_grad_(False)


def tuning_optimizer(model: Pretrained, settings: TuningSettings) -> AdamW:
    """Return AdamW over a model's trainable parameters, each group with the `scale` of its learning rate."""
    groups = [
        {**group, "clip_norm": settings.clip_norm, "lr": settings.learning_rate * group["scale"]}
        for group in _groups(model, settings)
    ]
    has_kernel = all(param.device.type in ("cpu", "cuda") for param in model.parameters())
    betas = (settings.betas[0], settings.betas[1])
    return AdamW(
        groups,
        settings.learning_rate,
        betas=betas,
        eps=settings.eps,
        fused=has_kernel,
        foreach=not has_kernel,
    )


def _groups(model: Pretrained, settings: TuningSettings) -> Iterator[Group]:
    """Split parameters by whether they decay, and by how far from the head they are.

    AdamW has weight decay relative to the learning rate; that of the settings is relative to its peak.
    """
    num_layers = len(encoder_of(model).layers)
    for group in parameter_groups(model, settings.weight_decay / settings.learning_rate):
        named = list(zip(group["parameter_names"], group["params"], strict=True))
        depths = {name: _depth(name, num_layers) for name, _ in named}
        for depth in sorted(set(depths.values())):
            own = [(name, param) for name, param in named if depths[name] == depth]
            yield {
                **group,
                "name": f"{group['name']}, {depth} from the head",
                "params": [param for _, param in own],
                "parameter_names": [name for name, _ in own],
                "scale": settings.layer_decay**depth,
            }


def _depth(name: str, num_layers: int) -> int:
    """Return how many layers a parameter is away from the head, by its name."""
    _, is_layer, after = name.partition("layers.")
    if is_layer:
        return num_layers - int(after.partition(".")[0])
    return num_layers + 1 if "embeddings." in name else 0
