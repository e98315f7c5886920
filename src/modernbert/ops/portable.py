"""Packed attention for any device and dtype that PyTorch runs on; the batch is never padded.

Global layers: sequences of equal or near-equal length share one call of
`scaled_dot_product_attention`. Local layers: a band along the packed axis; each block of queries
meets its own and its two neighbouring blocks of keys, so the cost grows with `T`, not with `T²`.
What depends on the layout alone is derived once and shared by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from modernbert.layout import SequenceLayout

# Lengths within one eighth of the longest share a group: at most a quarter of its products are wasted.
NEAR_EQUAL = 8
# A band narrower than this would make blocks too small for a matrix product to pay.
SMALLEST_BLOCK = 32


def attention(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, window: int | None) -> Tensor:
    """Compute `reference.attention`."""
    if window is None or layout.longest <= window + 1:
        return _global_attention(q, k, v, layout)
    return _banded_attention(q, k, v, layout, window)


@dataclass(frozen=True)
class _Group:
    """Sequences that one attention call serves.

    `tokens` is int64 `[G, L]`: which packed token stands at each place; short sequences repeat a
    token of their own, hidden by `visible` (bool `[G, 1, 1, L]`, None where all lengths are equal).
    """

    tokens: Tensor
    visible: Tensor | None


@dataclass(frozen=True)
class _Groups:
    """All groups of a layout, and for each packed token its place in their concatenated outputs."""

    groups: tuple[_Group, ...]
    places: Tensor


def _global_attention(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout) -> Tensor:
    if layout.longest * layout.num_sequences == layout.num_tokens:  # all of one length: a reshape serves
        shape = (layout.num_sequences, layout.longest)
        query, key, value = (x.unflatten(0, shape).transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1)
    plan = layout.derive("groups", _plan_groups)
    outputs = []
    for group in plan.groups:
        query, key, value = (x[group.tokens].transpose(1, 2) for x in (q, k, v))
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=group.visible)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[plan.places]


def _plan_groups(layout: SequenceLayout) -> _Groups:
    places = torch.empty(layout.num_tokens, dtype=torch.int64)
    groups, filled = [], 0
    for members in _near_equal(layout.lengths):
        lengths = torch.tensor([layout.lengths[b] for b in members])
        starts = torch.tensor([layout.starts[b] for b in members])
        longest = int(lengths.max())
        column = torch.arange(longest)
        real = column < lengths[:, None]
        tokens = starts[:, None] + torch.minimum(column, lengths[:, None] - 1)
        places[tokens[real]] = filled + torch.arange(real.numel()).view(real.shape)[real]
        visible = None if bool(real.all()) else real[:, None, None, :].to(layout.device)
        groups.append(_Group(tokens.to(layout.device), visible))
        filled += real.numel()
    return _Groups(tuple(groups), places.to(layout.device))


def _near_equal(lengths: tuple[int, ...]) -> list[list[int]]:
    """Part the sequences, longest first, into runs whose shortest is nearly as long as their longest."""
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    runs: list[list[int]] = []
    for b in order:
        longest = lengths[runs[-1][0]] if runs else 0
        if runs and longest - lengths[b] <= longest // NEAR_EQUAL:
            runs[-1].append(b)
        else:
            runs.append([b])
    return runs


def _banded_attention(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, window: int) -> Tensor:
    block = max(window, SMALLEST_BLOCK)
    # As numbers to add: a mask of booleans would be turned into them, and kept, by every layer anew.
    mask = layout.derive(("band", window, q.dtype), lambda it: _plan_band(it, window, block, q.dtype))
    num_blocks = mask.shape[0]
    spare = num_blocks * block - layout.num_tokens
    queries = functional.pad(q, (0, 0, 0, 0, 0, spare)).unflatten(0, (num_blocks, block)).transpose(1, 2)
    keys, values = (_neighbourhoods(x, block, spare) for x in (k, v))
    out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return out.transpose(1, 2).flatten(0, 1)[: layout.num_tokens]


def _neighbourhoods(x: Tensor, block: int, spare: int) -> Tensor:
    """View `[T, N, H]` as each block with its neighbours on both sides, `[blocks, N, 3 * block, H]`."""
    padded = functional.pad(x, (0, 0, 0, 0, block, block + spare))
    return padded.unfold(0, 3 * block, block).transpose(2, 3)


def _plan_band(layout: SequenceLayout, window: int, block: int, dtype: torch.dtype) -> Tensor:
    """Mask each query's neighbourhood: 0 where it sees, else -inf; `[blocks, 1, block, 3 * block]`."""
    num_blocks = -(-layout.num_tokens // block)
    spare = num_blocks * block - layout.num_tokens
    # Filler tokens form a sequence of their own (-1), so that no row of the softmax is empty.
    owners = functional.pad(layout.sequence_ids, (0, spare), value=-1)
    key_owners = functional.pad(functional.pad(owners, (block, 0), value=-2), (0, block), value=-2)
    same = owners.view(num_blocks, block, 1) == key_owners.unfold(0, 3 * block, block)[:, None, :]
    place = torch.arange(3 * block, device=layout.device)
    near = (place[None, :] - place[block : 2 * block, None]).abs() <= window
    hidden = ~(same & near)[:, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=layout.device).masked_fill_(hidden, float("-inf"))
