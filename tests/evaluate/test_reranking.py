"""Re-ranking: what orders the documents is the model's head; nobody gains by ties."""

from __future__ import annotations

from pathlib import Path

import pytest

from modernbert.errors import ConfigError, InputError
from modernbert.evaluate.reranking import evaluate_reranking
from modernbert.retrieve.bm25 import Bm25Settings
from tests.evaluate.vectors import VECTORS, ChosenVectors, write_candidates, write_lines

SCORES = {"wings of planes": 0.1, "engines": 0.2, "the weather": 0.3}


def test_systems_by_hand(tmp_path: Path) -> None:
    embeds, crosses = ChosenVectors(VECTORS), ChosenVectors(scores=SCORES)
    models = {"bi": lambda: embeds, "cross": lambda: crosses}
    found = evaluate_reranking([write_candidates(tmp_path / "set")], models, bm25=Bm25Settings())
    (one,) = found.sets
    assert (one.name, one.counts) == ("set", {"queries": 2, "documents": 5})
    figures = {it.system: it.figures["MRR@10"] for it in one.systems}
    # BM25 has no word of "about rain": both documents are equal, and the wrong one goes first.
    expected = {"order given": 1 / 2, "BM25": (1 + 1 / 2) / 2, "bi": 1, "cross": (1 / 3 + 1) / 2}
    assert figures == pytest.approx(expected)
    assert [*one.systems[0].figures] == ["nDCG@10", "MRR@10", "MAP"]
    assert embeds.asked == ["query", "document"]


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_equal_scores_gain_nothing(score: float, tmp_path: Path) -> None:
    """With positive documents first in the file, a model that says nothing must not look perfect."""
    row = {"query": "q", "positive": ["a"], "negative": ["b", "c"]}
    path = write_lines(tmp_path / "set" / "dev.jsonl", [row])
    model = ChosenVectors(scores=dict.fromkeys("abc", score))
    found = evaluate_reranking([path], {"m": lambda: model}, bm25=None)
    (only,) = found.sets[0].systems
    assert (found.sets[0].name, only.system) == ("set/dev.jsonl", "m")
    assert only.figures["MRR@10"] == pytest.approx(1 / 3)


def test_what_cannot_be(tmp_path: Path) -> None:
    folder = write_candidates(tmp_path / "set")
    with pytest.raises(ConfigError, match="there is no model, and BM25 is left out"):
        evaluate_reranking([folder], {}, bm25=None)
    model = ChosenVectors(scores=SCORES, labels=("yes", "no", "maybe"))
    with pytest.raises(InputError, match=r"`chosen` gives 3 scores a pair \(yes, no, maybe\)"):
        evaluate_reranking([folder], {"m": lambda: model}, bm25=None)
    with pytest.raises(InputError, match="set` has no table of the split `dev`; it has test"):
        evaluate_reranking([folder], {}, split="dev", bm25=Bm25Settings())
