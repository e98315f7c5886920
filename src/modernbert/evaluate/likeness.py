"""How alike two sentences are: the cosine of a model's vectors against what people said (STS)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modernbert import telemetry
from modernbert.data.columns import Columns
from modernbert.data.records import Records, TextRecord
from modernbert.data.text_records import read_texts
from modernbert.errors import ConfigError, InputError
from modernbert.evaluate.systems import (
    MeasuredSet,
    Measurement,
    Models,
    SystemFigures,
    measure,
    name_of,
    report,
)
from modernbert.infer.encoder import Encoder
from modernbert.recipes.finetune.intervals import of_values

FIGURES = ("spearman", "pearson")


def evaluate_likeness(
    paths: Sequence[str | Path], models: Models, columns: Columns | None = None
) -> Measurement:
    """Measure Spearman's and Pearson's correlation of models' cosines with gold scores.

    Args:
        paths: Tables of pairs with a number each, see `read_texts`.
        models: What is measured.
        columns: Those to read; the rest is guessed.

    Raises:
        InputError: A table that cannot be used. The message names file and line.
        ConfigError: There is no model.
        BackendError: scipy is not installed.
    """
    if not models:
        raise ConfigError("there is no model; there must be one at least; name it")
    sets = [read_texts(path, columns) for path in paths]
    gold = [_gold(one) for one in sets]
    found: list[list[SystemFigures]] = [[] for _ in sets]
    for name, load in models.items():
        encoder = load()
        for path, one, numbers, systems in zip(paths, sets, gold, found):
            began = time.monotonic()
            cosines = _cosines(encoder, one.records, f"{name_of(path)}: {name}")
            measures = of_values(numbers, cosines)
            chosen = {figure: measures[figure] for figure in FIGURES}
            systems.append(measure(name, chosen, len(numbers), time.monotonic() - began))
    measured = [
        MeasuredSet(
            name=name_of(path),
            path=one.path,
            counts={"pairs": len(one.records)},
            systems=tuple(systems),
            remarks=(one.columns.summary(), *(remark.summary() for remark in one.remarks)),
        )
        for path, one, systems in zip(paths, sets, found)
    ]
    notes = ["correlations of the cosine; in brackets: 95% intervals over the pairs"]
    return report("Sentence similarity", measured, notes, encoder.runner.device)


def _gold(one: Records[TextRecord]) -> NDArray[np.float64]:
    """Return the number of each pair."""
    numbers, columns = [], one.columns
    assert isinstance(columns, Columns)
    for record in one.records:
        if len(record.texts) != 2:
            raise InputError(
                f"`{one.path}` was read as single texts ({columns.summary()}); it must hold pairs; name "
                "the columns of both texts"
            )
        if not isinstance(record.label, int | float):
            raise InputError(
                f"`{record.place}`: `{columns.label}` is {record.label!r}; it must be a number, how "
                "alike the texts are; mend it, or name another column"
            )
        numbers.append(float(record.label))
    return np.array(numbers)


def _cosines(encoder: Encoder, records: Sequence[TextRecord], title: str) -> NDArray[np.float64]:
    texts = chain.from_iterable(record.texts for record in records)
    vectors = encoder.encode(texts, normalize_embeddings=True)
    cosines = []
    with telemetry.progress(title, len(records), "pairs") as meter:
        for left, right in zip(vectors, vectors):
            cosines.append(float(left @ right))
            meter.advance(1)
    return np.array(cosines)
