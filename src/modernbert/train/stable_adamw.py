"""StableAdamW, the optimizer that ModernBERT was trained with (paper 2.2.2)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from modernbert.errors import BackendError, ConfigError
from modernbert.train.dtensor import local, whole_norms
from modernbert.train.grouped import Group, GroupedOptimizer


class StableAdamW(GroupedOptimizer):
    """AdamW whose learning rate is divided, tensor by tensor, by how far the update overshoots.

    With `b(t) = (beta**t - beta) / (beta**t - 1)`, the debiased coefficient, a step is

        m = b1(t) * m + (1 - b1(t)) * g
        v = b2(t) * v + (1 - b2(t)) * g**2
        lr_t = lr / max(1, sqrt(mean(g**2 / max(v, eps**2))))
        p = p * (1 - lr_t / max_lr * weight_decay)
        p = p - lr_t * m / (sqrt(v) + eps)

    The clipped learning rate stays on the device: a step never waits for it. Weight decay is fully
    decoupled: it follows the schedule and the clip, not the learning rate's own size, so that 1e-5
    is a usual value. No gradient clipping is needed beside it. Parameters may be split over ranks
    (FSDP2): the state is split as they are, and the clip costs one collective for all tensors together.

    Args:
        params: float32 parameters, or groups of them, see `modernbert.train.optim.parameter_groups`.
        lr: Learning rate, above 0.
        betas: Coefficients of the running means of the gradient and of its square, each in [0, 1).
        eps: Added to the root of the mean square, above 0.
        weight_decay: Share of a weight that a step at `max_lr` takes away, in [0, 1).
        max_lr: The schedule's peak, to which `lr` is compared for weight decay; `lr` by default.
        fused: Whether fp32 parameters on a CUDA device take their steps in Triton kernels, which read and
            write memory a third as often. Off, as their speed has not been measured on a GPU yet.

    Raises:
        ConfigError: A value out of its range, a parameter of half precision or, in a step, a sparse gradient.
        BackendError: `fused` without Triton.
    """

    _is_fused = False  # of a copy too, which has no other attributes than torch's

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 1e-5,
        max_lr: float | None = None,
        fused: bool = False,
    ) -> None:
        if fused and importlib.util.find_spec("triton") is None:
            raise BackendError(
                "the fused StableAdamW needs Triton, which is not installed; it comes with torch for CUDA; "
                "leave `fused` off"
            )
        self._is_fused = fused
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_lr": max_lr}
        super().__init__(params, defaults)

    def _admit(self, group: Group) -> None:
        if group["max_lr"] is None:
            group["max_lr"] = group["lr"]
        super()._admit(group)
        for index, param in enumerate(group["params"]):
            if param.dtype not in (torch.float32, torch.float64):
                raise ConfigError(
                    f"{_named(group, index)} is {param.dtype}; it must be torch.float32, or small updates "
                    "are lost; call `model.float()` and compute in half precision with autocast"
                )

    def _rules(self, group: Group) -> Mapping[str, tuple[bool, str]]:
        return {
            **super()._rules(group),
            "max_lr": (group["max_lr"] > 0, "above 0"),
            "weight_decay": (0 <= group["weight_decay"] < 1, "at least 0 and below 1"),
        }

    def _step_group(self, group: Group) -> None:
        for age, params in self._by_age(group).items():
            self._update(group, age, params)

    def _by_age(self, group: Group) -> dict[int, list[Tensor]]:
        """Count this step for each parameter with a gradient, and sort them by their number of steps.

        Mostly one entry; a parameter that had no gradient for a while is debiased by its own count.
        """
        ages: dict[int, list[Tensor]] = {}
        for index, param in enumerate(group["params"]):
            if param.grad is None:
                continue
            if param.grad.layout is not torch.strided:
                raise ConfigError(
                    f"the gradient of {_named(group, index)} is sparse; it must be dense; "
                    "build its embedding with `sparse=False`"
                )
            state = self.state[param]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
            state["step"] += 1
            ages.setdefault(state["step"], []).append(param)
        return ages

    def _update(self, group: Group, age: int, params: list[Tensor]) -> None:
        """Take step number `age` of `params`, all at once."""
        grads = [local(param.grad) for param in params if param.grad is not None]
        means = [local(self.state[param]["exp_avg"]) for param in params]
        squares = [local(self.state[param]["exp_avg_sq"]) for param in params]
        parts = [local(param) for param in params]
        beta1, beta2 = (_debiased(beta, age) for beta in group["betas"])
        decay = group["lr"] / group["max_lr"] * group["weight_decay"]
        if self._is_fused and _fit_kernels(parts):
            from modernbert.ops.gpu import stable_adamw as kernels  # deferred: it imports Triton

            kernels.step(
                parts,
                [grad.contiguous() for grad in grads],
                means,
                squares,
                betas=(beta1, beta2),
                eps=group["eps"],
                lr=group["lr"],
                decay=decay,
                clips_of=lambda norms: _clips(norms, params),
            )
            return
        torch._foreach_lerp_(means, grads, weight=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)

        roots = list(torch._foreach_sqrt(squares))
        clips = _clips(_overshoots(grads, roots, group["eps"]), params)
        if decay != 0:
            shares = torch._foreach_reciprocal(clips)
            torch._foreach_mul_(shares, -decay)
            torch._foreach_add_(shares, 1.0)
            torch._foreach_mul_(parts, shares)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_mul_(roots, clips)
        torch._foreach_addcdiv_(parts, means, roots, value=-group["lr"])


def _fit_kernels(parts: list[Tensor]) -> bool:
    return all(part.is_cuda and part.dtype == torch.float32 and part.is_contiguous() for part in parts)


def _debiased(beta: float, age: int) -> float:
    """Return the coefficient that makes a running mean unbiased after `age` steps without a correction."""
    return float((beta**age - beta) / (beta**age - 1))


def _overshoots(grads: list[Tensor], roots: list[Tensor], eps: float) -> list[Tensor]:
    """Return, for each tensor, the norm of its gradient over the root of the mean square."""
    ratios = torch._foreach_clamp_min(roots, eps)
    torch._foreach_reciprocal_(ratios)
    torch._foreach_mul_(ratios, grads)
    return list(torch._foreach_norm(ratios))


def _clips(overshoots: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Return, for each tensor, what its learning rate is divided by: a scalar on its device, at least 1.

    The ratio is that of the whole tensor, also where the norms are only of this rank's part of it.
    """
    clips = whole_norms(overshoots, params)
    torch._foreach_div_(clips, [math.sqrt(max(1, param.numel())) for param in params])
    torch._foreach_clamp_min_(clips, 1.0)
    return clips


def _named(group: Group, index: int) -> str:
    names = group.get("parameter_names")
    return f"parameter `{names[index]}`" if names else f"parameter {index} of its group"
