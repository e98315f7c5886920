"""Systems that rank or compare, and what measures of vectors found: a record a system and set, and tables."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from modernbert import config
from modernbert.data.remote import is_url
from modernbert.evaluate.measured import Measured, Rows
from modernbert.infer.encoder import Encoder
from modernbert.recipes.finetune.intervals import Interval, Measure, bootstrap, mean_of
from modernbert.runtime import machine_facts

PACKAGES = ("bm25s", "PyStemmer", "pytrec-eval-terrier", "scipy")
Models = Mapping[str, Callable[[], Encoder]]
"""By name, what loads them; each is loaded when the one before is done."""


@dataclass(frozen=True, kw_only=True)
class SystemFigures:
    """One system on one set.

    Attributes:
        system: A model, BM25, or what they are together.
        figures: By name, as fractions.
        intervals: Of each figure, at 95%, by bootstrap over the queries, or pairs.
        seconds: From text to result, a model's loading left out.
    """

    system: str
    figures: Mapping[str, float]
    intervals: Mapping[str, Interval]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MeasuredSet:
    """What was found on one set.

    Attributes:
        path: Where it lies.
        counts: How many of what it has.
        systems: In the order of the table.
        remarks: What should be known of its data.
    """

    name: str
    path: str
    counts: Mapping[str, int]
    systems: tuple[SystemFigures, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Measurement(Measured):
    """What was found on all sets.

    Attributes:
        sets: In the order in which they were named.
    """

    sets: tuple[MeasuredSet, ...]


def name_of(path: str | Path) -> str:
    """Return what a file, folder or URL is called in tables: a file by its folder too, as many are `test`."""
    if is_url(path):
        return str(path)
    whole = Path(path).resolve()
    return whole.name if whole.is_dir() else f"{whole.parent.name}/{whole.name}"


def report(
    kind: str, sets: Sequence[MeasuredSet], notes: Sequence[str], device: torch.device | None
) -> Measurement:
    """Bring what was found on all sets together; of several sets also their mean.

    Args:
        kind: What was measured.
        sets: In the order in which they were named.
        notes: How it was measured.
        device: That of the models; None: there was no model.
    """
    tables = {f"{name}, % ({_counts(it)})": [*map(_row, it.systems)] for name, it in _named(sets).items()}
    if len(sets) > 1:
        tables[f"Mean of {len(sets)} sets, %"] = _means(sets)
    return Measurement(
        headline=f"{kind}: {', '.join(it.name for it in sets)}",
        tables=tables,
        remarks=[*notes, *(f"{it.name}: {remark}" for it in sets for remark in it.remarks)],
        figures={"kind": kind, "sets": config.to_tree(sets), "notes": list(notes)},
        machine=machine_facts(device, PACKAGES),
        sets=tuple(sets),
    )


def measure(system: str, measures: Mapping[str, Measure], num_examples: int, seconds: float) -> SystemFigures:
    """Take figures and their intervals.

    Args:
        system: What is measured.
        measures: As `intervals.bootstrap` takes them.
        num_examples: How many queries, or pairs.
        seconds: What the system took.
    """
    once = np.ones(num_examples)
    return SystemFigures(
        system=system,
        figures={name: take(once) for name, take in measures.items()},
        intervals=bootstrap(measures, num_examples),
        seconds=seconds,
    )


def measure_means(system: str, values: Mapping[str, NDArray[np.float64]], seconds: float) -> SystemFigures:
    """Take the means of values [n], one a query. For the other arguments see `measure`."""
    num_queries = len(next(iter(values.values())))
    return measure(system, {name: mean_of(found) for name, found in values.items()}, num_queries, seconds)


def _named(sets: Sequence[MeasuredSet]) -> dict[str, MeasuredSet]:
    """Name each set; those whose names are the same by their paths."""
    counts = Counter(it.name for it in sets)
    return {it.name if counts[it.name] == 1 else it.path: it for it in sets}


def _counts(it: MeasuredSet) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in it.counts.items())


def _means(sets: Sequence[MeasuredSet]) -> Rows:
    """Lay out the means of the systems that every set has."""
    by_system = [{it.system: it for it in one.systems} for one in sets]
    rows = []
    for name in [name for name in by_system[0] if all(name in found for found in by_system)]:
        found = [systems[name] for systems in by_system]
        means = {key: statistics.mean(it.figures[key] for it in found) for key in found[0].figures}
        seconds = sum(it.seconds for it in found)
        rows.append({"system": name, **_percents(means), "seconds": f"{seconds:.1f}"})
    return rows


def _row(it: SystemFigures) -> dict[str, str]:
    figures = {
        name: f"{text} [{100 * it.intervals[name].low:.1f}, {100 * it.intervals[name].high:.1f}]"
        for name, text in _percents(it.figures).items()
    }
    return {"system": it.system, **figures, "seconds": f"{it.seconds:.1f}"}


def _percents(figures: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{100 * value:.1f}" for name, value in figures.items()}
