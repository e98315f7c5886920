"""The gradients of one optimizer step: all rows of all ranks, each target with the same weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from modernbert.train.parallel import Row, Spread


class StepFigures(NamedTuple):
    """What a step's rows gave, on all ranks, before the update.

    Attributes:
        loss: The sum of losses over the sum of weights.
        num_right: How much was right.
        gradient_norm: Euclidean norm of the gradient over all parameters.
        weight: The sum of weights.
        parts: The sum of each part of the loss over the sum of weights, where rows tell them.
    """

    loss: float
    num_right: int
    gradient_norm: float
    weight: float
    parts: tuple[float, ...] = ()


class TuningFigures(NamedTuple):
    """What a step over examples gave, on all ranks, before the update.

    Attributes:
        loss: Mean.
        gradient_norm: Euclidean norm of the gradient over all parameters.
        num_tokens: What the step consumed.
    """

    loss: float
    gradient_norm: float
    num_tokens: int


def step_gradients(spread: Spread[Any], rows: Sequence[Row], seeds: Sequence[int | None]) -> StepFigures:
    """Compute a step's gradients, which add to those that there are; the host waits once.

    Args:
        spread: The model.
        rows: This rank's, as many as every other rank has.
        seeds: For each row, what fixes its dropout; None: torch's random state does.
    """
    spread.model.train()
    device = spread.device
    weight = torch.full((), sum(row.weight for row in rows), device=device)
    # All ranks' now: it divides each row's loss. The host does not wait for it.
    whole = spread.ranks.add(weight.clone())
    divisor = torch.where(whole > 0, whole, torch.ones_like(whole))
    total, right = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64)
    parts: list[torch.Tensor] = []
    for place, (row, seed) in enumerate(zip(rows, seeds, strict=True), start=1):
        if seed is not None:
            torch.manual_seed(seed)
        with spread.micro_batch(is_last=place == len(rows)):
            row_loss, row_right, *row_parts = spread.loss(row)
            mean = row_loss / divisor
            spread.backward(mean)
        total, right = total + mean.detach(), right + row_right
        shares = [part / divisor for part in row_parts]
        parts = [sum_ + share for sum_, share in zip(parts, shares, strict=True)] if parts else shares
    figures = torch.stack([total, right.float(), spread.squared_gradient_norm(), weight, *parts])
    loss, num_right, square, weights, *means = spread.ranks.add(figures).tolist()  # the step's only wait
    return StepFigures(loss, int(num_right), math.sqrt(square), weights, tuple(means))
