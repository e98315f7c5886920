"""What a benchmark found: a record a run, and what seeds and grids make of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modernbert import config
from modernbert.evaluate.suites import DEV, Size, Values

Scores = Mapping[str, Mapping[str, float]]
"""Metrics by split."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One fine-tuning that is done.

    Attributes:
        name: Its folder below `runs`.
        start: What it started from: a model's name, or the name of the run that made it.
        from_mnli: Whether that is a model that was fine-tuned on MNLI, for a task that asks for one.
        scores: The task's metrics by split, as fractions, the one that it is judged by first.
        model: Folder of the best model, seen from the benchmark's; it may be removed by now.
        figures: What fine-tuning itself measured.
        settings: By which a run is known to be the same.
    """

    name: str
    task: str
    values: Values
    seed: int
    start: str
    from_mnli: bool
    scores: Scores
    model: str
    seconds: float
    figures: Scores
    settings: Mapping[str, Any]

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Finished:
        """Make it of plain values, as `config.to_tree` gives them."""
        return cls(**{**tree, "values": Values(**tree["values"])})

    @property
    def selected_by(self) -> float:
        """The first metric on the dev set."""
        return next(iter(self.scores[DEV].values()))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A metric over seeds, as fractions.

    Attributes:
        spread: Standard deviation of a sample; None with a single seed.
    """

    mean: float
    spread: float | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A benchmark of one model.

    Attributes:
        parameters: Of its encoder.
        size: The published size that it is compared with.
        tasks: Those that were wanted and had data.
        examples: How many, by task and split.
        sources: Where the data came from, by task.
        finished: All runs, in the order in which they were planned.
        notes: What was left out, and why.
        limit: So many rows of each split were taken; None: all.
    """

    suite: str
    model: str
    parameters: int
    size: Size
    tasks: tuple[str, ...]
    examples: Mapping[str, Mapping[str, int]]
    sources: Mapping[str, str]
    finished: tuple[Finished, ...]
    notes: tuple[str, ...]
    limit: int | None = None

    def runs(self, task: str) -> list[Finished]:
        """Return a task's runs, a seed each, with the values that are best on the dev set."""
        by_values: dict[Values, list[Finished]] = {}
        for it in self.finished:
            if it.task == task:
                by_values.setdefault(it.values, []).append(it)
        return max(by_values.values(), key=lambda runs: statistics.mean(it.selected_by for it in runs))

    def figures(self, task: str) -> dict[str, dict[str, Figure]]:
        """Return a task's metrics by split, over the seeds of `runs`."""
        runs = self.runs(task)
        return {
            split: {metric: _figure([it.scores[split][metric] for it in runs]) for metric in metrics}
            for split, metrics in runs[0].scores.items()
        }

    @property
    def hours(self) -> float:
        return sum(it.seconds for it in self.finished) / 3600

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        summary = {
            task: {
                "values": config.to_tree(self.runs(task)[0].values),
                "seeds": [it.seed for it in self.runs(task)],
                "from_mnli": self.runs(task)[0].from_mnli,
                "scores": config.to_tree(self.figures(task)),
            }
            for task in self.tasks
        }
        return {**config.to_tree(self), "summary": summary, "hours": self.hours}


def _figure(found: list[float]) -> Figure:
    return Figure(mean=statistics.mean(found), spread=statistics.stdev(found) if len(found) > 1 else None)
