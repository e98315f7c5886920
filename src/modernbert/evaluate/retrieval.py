"""Zero-shot retrieval: models by exact search among their vectors, beside BM25 and fused with it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modernbert import telemetry
from modernbert.data.retrieval_records import RetrievalSet, read_retrieval_set
from modernbert.errors import ConfigError
from modernbert.evaluate.rankings import score_rankings
from modernbert.evaluate.systems import MeasuredSet, Measurement, Models, SystemFigures, measure_means, report
from modernbert.infer.encoder import Encoder
from modernbert.retrieve.bm25 import Bm25, Bm25Settings
from modernbert.retrieve.exact import Hits, Vectors, search_vectors
from modernbert.retrieve.fusion import RANK_CONSTANT, fuse

BM25 = "BM25"
DOCUMENTS_AT_ONCE = 16_384
"""Of which the vectors are held in memory."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """How retrieval is measured.

    Attributes:
        split: Whose judgements count, where there are several; None: `test`, or the only one.
        top_k: How many documents are found for a query; MAP counts no more.
        ignore_identical_ids: A document with the query's own id is no result, as for ArguAna and Quora.
        bm25: None: without it.

    Raises:
        ConfigError: `top_k` is too small for recall@100.
    """

    split: str | None = None
    top_k: int = 1000
    ignore_identical_ids: bool = False
    bm25: Bm25Settings | None = field(default_factory=Bm25Settings)

    def __post_init__(self) -> None:
        if self.top_k < 100:
            raise ConfigError(f"`top_k` is {self.top_k}; recall@100 needs at least 100; raise it")


def evaluate_retrieval(
    folders: Sequence[str | Path], models: Models, settings: RetrievalSettings
) -> Measurement:
    """Measure models and BM25 on retrieval sets, and each model fused with BM25.

    Args:
        folders: See `read_retrieval_set`.
        models: What is measured.
        settings: How.

    Raises:
        InputError: A set that cannot be used; all are looked through before anything is computed.
        ConfigError: There is nothing to measure.
        BackendError: A library is not installed.
    """
    check_systems(models, settings.bm25)
    works = [_Work(read_retrieval_set(folder, split=settings.split), settings) for folder in folders]
    for work in works:
        work.search_by_words()
    device = None
    for name, load in models.items():
        encoder = load()
        device = encoder.runner.device
        for work in works:
            work.search_by_vectors(name, encoder)
    return report("Retrieval", [work.measured for work in works], [*_notes(models, settings)], device)


def check_systems(models: Models, bm25: Bm25Settings | None) -> None:
    """Make sure that there is something to measure.

    Raises:
        ConfigError: There is not.
    """
    if not models and bm25 is None:
        raise ConfigError("there is no model, and BM25 is left out; there must be one of them; name a model")


class _Work:
    """One set, and what was found on it so far."""

    def __init__(self, one: RetrievalSet, settings: RetrievalSettings) -> None:
        self._set, self._settings = one, settings
        self._systems: list[SystemFigures] = []
        self._by_words: tuple[list[Hits], float] | None = None
        own = {name: place for place, name in enumerate(one.ids) if name in one.queries}
        self._own = [own.get(name, -1) if settings.ignore_identical_ids else -1 for name in one.queries]
        self._depth = settings.top_k + settings.ignore_identical_ids

    @property
    def measured(self) -> MeasuredSet:
        one = self._set
        judged = sum(map(len, one.judgements.values()))
        return MeasuredSet(
            name=one.name,
            path=str(one.folder),
            counts={"documents": len(one.ids), "queries": len(one.queries), "judgements": judged},
            systems=tuple(self._systems),
            remarks=tuple(remark.summary() for remark in one.remarks),
        )

    def search_by_words(self) -> None:
        if self._settings.bm25 is None:
            return
        began = time.monotonic()
        with telemetry.progress(f"{self._set.name}: {BM25}", len(self._set.ids), "documents") as meter:
            index = Bm25(_counted(self._set.documents(), meter), self._settings.bm25)
        hits = self._without_own([index.search(text, self._depth) for text in self._set.queries.values()])
        self._by_words = hits, time.monotonic() - began
        self._add(BM25, *self._by_words)

    def search_by_vectors(self, name: str, encoder: Encoder) -> None:
        began = time.monotonic()
        queries = encoder.encode_query([*self._set.queries.values()], normalize_embeddings=True)
        with telemetry.progress(f"{self._set.name}: {name}", len(self._set.ids), "documents") as meter:
            vectors = encoder.encode_document(self._set.documents(), normalize_embeddings=True)
            blocks = _blocks(_counted(vectors, meter))
            hits = search_vectors(queries, blocks, self._depth, device=encoder.runner.device)
        found = self._without_own(hits), time.monotonic() - began
        self._add(name, *found)
        if self._by_words is not None:
            both = [fuse(pair, self._settings.top_k) for pair in zip(found[0], self._by_words[0])]
            self._add(f"{name} + {BM25}", both, found[1] + self._by_words[1])

    def _without_own(self, hits: list[Hits]) -> list[Hits]:
        """Leave each query's own document out, if that is asked for, and what is then one too many."""
        kept = [
            (it, (it.places != own).nonzero()[0][: self._settings.top_k]) for it, own in zip(hits, self._own)
        ]
        return [Hits(it.places[rows], it.scores[rows]) for it, rows in kept]

    def _add(self, system: str, hits: list[Hits], seconds: float) -> None:
        names = self._set.ids
        rankings = [[names[place] for place in it.places] for it in hits]
        values = score_rankings([*self._set.judgements.values()], rankings)
        self._systems.append(measure_means(system, values, seconds))


def _counted(items: Iterator[Any], meter: telemetry.Meter) -> Iterator[Any]:
    for item in items:
        meter.advance(1)
        yield item


def _blocks(vectors: Iterator[Vectors]) -> Iterator[Vectors]:
    while block := list(itertools.islice(vectors, DOCUMENTS_AT_ONCE)):
        yield np.stack(block)


def _notes(models: Models, settings: RetrievalSettings) -> Iterator[str]:
    yield f"the best {settings.top_k:,} documents of each query; in brackets: 95% intervals over the queries"
    if models:
        yield "models: exact search by the cosine; title and text of documents, the model's own prompts"
    if settings.bm25 is not None:
        yield str(settings.bm25)
    if models and settings.bm25 is not None:
        yield f"model + {BM25}: fused by reciprocal ranks, 1 / ({RANK_CONSTANT} + rank)"
    if settings.split is not None:
        yield f"judgements of the split `{settings.split}`"
    if settings.ignore_identical_ids:
        yield "documents with the query's own id are left out"
