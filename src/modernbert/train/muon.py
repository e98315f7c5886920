"""Muon for the hidden matrices, AdamW for everything else (Jordan et al. 2024; Moonlight, 2502.16982)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from modernbert.errors import ConfigError
from modernbert.train.dtensor import gather, local, placed_like
from modernbert.train.grouped import Group, GroupedOptimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose iteration brings singular values near 1
_ITERATIONS = 5
_NUMBERS_AT_ONCE = 1 << 27  # what one batch of matrices may hold: a quarter of a gigabyte in bf16


class Muon(GroupedOptimizer):
    """Moves matrices in all their directions alike; what is no hidden matrix is left to AdamW.

    A step on a matrix of `rows` and `columns` is

        m = momentum * m + (1 - momentum) * g
        ahead = momentum * m + (1 - momentum) * g
        p = p * (1 - lr * weight_decay)
        p = p - lr * 0.2 * sqrt(max(rows, columns)) * orthogonal(ahead)

    where `orthogonal` brings all singular values near 1, by five iterations of Newton and Schulz.
    An orthogonal matrix has entries of mean square 1 / max(rows, columns), so that each step's entries have
    0.2, about what AdamW's have: learning rate and weight decay may be those of AdamW. A weight that holds
    several matrices, as `Wqkv` does, is taken apart, and each is orthogonalised by itself; matrices of one
    shape go together. (torch's own Muon takes one weight as one matrix after the other.)

    Parameters may be split over ranks (FSDP2): the state is split as they are; each rank gathers the matrices
    and orthogonalises all of them, which for a batch of millions of tokens is less than a hundredth of the
    step.

    Args:
        params: Groups; one of hidden matrices has `num_matrices`, the number in each of its parameters.
        lr: Learning rate, above 0.
        momentum: Coefficient of the running mean of a hidden matrix's gradient, in [0, 1).
        betas: AdamW's coefficients.
        eps: AdamW's epsilon.
        weight_decay: Relative to the learning rate, as AdamW has it.

    Raises:
        ConfigError: A value out of its range, or a group of matrices with something else in it.
    """

    def __init__(
        self,
        params: Iterable[Group],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "num_matrices": None})

    def _admit(self, group: Group) -> None:
        super()._admit(group)
        for param, count in _matrices(group):
            if param.ndim != 2 or param.shape[0] % count:
                raise ConfigError(
                    f"a hidden matrix has shape {tuple(param.shape)}; it must hold {count} matrices, one on "
                    "another; leave it to AdamW"
                )

    def _rules(self, group: Group) -> Mapping[str, tuple[bool, str]]:
        return {
            **super()._rules(group),
            "momentum": (0 <= group["momentum"] < 1, "at least 0 and below 1"),
            "weight_decay": (group["weight_decay"] >= 0, "at least 0"),
        }

    def _step_group(self, group: Group) -> None:
        if group["num_matrices"] is None:
            self._step_by_adamw(group)
        else:
            self._step_matrices(group)

    def _step_matrices(self, group: Group) -> None:
        counted = [(param, count) for param, count in _matrices(group) if param.grad is not None]
        if not counted:
            return
        params = [param for param, _ in counted]
        directions = _orthogonal(self._looked_ahead(group, params), [count for _, count in counted])
        pairs = zip(directions, params, strict=True)
        steps = [local(placed_like(each, param)).to(param.dtype) for each, param in pairs]
        parts = [local(param) for param in params]
        torch._foreach_mul_(parts, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parts, steps, alpha=-group["lr"])

    def _looked_ahead(self, group: Group, params: list[Tensor]) -> list[Tensor]:
        """Renew the running means; return, as whole matrices, where they are going (Nesterov)."""
        for param in params:
            if not self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        means = [local(self.state[param]["momentum_buffer"]) for param in params]
        grads = [local(param.grad) for param in params if param.grad is not None]
        torch._foreach_lerp_(means, grads, weight=1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, means, weight=group["momentum"])
        return [gather(each.to(_dtype(each)), param) for each, param in zip(ahead, params, strict=True)]

    def _step_by_adamw(self, group: Group) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        for param in params:
            if not self.state[param]:
                # On the CPU, where its bias correction is computed without waiting for the device.
                self.state[param]["step"] = torch.zeros((), device="cpu")
                self.state[param]["exp_avg"] = torch.zeros_like(param)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param)
        states = [self.state[param] for param in params]
        adamw(
            [local(param) for param in params],
            [local(param.grad) for param in params],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _matrices(group: Group) -> Iterator[tuple[Tensor, int]]:
    """Yield the parameters of a group of hidden matrices, and how many matrices each holds."""
    if group["num_matrices"] is not None:
        yield from zip(group["params"], group["num_matrices"], strict=True)


def _dtype(tensor: Tensor) -> torch.dtype:
    """Return what to orthogonalise in. It is a coarse iteration: bf16 does where it is faster."""
    return torch.bfloat16 if tensor.is_cuda else tensor.dtype


def _orthogonal(weights: list[Tensor], counts: list[int]) -> list[Tensor]:
    """Orthogonalise the matrices in each weight, and scale them to entries of root mean square 0.2.

    Args:
        weights: Each some matrices on top of one another.
        counts: How many.

    Returns:
        A tensor for each weight, of its shape.
    """
    pieces = [piece for weight, count in zip(weights, counts, strict=True) for piece in weight.chunk(count)]
    by_shape: dict[torch.Size, list[int]] = {}
    for index, piece in enumerate(pieces):
        by_shape.setdefault(piece.shape, []).append(index)
    for shape, indices in by_shape.items():
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, shape.numel()))
        for start in range(0, len(indices), at_once):
            batch = indices[start : start + at_once]
            turned = _newton_schulz(torch.stack([pieces[index] for index in batch]))
            turned *= 0.2 * math.sqrt(max(shape))
            for index, piece in zip(batch, turned.unbind(), strict=True):
                pieces[index] = piece
    remaining = iter(pieces)
    return [torch.cat([next(remaining) for _ in range(count)]) for count in counts]


def _newton_schulz(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices `[n, rows, columns]` near 1, to about 0.7 to 1.2."""
    if matrices.shape[-2] > matrices.shape[-1]:
        turned: Tensor = _newton_schulz(matrices.mT).mT
        return turned
    a, b, c = _COEFFICIENTS
    x: Tensor = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram: Tensor = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
