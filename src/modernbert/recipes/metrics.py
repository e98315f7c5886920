"""What a run measured: a record a window of steps and a validation, in `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modernbert import config, files, runtime, telemetry
from modernbert.errors import ConfigError
from modernbert.model.config import EncoderConfig
from modernbert.recipes.history import MEASURED
from modernbert.recipes.tensorboard import TensorBoard
from modernbert.runtime import Precision
from modernbert.train.evaluation import LengthEvaluation
from modernbert.train.loop import Evaluation, StepReport
from modernbert.train.planner import BACKWARD_AND_FORWARD
from modernbert.train.schedule import Clock, Phase

RECORDS_FOR_ETA = 100


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What is written down while a run goes on.

    Attributes:
        every_steps: Steps of one record. A record also ends with its phase and with each checkpoint.
        tensorboard: Whether the figures also go to `tensorboard/` in the run's folder.
        peak_tflops: What one device does at most, in 10^12 operations a second, for the MFU; null: as
            `runtime.PEAK_TFLOPS` says of it, and no MFU if that does not know it.
    """

    every_steps: int = 1
    tensorboard: bool = False
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ConfigError(f"`every_steps` is {self.every_steps}; it must be at least 1")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ConfigError(f"`peak_tflops` is {self.peak_tflops}; it must be above 0, or null")


class RunMetrics:
    """Writes the records of one run.

    Args:
        folder: The run's; it gets `metrics.jsonl`.
        settings: What to write.
        shape: The model's, to count its operations.
        teacher: Shape of the teacher, if there is one, whose operations count too.
        device: Where it computes.
        precision: In which precision.
        total_tokens: Of the whole run, for the time to go.
        writes: Whether anything is written: of several processes, by the first.

    Raises:
        BackendError: TensorBoard is wanted and not installed.
    """

    def __init__(
        self,
        folder: Path,
        settings: LogSettings,
        *,
        shape: EncoderConfig,
        device: torch.device,
        precision: Precision,
        total_tokens: int,
        teacher: EncoderConfig | None = None,
        writes: bool = True,
    ) -> None:
        self._path = folder / "metrics.jsonl"
        self._lines = telemetry.JsonLines(self._path)
        self._writes = writes
        self._board = TensorBoard(folder / "tensorboard") if settings.tensorboard and writes else None
        self._every_steps = settings.every_steps
        self._shape = shape
        self._teacher = teacher
        self._device = device
        self._peak = _peak_flops(settings, device, precision)
        self._total_tokens = total_tokens
        self._window = _Window()
        self._pace: deque[tuple[float, int]] = deque(maxlen=RECORDS_FOR_ETA)
        self._shown: dict[str, str] = {}

    def cut(self, step: int, *, keeps_events: bool = False) -> None:
        """Forget what was written after `step`, where the run goes on.

        Args:
            step: Its last.
            keeps_events: Those of the steps behind it stay, for they will not be taken again but replaced by
                others. Once a record of `step` follows them, no cut at a later one forgets them.
        """
        tokens = 0
        if self._path.exists() and self._writes:
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            records = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
            ends = [i for i, (_, record) in enumerate(records, start=1) if record["step"] <= step]
            kept, later = records[: max(ends, default=0)], records[max(ends, default=0) :]
            tokens = kept[-1][1]["tokens"] if kept else 0
            if keeps_events:
                kept += [it for it in later if it[1]["event"] not in MEASURED]
            files.write_text(self._path, "".join(line for line, _ in kept))
        self._window = _Window()
        self._pace.clear()
        if self._board is not None:
            self._board.go_on_after(tokens)

    def step(self, report: StepReport) -> None:
        """Take in what a step did; write the record of its window if that is over."""
        if not self._pace:  # the time before the first step is not the run's pace
            before = report.batch.clock.tokens - report.batch.num_tokens
            self._pace.append((time.monotonic() - report.seconds, before))
        clock, setting = report.batch.clock, report.batch.setting
        self._window.add(report, self._flops(report) if self._peak else 0)
        if clock.step % self._every_steps == 0 or clock.phase != setting.phase_index:
            self.flush()

    def flush(self) -> None:
        """Write the record of the window in progress: no step that a checkpoint holds may lack its record."""
        window, self._window = self._window, _Window()
        if window.last is None:
            return
        batch = window.last.batch
        self._pace.append((time.monotonic(), batch.clock.tokens))
        record = {
            **_where("step", batch.setting.phase, batch.clock),
            **window.figures(),
            "mfu": window.flops / window.seconds / self._peak if self._peak else None,
            "memory_bytes": runtime.peak_memory(self._device),
            "seconds_left": self._seconds_left(),
        }
        self._write(record)
        self._shown = {**_shown(record), **{k: v for k, v in self._shown.items() if k == "held-out"}}

    def validation(
        self,
        evaluation: Evaluation,
        phase: Phase,
        clock: Clock,
        by_length: Sequence[LengthEvaluation] = (),
        by_source: Mapping[str, Evaluation] | None = None,
    ) -> None:
        """Write what a validation found."""
        self.flush()
        record = {**_where("validation", phase, clock), **config.to_tree(evaluation)}
        if by_source:
            record["by_source"] = [{"source": name, **config.to_tree(it)} for name, it in by_source.items()]
        if by_length:
            record["by_length"] = config.to_tree(by_length)
        self._write(record)
        self._shown["held-out"] = f"{evaluation.loss:.3f}"

    def event(self, kind: str, phase: Phase, clock: Clock, message: str, **facts: Any) -> None:
        """Write that something out of the ordinary happened, such as a step that was skipped."""
        self._write({**_where(kind, phase, clock), "message": message, **facts})

    def shown(self) -> dict[str, str]:
        """Return what the line of progress says beside tokens, rate and time to go."""
        return self._shown

    def close(self) -> None:
        """Write what is left, and let go of the files."""
        self.flush()
        if self._board is not None:
            self._board.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._writes:
            self._lines.write(record)
        if self._board is not None:
            self._board.write(record)

    def _flops(self, report: StepReport) -> int:
        """Count the operations of this process's share of a step: forward once, backward twice as many.

        A teacher goes forward only.
        """
        rows = report.batch.rows
        own = BACKWARD_AND_FORWARD * sum(self._shape.flops(row.layout, row.num_masked) for row in rows)
        if self._teacher is None:
            return own
        return own + sum(self._teacher.flops(row.layout, row.num_masked) for row in rows)

    def _seconds_left(self) -> float | None:
        """Say how long the rest takes at the pace of the last records, validations and saving included."""
        (began, first), (now, tokens) = self._pace[0], self._pace[-1]
        if tokens <= first:
            return None
        return max(self._total_tokens - tokens, 0) * (now - began) / (tokens - first)


