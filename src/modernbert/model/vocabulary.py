"""Rows of the embedding and the decoder's bias for another vocabulary, made of those that were learned."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from modernbert.model.fitting import EMBEDDING, TIED

BIAS = "decoder.bias"


def transfer_rows(
    tensors: Mapping[str, Tensor], origins: Sequence[Sequence[int]], num_rows: int
) -> dict[str, Tensor]:
    """Give a masked-LM model's tensors another vocabulary; all others stay.

    A row that comes from one id is its copy, one that comes from several is their mean, and one that comes
    from none is the mean of all that the others come from.

    Args:
        tensors: By their published names, the embedding `[V, D]` and the decoder's bias `[V]` among them.
        origins: For each new id the old ids that it comes from.
        num_rows: Rows of the new vocabulary, at least as many as `origins`.
    """
    taken = {TIED: EMBEDDING, EMBEDDING: EMBEDDING, BIAS: BIAS}
    made = {
        name: _rows(tensors[name].reshape(len(tensors[name]), -1), origins, num_rows)
        for name in (EMBEDDING, BIAS)
    }
    made[BIAS] = made[BIAS].squeeze(1)
    return {name: made[taken[name]] if name in taken else tensor for name, tensor in tensors.items()}


def _rows(old: Tensor, origins: Sequence[Sequence[int]], num_rows: int) -> Tensor:
    """Return `[num_rows, D]` from `[V, D]`."""
    ids = torch.tensor(list(itertools.chain.from_iterable(origins)), device=old.device)
    counts = torch.tensor([len(ids) for ids in origins], device=old.device)
    made = old[ids].mean(0).expand(num_rows, -1).clone()
    means = functional.embedding_bag(ids, old, counts.cumsum(0) - counts, mode="mean")
    made[: len(origins)][counts > 0] = means[counts > 0]
    return made
