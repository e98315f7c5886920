"""Rotary position embedding on packed tokens, half-rotation layout (paper 2.1.1)."""

from __future__ import annotations

import torch
from torch import Tensor

RotaryTable = tuple[Tensor, Tensor]


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> RotaryTable:
    """Cosines and sines of every token's angles.

    Args:
        positions: int64 `[T]`, counted from 0 in each sequence.
        head_dim: Head width `H`, all of which is rotated.
        theta: Base of the angles.

    Returns:
        Two fp32 tensors `[T, 1, H / 2]`, to be shared by all layers of this base.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    angles = positions.float()[:, None, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Turn queries or keys `[T, N, H]` by their tokens' angles, in the dtype of `x`."""
    cos, sin = (part.to(x.dtype) for part in table)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
