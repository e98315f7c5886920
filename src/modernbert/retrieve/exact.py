"""Exact search: the best of all scores. Of equal ones the earlier document is the better, always."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

QUERIES_AT_ONCE = 256

Vectors = NDArray[np.float32]


class Hits(NamedTuple):
    """What was found for a query, the best first.

    Attributes:
        places: int64 [k], of the documents in their corpus.
        scores: float [k].
    """

    places: NDArray[np.int64]
    scores: NDArray[Any]


def best(scores: NDArray[Any], k: int) -> Hits:
    """Return the `k` best of the scores [N] of all documents, or all if there are fewer."""
    places = np.arange(len(scores))
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least)
    order = np.argsort(-scores[places], kind="stable")[:k]
    return Hits(places[order], scores[places[order]])


def search_vectors(
    queries: Vectors, blocks: Iterable[Vectors], k: int, *, device: torch.device | str = "cpu"
) -> list[Hits]:
    """Find, for each query, the documents with the largest dot products; of unit vectors, the nearest.

    Memory holds one block, `k` hits a query, and the products of a block with some of the queries.

    Args:
        queries: fp32 [Q, E].
        blocks: The documents' vectors in order, fp32 [n, E] each.
        k: How many to find.
        device: Where the products are computed.
    """
    asked = torch.from_numpy(queries).to(device)
    found = [Hits(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in range(len(queries))]
    first = 0
    for block in blocks:
        documents = torch.from_numpy(block).to(device)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            products = (asked[start : start + QUERIES_AT_ONCE] @ documents.T).cpu().numpy()
            for query, scores in enumerate(products, start=start):
                found[query] = _merged(found[query], scores, first, k)
        first += len(block)
    return found


def _merged(before: Hits, scores: NDArray[Any], first: int, k: int) -> Hits:
    """Return the best of what was found before and of the documents from `first` on, which have `scores`."""
    is_full = len(before.scores) == k
    places = (scores > before.scores[-1]).nonzero()[0] if is_full else np.arange(len(scores))
    every = Hits(
        np.concatenate([before.places, places + first]), np.concatenate([before.scores, scores[places]])
    )
    order, kept = best(every.scores, k)
    return Hits(every.places[order], kept)
