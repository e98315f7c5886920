"""Several rankings into one, by ranks alone, so that scores of different kinds need not compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modernbert.retrieve.exact import Hits, best

RANK_CONSTANT = 60


def fuse(rankings: Sequence[Hits], k: int) -> Hits:
    """Fuse rankings of one query by reciprocal ranks: the sum of 1 / (60 + rank) (Cormack et al. 2009).

    Args:
        rankings: From different searches of the same corpus.
        k: How many to return.
    """
    places, rows = np.unique(np.concatenate([it.places for it in rankings]), return_inverse=True)
    shares = [1 / (RANK_CONSTANT + 1 + np.arange(len(it.places))) for it in rankings]
    order, scores = best(np.bincount(rows, np.concatenate(shares), minlength=len(places)), k)
    return Hits(places[order], scores)
