"""A stand-in for a loaded model, whose vectors the test chooses, and small sets of data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


@dataclass
class ChosenVectors:
    """Gives each text the vector that the test names; as `Encoder`, lists make arrays, iterators iterators.

    With scores it is a cross-encoder, whose score of a pair is that of its second text.
    """

    vectors: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] | None = None
    labels: tuple[str, ...] = ("relevant",)
    name: str = "chosen"
    asked: list[str] = field(default_factory=list)

    runner = SimpleNamespace(device="cpu")

    @property
    def is_cross_encoder(self) -> bool:
        return self.scores is not None

    @property
    def config(self) -> Any:
        return SimpleNamespace(head=SimpleNamespace(labels=self.labels))

    def encode(self, texts: Iterable[str], *, normalize_embeddings: bool) -> Any:
        assert normalize_embeddings
        rows = (self._vector(text) for text in texts)
        return rows if isinstance(texts, Iterator) else np.stack([*rows])

    def encode_query(self, texts: Iterable[str], *, normalize_embeddings: bool) -> Any:
        self.asked.append("query")
        return self.encode(texts, normalize_embeddings=normalize_embeddings)

    def encode_document(self, texts: Iterable[str], *, normalize_embeddings: bool) -> Any:
        self.asked.append("document")
        return self.encode(texts, normalize_embeddings=normalize_embeddings)

    def predict(self, pairs: Iterator[tuple[str, str]], *, activation: str) -> Iterator[float]:
        assert activation == "identity"
        assert self.scores is not None
        return (self.scores[text] for _, text in pairs)

    def _vector(self, text: str) -> np.ndarray:
        vector = np.asarray(self.vectors[text], np.float32)
        unit: np.ndarray = vector / np.linalg.norm(vector)
        return unit


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_retrieval(folder: Path) -> Path:
    """Write a set of three documents and two queries, each of which has one of them."""
    texts = {"1": "wings of planes", "2": "engines", "3": "the weather"}
    write_lines(folder / "corpus.jsonl", [{"id": name, "text": text} for name, text in texts.items()])
    queries = {"1": "about wings", "9": "about rain"}
    write_lines(folder / "queries.jsonl", [{"id": name, "text": text} for name, text in queries.items()])
    judged = [("1", "1"), ("1", "2"), ("9", "3")]
    write_lines(folder / "qrels.jsonl", [{"qid": query, "did": name, "rel": 1} for query, name in judged])
    return folder


def write_candidates(folder: Path) -> Path:
    rows = [
        {"query": "about wings", "docs": ["engines", "wings of planes", "the weather"], "rel": [0, 1, 0]},
        {"query": "about rain", "docs": ["wings of planes", "the weather"], "rel": {"1": 1}},
    ]
    write_lines(folder / "test.jsonl", rows)
    return folder


VECTORS = {
    "wings of planes": (1, 0.1),
    "engines": (0.7, 0.7),
    "the weather": (0, 1),
    "about wings": (1, 0),
    "about rain": (0.3, 1),
}
