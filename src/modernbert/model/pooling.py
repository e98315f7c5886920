"""One vector a sequence from packed hidden states: no padding, no padding mask."""

from __future__ import annotations

import torch
from torch import Tensor

from modernbert.errors import InputError, did_you_mean
from modernbert.layout import SequenceLayout
from modernbert.ops.segments import reduce

POOLING = ("cls", "mean", "max", "last", "weighted")
"""First token; mean; largest of each dimension; last token; mean weighted by the place, 1 for the first."""


def pool(hidden: Tensor, layout: SequenceLayout, mode: str, *, skip: int = 0) -> Tensor:
    """Reduce each sequence to one vector. Sums are in fp32 and in the order of the tokens.

    Args:
        hidden: `[T, D]`.
        layout: Where each sequence lies, on the same device.
        mode: One of `POOLING`.
        skip: First tokens of each sequence that are left out, such as those of a prompt. `weighted` still
            counts places from the first token, as sentence-transformers does.

    Returns:
        `[B, D]`, in the dtype of `hidden`.

    Raises:
        InputError: An unknown mode, or a sequence of no more than `skip` tokens.
    """
    if mode not in POOLING:
        raise InputError(f"unknown pooling `{mode}`{did_you_mean(mode, POOLING)}")
    _check_skip(layout, skip)
    if mode == "cls":
        return hidden.index_select(0, layout.offsets[:-1] + skip)
    if mode == "last":
        return hidden.index_select(0, layout.offsets[1:] - 1)
    values = hidden.float()
    if mode == "max":
        left_out = (layout.positions < skip)[:, None]
        return reduce(values.masked_fill(left_out, -torch.inf), layout.offsets, "max").to(hidden.dtype)
    weights = layout.positions + 1 if mode == "weighted" else torch.ones_like(layout.positions)
    weights = (weights * (layout.positions >= skip)).float()[:, None]
    sums, total = (reduce(summed, layout.offsets, "sum") for summed in (values * weights, weights))
    return (sums / total).to(hidden.dtype)


def _check_skip(layout: SequenceLayout, skip: int) -> None:
    shortest = min(layout.lengths)
    if not 0 <= skip < shortest:
        raise InputError(
            f"`skip` leaves out {skip} tokens; it must be at least 0 and leave a token of each sequence, but "
            f"sequence {layout.lengths.index(shortest)} has {shortest}; shorten the prompt or allow longer "
            "sequences"
        )
