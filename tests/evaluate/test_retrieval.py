"""Retrieval: models beside BM25 and fused with it, by hand; settings; what a table and its file say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from modernbert.errors import ConfigError, InputError
from modernbert.evaluate import retrieval
from modernbert.evaluate.retrieval import RetrievalSettings, evaluate_retrieval
from modernbert.retrieve.bm25 import Bm25Settings
from tests.evaluate.vectors import VECTORS, ChosenVectors, write_retrieval


def test_systems_by_hand(tmp_path: Path) -> None:
    model = ChosenVectors({**VECTORS, "engines": (-1, -1)})
    found = evaluate_retrieval([write_retrieval(tmp_path / "set")], {"m": lambda: model}, RetrievalSettings())
    (one,) = found.sets
    assert one.counts == {"documents": 3, "queries": 2, "judgements": 3}
    words, vectors, both = one.systems
    assert [words.system, vectors.system, both.system] == ["BM25", "m", "m + BM25"]
    # BM25 finds document 1 for wings, and nothing for rain; the model 1, 3, 2 for wings, 3 first for rain.
    whole = 1 + 1 / math.log2(3)
    assert words.figures == pytest.approx(
        {"nDCG@10": 1 / whole / 2, "MRR@10": 1 / 2, "recall@100": 1 / 4, "MAP": 1 / 4}
    )
    assert vectors.figures == pytest.approx(
        {
            "nDCG@10": ((1 + 1 / 2) / whole + 1) / 2,
            "MRR@10": 1,
            "recall@100": 1,
            "MAP": ((1 + 2 / 3) / 2 + 1) / 2,
        }
    )
    assert both.figures == pytest.approx(vectors.figures)
    assert words.intervals["MRR@10"].low == 0
    assert words.intervals["MRR@10"].high == 1
    assert model.asked == ["query", "document"]


def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, models = write_retrieval(tmp_path / "set"), {"m": lambda: ChosenVectors(VECTORS)}
    whole = evaluate_retrieval([folder], models, RetrievalSettings(bm25=None))
    monkeypatch.setattr(retrieval, "DOCUMENTS_AT_ONCE", 2)
    parts = evaluate_retrieval([folder], models, RetrievalSettings(bm25=None))
    assert parts.sets[0].systems[0].figures == whole.sets[0].systems[0].figures


def test_the_document_of_the_query_itself(tmp_path: Path) -> None:
    """Its place goes to the next one; then query 1 does not find document 1."""
    settings = RetrievalSettings(ignore_identical_ids=True)
    model = ChosenVectors(VECTORS)
    found = evaluate_retrieval([write_retrieval(tmp_path / "set")], {"m": lambda: model}, settings)
    words, vectors, _ = found.sets[0].systems
    assert words.figures["recall@100"] == 0
    assert vectors.figures["recall@100"] == pytest.approx((1 / 2 + 1) / 2)
    assert vectors.figures["MRR@10"] == 1
    assert "documents with the query's own id are left out" in found.remarks


def test_several_sets_and_models(tmp_path: Path) -> None:
    folders = [write_retrieval(tmp_path / "one"), write_retrieval(tmp_path / "two")]
    loaded: list[str] = []

    def load(name: str) -> ChosenVectors:
        loaded.append(name)
        return ChosenVectors(VECTORS)

    models = {"a": lambda: load("a"), "b": lambda: load("b")}
    found = evaluate_retrieval(folders, models, RetrievalSettings(bm25=Bm25Settings(words="plain")))
    assert loaded == ["a", "b"]
    systems = ["BM25", "a", "a + BM25", "b", "b + BM25"]
    assert [[it.system for it in one.systems] for one in found.sets] == [systems, systems]
    assert found.headline == "Retrieval: one, two"
    assert [*found.tables] == [
        "one, % (3 documents, 2 queries, 3 judgements)",
        "two, % (3 documents, 2 queries, 3 judgements)",
        "Mean of 2 sets, %",
    ]
    mean = found.tables["Mean of 2 sets, %"][1]
    assert (mean["system"], mean["MRR@10"]) == ("a", "100.0")
    assert found.tables["one, % (3 documents, 2 queries, 3 judgements)"][1]["MAP"] == "100.0 [100.0, 100.0]"
    assert "BM25: bm25s, k1 1.5, b 0.75, plain words" in found.remarks
    tree = found.to_json()
    assert {"date", "machine"} <= {*tree}
    assert {"device", "torch", "commit", "bm25s"} <= {*tree["machine"]}
    assert tree["sets"][1]["systems"][1]["intervals"]["MAP"] == {"low": 1.0, "high": 1.0}


def test_sets_of_one_name_are_told_by_their_paths(tmp_path: Path) -> None:
    folders = [write_retrieval(tmp_path / language / "set") for language in ("de", "fr")]
    found = evaluate_retrieval(folders, {}, RetrievalSettings())
    assert [*found.tables][:2] == [f"{it}, % (3 documents, 2 queries, 3 judgements)" for it in folders]


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no model, and BM25 is left out"):
        evaluate_retrieval([write_retrieval(tmp_path / "set")], {}, RetrievalSettings(bm25=None))
    with pytest.raises(ConfigError, match="`top_k` is 99; recall@100 needs at least 100"):
        RetrievalSettings(top_k=99)

    def load() -> ChosenVectors:
        pytest.fail("all sets are read before a model is loaded")

    with pytest.raises(InputError, match="none` is no folder"):
        evaluate_retrieval([tmp_path / "set", tmp_path / "none"], {"m": load}, RetrievalSettings())
