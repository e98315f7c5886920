"""Re-ranking: models that put the given documents of each query in order, beside BM25 and the order given."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert import telemetry
from modernbert.data.candidate_records import read_candidates
from modernbert.data.records import CandidateRecord, Records
from modernbert.errors import InputError
from modernbert.evaluate.rankings import MAP, MRR, NDCG, score_rankings
from modernbert.evaluate.retrieval import BM25, check_systems
from modernbert.evaluate.systems import (
    MeasuredSet,
    Measurement,
    Models,
    SystemFigures,
    measure_means,
    name_of,
    report,
)
from modernbert.infer.encoder import Encoder
from modernbert.retrieve.bm25 import Bm25, Bm25Settings

GIVEN = "order given"

Scores = NDArray[Any]
Candidates = Records[CandidateRecord]


def evaluate_reranking(
    paths: Sequence[str | Path],
    models: Models,
    *,
    split: str | None = None,
    bm25: Bm25Settings | None,
) -> Measurement:
    """Measure models and BM25 on queries with given documents.

    Args:
        paths: See `read_candidates`.
        models: Cross-encoders, which score pairs, or others, by the cosine of their vectors.
        split: Of folders; None: `test`, or the only one.
        bm25: None: without it.

    Raises:
        InputError: A set that cannot be used, or a classifier of several labels.
        ConfigError: There is nothing to measure.
        BackendError: A library is not installed.
    """
    check_systems(models, bm25)
    sets = [read_candidates(path, split=split) for path in paths]
    found = [[*_first_rows(one, name_of(path), bm25)] for path, one in zip(paths, sets)]
    device = None
    for name, load in models.items():
        encoder = load()
        device = encoder.runner.device
        for path, one, systems in zip(paths, sets, found):
            scores = _scores_of(encoder, one.records)
            systems.append(_measured(name, f"{name_of(path)}: {name}", one.records, scores))
    measured = [
        MeasuredSet(
            name=name_of(path),
            path=one.path,
            counts={
                "queries": len(one.records),
                "documents": sum(len(record.documents) for record in one.records),
            },
            systems=tuple(systems),
            remarks=tuple(remark.summary() for remark in one.remarks),
        )
        for path, one, systems in zip(paths, sets, found)
    ]
    return report("Re-ranking", measured, [*_notes(bm25)], device)


def _first_rows(one: Candidates, name: str, bm25: Bm25Settings | None) -> Iterator[SystemFigures]:
    """Yield what needs no model."""
    records = one.records
    if all(record.is_ordered for record in records):
        yield _measured(GIVEN, name, records, (-np.arange(len(it.documents)) for it in records))
    if bm25 is not None:
        yield _measured(BM25, f"{name}: {BM25}", records, _scores_by_words(records, bm25))


def _measured(
    system: str, title: str, records: Sequence[CandidateRecord], scores: Iterator[Scores]
) -> SystemFigures:
    """Take the figures of scores, one array a query, which are computed as they are asked for."""
    began, rankings = time.monotonic(), []
    with telemetry.progress(title, len(records), "queries") as meter:
        for record, found in zip(records, scores):
            rankings.append([str(place) for place in _order(found, record.grades)])
            meter.advance(1)
    seconds = time.monotonic() - began
    judgements = [{str(place): grade for place, grade in enumerate(it.grades)} for it in records]
    values = score_rankings(judgements, rankings)
    return measure_means(system, {name: values[name] for name in (NDCG, MRR, MAP)}, seconds)


def _order(scores: Scores, grades: Sequence[int]) -> Sequence[int]:
    """Order documents by their scores; of equal ones the less relevant is the first, so that none gain."""
    places: list[int] = np.lexsort((np.asarray(grades), -np.asarray(scores))).tolist()
    return places


def _scores_by_words(records: Sequence[CandidateRecord], settings: Bm25Settings) -> Iterator[Scores]:
    """Score by BM25, which knows how rare a word is among the documents of all queries."""
    index = Bm25(_documents(records), settings)
    first = 0
    for record in records:
        yield index.scores(record.query)[first : first + len(record.documents)]
        first += len(record.documents)


def _scores_of(encoder: Encoder, records: Sequence[CandidateRecord]) -> Iterator[Scores]:
    """Score by a model, as its head allows."""
    if encoder.is_cross_encoder:
        labels = encoder.config.head.labels
        if len(labels) > 1:
            raise InputError(
                f"`{encoder.name}` gives {len(labels)} scores a pair ({', '.join(labels[:5])}); a "
                "cross-encoder must give one; use such a one, or a model without this head"
            )
        pairs = ((record.query, document) for record in records for document in record.documents)
        # Unlike the sigmoid, the bare score never ends in a tie.
        return _parts(encoder.predict(pairs, activation="identity"), records)
    return _cosines(encoder, records)


def _cosines(encoder: Encoder, records: Sequence[CandidateRecord]) -> Iterator[Scores]:
    queries = encoder.encode_query((record.query for record in records), normalize_embeddings=True)
    vectors = encoder.encode_document(_documents(records), normalize_embeddings=True)
    for query, documents in zip(queries, _parts(vectors, records)):
        yield documents @ query


def _documents(records: Sequence[CandidateRecord]) -> Iterator[str]:
    return (document for record in records for document in record.documents)


def _parts(results: Iterator[Any], records: Sequence[CandidateRecord]) -> Iterator[NDArray[Any]]:
    """Give each record the results of its documents."""
    for record in records:
        yield np.array(list(itertools.islice(results, len(record.documents))))


def _notes(bm25: Bm25Settings | None) -> Iterator[str]:
    yield "in brackets: 95% intervals over the queries; of equal scores the less relevant document goes first"
    if bm25 is not None:
        yield f"{bm25}; rare words are those rare among the documents of all queries of a set"
