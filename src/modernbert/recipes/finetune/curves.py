"""The course of a fine-tuning run, read back from its `metrics.jsonl`.

Two kinds of records stand there, one JSON object a line; others are passed over:

    {"event": "step", "step", "epoch", "loss", "learning_rate", "examples_per_second", "tokens_per_second"}
    {"event": "evaluation", "step", "epoch", "split", "figures": {…}}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import InputError
from modernbert.recipes.history import Column, Record, number, read_records

COLUMNS = ("step", "epoch", "loss", "learning_rate", "examples_per_second", "tokens_per_second")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one split after a step."""

    step: int
    epoch: float
    split: str
    figures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What a run wrote down.

    Attributes:
        name: What charts call it.
        columns: float64, each of `COLUMNS` with a value a record of steps, NaN where there is none.
        evaluations: In order.
    """

    name: str
    columns: dict[str, Column]
    evaluations: tuple[Evaluation, ...]

    def figure(self, split: str, name: str) -> tuple[Column, Column]:
        """Return the steps at which a figure of a split was measured, and its values."""
        points = [
            (float(one.step), one.figures[name])
            for one in self.evaluations
            if one.split == split and name in one.figures
        ]
        steps, values = zip(*points) if points else ((), ())
        return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        steps = {
            key: [None if np.isnan(value) else value for value in column.tolist()]
            for key, column in self.columns.items()
        }
        return {"name": self.name, "steps": steps, "evaluations": [vars(one) for one in self.evaluations]}


def read_curves(folder: Path, name: str | None = None) -> Curves:
    """Read what a run has written so far; the run may be going on.

    Args:
        folder: The run's.
        name: What to call it; by default as its folder is called.

    Raises:
        InputError: The folder holds no `metrics.jsonl`, or one of something else.
    """
    path = folder / "metrics.jsonl"
    records = _without_undone(
        record
        for record in read_records(path, ("event", "step"))
        if record["event"] in ("step", "evaluation")
    )
    steps = [record for record in records if record["event"] == "step"]
    try:
        columns = {
            key: np.array([number(record.get(key)) for record in steps], dtype=np.float64) for key in COLUMNS
        }
        evaluations = tuple(_evaluation(record) for record in records if record["event"] == "evaluation")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"`{path}` is not the record of a fine-tuning run ({error!r}); it must hold steps and "
            "evaluations; give the folder of one"
        ) from None
    return Curves(name=name or folder.resolve().name, columns=columns, evaluations=evaluations)


def _evaluation(record: Record) -> Evaluation:
    return Evaluation(
        step=int(record["step"]),
        epoch=float(record.get("epoch", 0)),
        split=str(record["split"]),
        figures={str(key): float(value) for key, value in record["figures"].items()},
    )


def _without_undone(records: Iterable[Record]) -> list[Record]:
    """Drop what the run took back when it went on from an earlier step."""
    kept: list[Record] = []
    for record in records:
        is_step = record["event"] == "step"
        while kept and (
            kept[-1]["step"] > record["step"] or (is_step and kept[-1]["step"] == record["step"])
        ):
            kept.pop()
        kept.append(record)
    return kept
