"""Weights re-arranged without a change of what is computed: what fused encoders build on.

In exact arithmetic each of these changes nothing, so the only error is that of rounding the results.
"""

from __future__ import annotations

import torch
from torch import Tensor


def folded(weight: Tensor, norm: Tensor | None) -> Tensor:
    """Fold the weight `[D]` of the norm before a product into the product's weight `[outputs, D]`."""
    return weight if norm is None else weight * norm


def centred(weight: Tensor) -> Tensor:
    """Make what a product `[D, inputs]` adds to the residual stream sum to zero in each token.

    All that reads the stream subtracts its mean first, as a LayerNorm does, so the mean need not be there;
    and a LayerNorm of numbers whose mean is zero is a product with one number a token.
    """
    return weight - weight.mean(dim=0)


def paired(weight: Tensor, head_dim: int) -> Tensor:
    """Permute the rows of queries and keys, so that the two halves of a rotated pair are neighbours."""
    rows = torch.arange(len(weight)).unflatten(0, (3, -1, 2, head_dim // 2))  # q, k, v; heads; halves
    return weight[torch.cat((rows[:2].transpose(2, 3).flatten(), rows[2].flatten()))]


def gates_paired(weight: Tensor) -> Tensor:
    """Permute the rows `[2 * F, D]`, so that each activation and its gate are neighbours."""
    permuted: Tensor = weight.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
    return permuted
