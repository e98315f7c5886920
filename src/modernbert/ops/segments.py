"""Reductions over the parts of a row: sums, largest values and where they are, sums of exponentials."""

from __future__ import annotations

import torch
from torch import Tensor


def reduce(values: Tensor, offsets: Tensor, reduction: str) -> Tensor:
    """Reduce each part. Unlike scattered additions, with the same bits each time on a GPU too.

    Args:
        values: `[T, D]`, floating-point.
        offsets: Integers `[B + 1]`: part `b` is rows `offsets[b]` up to `offsets[b + 1]`; none is empty.
        reduction: `sum`, `max` or `min`.

    Returns:
        `[B, D]`.
    """
    home = values.device
    if home.type == "mps":  # for which torch has no segmented reduction
        values, offsets = values.cpu(), offsets.cpu()
    # Unchecked ("unsafe"), as the check would wait for the device.
    reduced = torch.segment_reduce(values, reduction, offsets=offsets.long(), axis=0, unsafe=True)
    return reduced.to(home)


def log_sum_exp(values: Tensor, offsets: Tensor, part_ids: Tensor) -> Tensor:
    """Return the logarithm of each part's sum of exponentials, which its softmax is divided by.

    Args:
        values: `[T, D]`, floating-point.
        offsets: Integers `[B + 1]`, as `reduce` takes them.
        part_ids: Integers `[T]`: the part that each row belongs to.

    Returns:
        `[B, D]`.
    """
    largest = reduce(values.detach(), offsets, "max")
    shifted = values - largest.index_select(0, part_ids)
    return reduce(shifted.exp(), offsets, "sum").log() + largest


@torch.no_grad()
def argmax(values: Tensor, offsets: Tensor, part_ids: Tensor) -> Tensor:
    """Return the row that holds each part's largest value, of several the first; see `log_sum_exp`.

    Returns:
        int64 `[B, D]`, counted from the first row of all; past the last row where a part has no largest.
    """
    rows = torch.arange(len(values), device=values.device, dtype=torch.float32)  # exact up to 2**24 of them
    is_largest = values == reduce(values, offsets, "max").index_select(0, part_ids)
    places = torch.where(is_largest, rows[:, None], float(len(values)))
    return reduce(places, offsets, "min").long()