class _Window:
    """Sums over the steps of one record."""

    def __init__(self) -> None:
        self.last: StepReport | None = None
        self.steps = self.tokens = self.capacity = self.masked = self.flops = 0
        self.parts: dict[str, float] = {}
        self.loss = self.correct = self.gradient_norm = self.seconds = self.wait_seconds = 0.0

    def add(self, report: StepReport, flops: int) -> None:
        self.last = report
        self.steps += 1
        self.tokens += report.batch.num_tokens
        self.capacity += report.batch.capacity
        self.flops += flops
        self.seconds += report.seconds
        self.wait_seconds += report.wait_seconds
        self.masked += report.num_masked
        self.loss += report.loss * report.num_masked
        self.correct += report.accuracy * report.num_masked
        for name, mean in report.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + mean * report.num_masked
        self.gradient_norm = max(self.gradient_norm, report.gradient_norm)

    def figures(self) -> dict[str, Any]:
        """Means over tokens and steps, and the largest of the gradient norms."""
        assert self.last is not None
        return {
            "steps": self.steps,
            "loss": self.loss / max(self.masked, 1),
            "accuracy": self.correct / max(self.masked, 1),
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.last.batch.setting.learning_rate,
            "batch_tokens": round(self.tokens / self.steps),
            "masked_tokens": self.masked,
            "utilisation": self.tokens / self.capacity,
            "seconds": self.seconds,
            "wait_seconds": self.wait_seconds,
            "tokens_per_second": self.tokens / self.seconds,
            **{name: total / max(self.masked, 1) for name, total in self.parts.items()},
        }


def _where(event: str, phase: Phase, clock: Clock) -> dict[str, Any]:
    return {
        "event": event,
        "step": clock.step,
        "tokens": clock.tokens,
        "phase": phase.name,
        "time": round(time.time(), 3),
    }


def _shown(record: Mapping[str, Any]) -> dict[str, str]:
    """Write a record's figures for people."""
    shown = {
        "phase": record["phase"],
        "loss": f"{record['loss']:.3f}",
        "accuracy": f"{record['accuracy']:.1%}",
        "lr": f"{record['learning_rate']:.2g}",
        "batch": telemetry.human(record["batch_tokens"]),
        "packed": f"{record['utilisation']:.1%}",
        "wait": f"{record['wait_seconds'] / record['seconds']:.1%}",
    }
    if record["mfu"] is not None:
        shown["MFU"] = f"{record['mfu']:.1%}"
    if record["memory_bytes"] is not None:
        shown["memory"] = f"{telemetry.human(record['memory_bytes'])}B"
    return shown


def _peak_flops(settings: LogSettings, device: torch.device, precision: Precision) -> float | None:
    """Return the operations a second that a MFU of 1 stands for; None where that is not known."""
    peak = settings.peak_tflops
    if peak is None and device.type == "cuda" and runtime.uses_bf16(device, precision):
        peak = runtime.peak_tflops(torch.cuda.get_device_name(device))
    return None if peak is None else peak * 1e12
