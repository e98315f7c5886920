"""What measures of vectors found, a record a system and set, and the tables of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert import config
from modernbert.evaluate.written import Rows
from modernbert.recipes.finetune.intervals import Interval, Measure, bootstrap, mean_of


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
class Measurement:
    """What was found on all sets.

    Attributes:
        kind: What was measured.
        sets: In the order in which they were named.
        notes: How it was measured.
    """

    kind: str
    sets: tuple[MeasuredSet, ...]
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """Say in a line what was measured."""
        return f"{self.kind}: {', '.join(it.name for it in self.sets)}"

    @property
    def tables(self) -> dict[str, Rows]:
        """Each table by its title: rows of equal keys, all text; of several sets also their mean."""
        shown = {_title(it): [_row(system) for system in it.systems] for it in self.sets}
        if len(self.sets) > 1:
            shown[f"Mean of {len(self.sets)} sets, %"] = self._means()
        return shown

    @property
    def remarks(self) -> list[str]:
        """What a reader of the tables must know."""
        return [*self.notes, *(f"{it.name}: {remark}" for it in self.sets for remark in it.remarks)]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        tree: dict[str, Any] = config.to_tree(self)
        return tree

    def _means(self) -> Rows:
        """Lay out the means of the systems that every set has."""
        by_system = [{it.system: it for it in one.systems} for one in self.sets]
        common = [name for name in by_system[0] if all(name in found for found in by_system)]
        rows = []
        for name in common:
            found = [systems[name] for systems in by_system]
            means = {key: statistics.mean(it.figures[key] for it in found) for key in found[0].figures}
            seconds = sum(it.seconds for it in found)
            rows.append({"system": name, **_percents(means), "seconds": f"{seconds:.1f}"})
        return rows


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


def _title(it: MeasuredSet) -> str:
    return f"{it.name}, % (" + ", ".join(f"{count:,} {what}" for what, count in it.counts.items()) + ")"


def _row(it: SystemFigures) -> dict[str, str]:
    figures = {
        name: f"{text} [{100 * it.intervals[name].low:.1f}, {100 * it.intervals[name].high:.1f}]"
        for name, text in _percents(it.figures).items()
    }
    return {"system": it.system, **figures, "seconds": f"{it.seconds:.1f}"}


def _percents(figures: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{100 * value:.1f}" for name, value in figures.items()}
