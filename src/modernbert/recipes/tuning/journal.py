"""What a run of tuning writes down while it goes on, and what it knows of itself between two steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from modernbert import files, telemetry
from modernbert.recipes.tuning.selection import is_better
from modernbert.train.supervised import TuningReport

FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Optimizer steps taken.
        tokens: Real tokens seen.
        seconds: Time that its calls took, up to the last checkpoint.
        best: The best score so far; None: there is none yet.
        looks_since: Looks at the validation since then.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    looks_since: int = 0

    def after(self, report: TuningReport) -> Progress:
        """Return the progress after one more step."""
        return replace(self, step=report.step.number, tokens=self.tokens + report.num_tokens)

    def judged(self, metric: str, score: float) -> Progress:
        """Return the progress after a look at the validation."""
        if self.best is None or is_better(metric, score, self.best):
            return replace(self, best=score, looks_since=0)
        return replace(self, looks_since=self.looks_since + 1)


class Journal:
    """Writes `metrics.jsonl`.

    Args:
        folder: The run's.
        steps_in_epoch: To say how many epochs are done.
        writes: Whether anything is written: of several processes, by the first.
    """

    def __init__(self, folder: Path, steps_in_epoch: int, *, writes: bool) -> None:
        self._path = folder / FILE
        self._lines = telemetry.JsonLines(self._path)
        self._steps_in_epoch = steps_in_epoch
        self._writes = writes

    def cut(self, step: int) -> None:
        """Forget what was written after a step, where the run goes on."""
        if not (self._writes and self._path.exists()):
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        files.write_text(self._path, "".join(kept))

    def step(self, report: TuningReport) -> None:
        """Write what a step did."""
        self._write(
            "step",
            report.step.number,
            loss=report.loss,
            learning_rate=report.learning_rate,
            gradient_norm=report.gradient_norm,
            examples_per_second=report.step.num_examples / report.seconds,
            tokens_per_second=report.num_tokens / report.seconds,
        )

    def evaluation(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        """Write what was measured."""
        self._write("evaluation", step, split=split, figures=dict(figures))

    def _write(self, event: str, step: int, **facts: object) -> None:
        if self._writes:
            epoch = step / self._steps_in_epoch
            self._lines.write({"event": event, "step": step, "epoch": round(epoch, 4), **facts})
