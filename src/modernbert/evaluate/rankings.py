"""Figures of rankings, by trec_eval's own code (the library pytrec_eval), a value a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import BackendError

MRR, NDCG, RECALL, MAP = "MRR@10", "nDCG@10", "recall@100", "MAP"

_MEASURES = {NDCG: "ndcg_cut_10", RECALL: "recall_100", MAP: "map"}
_MRR_DEPTH = 10


def score_rankings(
    judgements: Sequence[Mapping[str, int]], rankings: Sequence[Sequence[str]]
) -> dict[str, NDArray[np.float64]]:
    """Return nDCG@10, MRR@10, recall@100 and MAP of each query, [Q] each.

    The gain of a document is its grade, its discount log2(1 + rank); to the other three a document is
    relevant if its grade is above 0. What is not found counts as if ranked last.

    Args:
        judgements: Of each query, grades by a document's id; at least one above 0.
        rankings: Of each query, ids, the best first, each once.

    Raises:
        BackendError: pytrec_eval is not installed.
    """
    try:
        import pytrec_eval
    except ImportError:
        raise BackendError(
            "figures of rankings need pytrec_eval, which is not installed; run `pip install "
            "'modernbert[retrieval]'`"
        ) from None
    judged = {str(place): dict(grades) for place, grades in enumerate(judgements)}
    found = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.100", "map"}).evaluate(
        _run(rankings)
    )
    first = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}).evaluate(
        _run([ranking[:_MRR_DEPTH] for ranking in rankings])
    )

    def values(results: Mapping[str, Mapping[str, float]], measure: str) -> NDArray[np.float64]:
        # A query for which nothing was found is not among the results.
        return np.array([results.get(query, {}).get(measure, 0.0) for query in judged])

    scores = {name: values(found, measure) for name, measure in _MEASURES.items()}
    return {NDCG: scores[NDCG], MRR: values(first, "recip_rank"), RECALL: scores[RECALL], MAP: scores[MAP]}


def _run(rankings: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Write rankings as trec_eval takes them: it goes by scores, which here are ranks."""
    return {
        str(place): {name: float(-rank) for rank, name in enumerate(ranking)}
        for place, ranking in enumerate(rankings)
    }
