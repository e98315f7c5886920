"""The tour: the whole recipe on one machine in minutes, on text that every Python brings along."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from modernbert.infer.fill_mask import Fills, describe
from modernbert.infer.loading import load
from modernbert.recipes import tour_text
from modernbert.recipes.drawing import check_drawing
from modernbert.recipes.pretrain import PretrainResult, pretrain
from modernbert.recipes.report import write_report
from modernbert.recipes.settings import PretrainRun, read_run

TEXTS = (
    "The method returns [MASK] if the file does not exist.",
    "Raises a ValueError [MASK] the argument is not an integer.",
    "The class is [MASK] in version 3.2 of Python.",
    "Return a new [MASK] of the same type.",
)


@dataclass(frozen=True)
class TourResult:
    """What the tour leaves behind.

    Attributes:
        run: Its settings.
        training: How the training ended.
        fills: Proposals for each of `TEXTS`; empty if the training was stopped.
        report: The page with its curves; None if the training was stopped.
    """

    run: PretrainRun
    training: PretrainResult
    fills: list[Fills]
    report: Path | None

    def summary(self) -> str:
        """Say what came out, and what to try next."""
        if self.report is None:
            return self.training.summary()
        model = self.training.model
        return "\n".join(
            [
                *(describe(text, fills) + "\n" for text, fills in zip(TEXTS, self.fills, strict=True)),
                self.training.summary(),
                f"its curves are drawn in {self.report}",
                "",
                "Next:",
                f'  modernbert fill-mask "Return the [MASK] of the list." -m {model}',
                "  modernbert tour --folder longer phases.0.tokens=10e6   # a better model",
                "  modernbert pretrain RUN.yaml --dry-run   # your own text: see the guide on pretraining",
            ]
        )


def tour(folder: Path, overrides: Iterable[str] = ()) -> TourResult:
    """Gather text, train a tokenizer and a tiny encoder through three phases, and fill masks with it.

    Args:
        folder: Where everything goes; a tour that was stopped goes on.
        overrides: `a.b=c` changes of the tour's run file.

    Raises:
        ModernBertError: As `pretrain` does.
    """
    check_drawing()
    text = tour_text.write_text(folder / "text")
    with as_file(files("modernbert.recipes") / "tour.yaml") as path:
        paths = {"folder": folder, "data.sources.0.path": text}
        # As JSON, lest YAML takes the name of a folder for a number.
        named = [f"{key}={json.dumps(str(value), ensure_ascii=False)}" for key, value in paths.items()]
        run = read_run(path, [*named, *overrides])
    training, folder = pretrain(run), Path(run.folder)
    if training.model is None:
        return TourResult(run, training, [], None)
    report, _ = write_report([folder])
    encoder = load(training.model, device=run.device, dtype=run.precision)
    return TourResult(run, training, encoder.fill_mask(TEXTS, top_k=3), report)
