"""What one evaluation found: figures with intervals, and everything that the report shows of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modernbert import config, files
from modernbert.errors import ConfigError, InputError
from modernbert.recipes.finetune.calibration import Bin
from modernbert.recipes.finetune.intervals import Interval, Spread
from modernbert.recipes.finetune.metrics import PRIMARY, Problem

FOLDER = "findings"
"""In a run's folder: `findings/validation.json` and so on, one a split."""


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """What was found of one label, or of one type of entity.

    Attributes:
        label: Its name.
        support: Examples, or entities, that have it.
        predicted: To how many it was given.
        precision: Share of those that have it.
        recall: Share of its own to which it was given.
        f1: Of both.
        threshold: The probability from which on to give it, found on validation; None: there is none.
    """

    label: str
    support: int
    predicted: int
    precision: float
    recall: float
    f1: float
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class HardExample:
    """An example that the model got wrong, or nearly so.

    Attributes:
        place: Where it is: a file and its line.
        text: Shortened.
        gold: What is right, in words.
        predicted: What the model said, in words.
        loss: Its loss.
    """

    place: str
    text: str
    gold: str
    predicted: str
    loss: float


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything of one evaluated split.

    Attributes:
        problem: Kind of the figures, a key of `metrics.PRIMARY`.
        split: Its name, such as `validation`.
        num_examples: How many were evaluated.
        figures: By name; as `metrics` gives them.
        intervals: Of the figures that have one, 95%.
        spread: Of the figures over several seeds, where there were some.
        labels: Names of rows and columns of `confusion`.
        confusion: Examples by the right label (row) and the predicted one (column); for tags, words by type
            of entity; empty where it does not apply.
        reliability: Predictions by their confidence; empty where there is none.
        temperature: To divide the logits by, fitted on validation; None if none was fitted.
        per_label: Empty where there are no labels.
        hardest: The examples of the largest loss, the hardest first.
    """

    problem: Problem
    split: str
    num_examples: int
    figures: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    spread: dict[str, Spread] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    reliability: tuple[Bin, ...] = ()
    temperature: float | None = None
    per_label: tuple[LabelRow, ...] = ()
    hardest: tuple[HardExample, ...] = ()

    @property
    def primary(self) -> str:
        """Name of the figure that counts."""
        return PRIMARY[self.problem]

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Findings:
        """Make it of what `to_json` gave.

        Raises:
            ConfigError: An unknown, missing or ill-typed key.
        """
        return config.build(cls, tree)

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return dict(config.to_tree(self))


def write_findings(folder: Path, findings: Findings) -> Path:
    """Write what was found of a split into a run's folder; return the file.

    Raises:
        StorageError: The disk is full or not writable.
    """
    path = folder / FOLDER / f"{findings.split}.json"
    files.write_json(path, findings.to_json())
    return path


def read_findings(folder: Path) -> tuple[Findings, ...]:
    """Read what was found of each split of a run: a test set first, if there is one.

    Raises:
        InputError: There is none, or a file that holds something else.
    """
    found = [_read(path) for path in sorted((folder / FOLDER).glob("*.json"))]
    if not found:
        raise InputError(
            f"`{folder}` holds no findings (`{FOLDER}/validation.json`); there must be some to report; give "
            "the folder of a run that has evaluated its model"
        )
    return tuple(sorted(found, key=lambda one: (one.split != "test", one.split)))


def _read(path: Path) -> Findings:
    tree = files.read_json(path)
    try:
        return Findings.from_json(tree)
    except (ConfigError, TypeError) as error:
        raise InputError(f"`{path}` does not hold findings: {error}; remove it, and evaluate again") from None
