"""`metrics.jsonl`: what a run measured, a record a step and a validation, and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from modernbert import config, files, telemetry
from modernbert.errors import BackendError
from modernbert.train.loop import Evaluation, StepReport
from modernbert.train.schedule import Clock, Phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunMetrics:
    """Writes the records of one run.

    Args:
        path: The file; it is made at the first record.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = telemetry.JsonLines(path)

    def cut(self, step: int) -> None:
        """Forget what was written after `step`: those steps will be taken again."""
        if self._path.exists():
            records = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in records if line.endswith("\n") and json.loads(line)["step"] <= step]
            files.write_text(self._path, "".join(kept))

    def step(self, report: StepReport) -> None:
        """Write what a step did."""
        batch = report.batch
        self._lines.write(
            {
                "event": "step",
                "step": batch.clock.step,
                "tokens": batch.clock.tokens,
                "phase": batch.setting.phase.name,
                "loss": report.loss,
                "accuracy": report.accuracy,
                "gradient_norm": report.gradient_norm,
                "learning_rate": batch.setting.learning_rate,
                "batch_tokens": batch.num_tokens,
                "masked_tokens": report.num_masked,
                "utilisation": batch.num_tokens / batch.capacity,
                "seconds": report.seconds,
                "wait_seconds": report.wait_seconds,
                "tokens_per_second": batch.num_tokens / report.seconds,
            }
        )

    def validation(self, evaluation: Evaluation, phase: Phase, clock: Clock) -> None:
        """Write what a validation found."""
        self._lines.write(
            {
                "event": "validation",
                "step": clock.step,
                "tokens": clock.tokens,
                "phase": phase.name,
                **config.to_tree(evaluation),
            }
        )


def draw_curve(metrics: Path, picture: Path) -> None:
    """Draw training and held-out loss against tokens, the phases marked, as a PNG.

    Raises:
        BackendError: matplotlib is not installed.
    """
    figure = _new_figure()
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    held_out = [record for record in records if record["event"] == "validation"]
    axes = figure.add_subplot()
    tokens, losses = [record["tokens"] for record in steps], [record["loss"] for record in steps]
    axes.plot(tokens, losses, color="0.75", linewidth=0.8)
    axes.plot(tokens, _smooth(losses), color="tab:blue", label="training (smoothed)")
    if held_out:
        points = ([record["tokens"] for record in held_out], [record["loss"] for record in held_out])
        axes.plot(*points, "o-", color="tab:orange", label="held out")
    for name, first in {record["phase"]: record["tokens"] for record in reversed(steps)}.items():
        axes.axvline(first, color="0.4", linestyle=":", linewidth=1)
        axes.annotate(f" {name}", (first, 1), xycoords=("data", "axes fraction"), va="top", fontsize=9)
    axes.set(xlabel="tokens", ylabel="masked-token loss (nats)")
    axes.legend(loc="lower left", frameon=False)
    with files.atomic_file(picture) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def check_drawing() -> None:
    """Make sure, before a long run, that its curve can be drawn after it.

    Raises:
        BackendError: matplotlib is not installed.
    """
    _new_figure()


def _new_figure() -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BackendError(
            "drawing the loss curve needs matplotlib, which is not installed; "
            "run `pip install 'modernbert[train]'`"
        ) from None
    return Figure(figsize=(8, 4.5), layout="constrained")


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Return the exponential moving average, unbiased at its start."""
    smoothed: list[float] = []
    total = share = 0.0
    for value in values:
        total, share = weight * total + (1 - weight) * value, weight * share + (1 - weight)
        smoothed.append(total / share)
    return smoothed
