"""What a run's folder says of its course: the records of `metrics.jsonl`, read back as columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert import config, files
from modernbert.errors import InputError

Column = NDArray[np.float64]
Record = Mapping[str, Any]

MEASURED = ("step", "validation")
COLUMNS = (
    "step",
    "steps",
    "tokens",
    "loss",
    "accuracy",
    "objective",
    "divergence",
    "hidden_distance",
    "gradient_norm",
    "learning_rate",
    "batch_tokens",
    "masked_tokens",
    "utilisation",
    "seconds",
    "wait_seconds",
    "tokens_per_second",
    "mfu",
    "memory_bytes",
    "seconds_left",
)


@dataclass(frozen=True)
class Span:
    """The part of a run that one phase took.

    Attributes:
        name: The phase's.
        first: Its first row of the columns.
        stop: The row behind its last.
        start_tokens: Tokens seen before it.
        end_tokens: Tokens seen at its end, or so far.
    """

    name: str
    first: int
    stop: int
    start_tokens: float
    end_tokens: float

    def holds(self, tokens: float) -> bool:
        """Whether what was measured after so many tokens belongs to this phase."""
        return self.start_tokens < tokens <= self.end_tokens


@dataclass(frozen=True)
class History:
    """The course of one run.

    Attributes:
        name: What pictures and tables call it.
        folder: Where it is.
        columns: float64, each of `COLUMNS` with a value a record of steps, NaN where there is none.
        spans: Its phases, as far as it went.
        validations: Records of validations, in order.
        events: All other records, in order.
        settings: The run file as resolved; empty if `run.yaml` is missing.
        facts: Of the machine; empty if `facts.json` is missing.
    """

    name: str
    folder: Path
    columns: Mapping[str, Column]
    spans: tuple[Span, ...]
    validations: tuple[Record, ...]
    events: tuple[Record, ...]
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def planned_tokens(self) -> float | None:
        """Tokens of the whole run as planned; None if its settings are missing."""
        phases = self.settings.get("phases")
        return sum(phase["tokens"] for phase in phases) if phases else None


def read_history(folder: Path, name: str | None = None) -> History:
    """Read what a run has written so far; the run may be going on.

    Args:
        folder: The run's.
        name: What to call it; by default as its folder is called.

    Raises:
        InputError: The folder holds no record of a step, or something else in its place.
    """
    path = folder / "metrics.jsonl"
    records = read_records(path)
    measured = _without_undone(record for record in records if record["event"] in MEASURED)
    steps = [record for record in measured if record["event"] == "step"]
    if not steps:
        raise InputError(f"`{path}` holds no step yet; there must be one to draw; wait for the run's first")
    columns = {
        key: np.array([number(record.get(key)) for record in steps], dtype=np.float64) for key in COLUMNS
    }
    run_file, facts = folder / "run.yaml", folder / "facts.json"
    return History(
        name=name or folder.resolve().name,
        folder=folder,
        columns=columns,
        spans=_spans([record["phase"] for record in steps], columns["tokens"], columns["batch_tokens"][0]),
        validations=tuple(record for record in measured if record["event"] == "validation"),
        events=tuple(record for record in records if record["event"] not in MEASURED),
        settings=config.load(run_file) if run_file.exists() else {},
        facts=files.read_json(facts) if facts.exists() else {},
    )


def read_histories(folders: Sequence[Path]) -> list[History]:
    """Read several runs, each named as its folder, or by its whole path where two folders are called alike.

    Raises:
        InputError: As `read_history`.
    """
    names = [folder.resolve().name for folder in folders]
    shown = [str(folder) if names.count(name) > 1 else name for folder, name in zip(folders, names)]
    return [read_history(folder, name) for folder, name in zip(folders, shown)]


def read_records(path: Path, keys: Sequence[str] = ("event", "tokens")) -> list[Record]:
    """Read the records of a run, but for a last one that is being written.

    Args:
        path: The file, a JSON object a line.
        keys: What each record must have.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise InputError(
            f"`{path}` could not be read ({error.strerror}); it must be the record of a run; "
            "give the folder of one"
        ) from None
    return [
        _parse(line, keys, f"{path}:{row}") for row, line in enumerate(lines, start=1) if line.endswith("\n")
    ]


def _parse(line: str, keys: Sequence[str], where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not set(keys) <= record.keys():
        wanted = " and ".join(f"`{key}`" for key in keys)
        raise InputError(
            f"`{where}` is not a record of a run: {line.strip()[:60]!r}; it must be a JSON object with "
            f"{wanted}; remove that line"
        )
    return record


def _without_undone(records: Iterable[Record]) -> list[Record]:
    """Drop the steps and validations that the run took back when it returned to an earlier step."""
    kept: list[Record] = []
    for record in records:
        is_step = record["event"] == "step"
        while kept and (
            kept[-1]["tokens"] > record["tokens"] or (is_step and kept[-1]["tokens"] == record["tokens"])
        ):
            kept.pop()
        kept.append(record)
    return kept


def number(value: Any) -> float:
    """Return a number of a record; NaN where there is none."""
    return float("nan") if value is None else float(value)


def _spans(phases: Sequence[str], tokens: Column, first_tokens: float) -> tuple[Span, ...]:
    spans: list[Span] = []
    row, seen = 0, float(max(tokens[0] - first_tokens, 0))
    for name, group in groupby(phases):
        stop = row + len(list(group))
        spans.append(Span(name, row, stop, seen, float(tokens[stop - 1])))
        row, seen = stop, float(tokens[stop - 1])
    return tuple(spans)
