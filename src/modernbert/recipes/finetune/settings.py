"""The schema of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modernbert import config
from modernbert.data.columns import Columns
from modernbert.data.text_records import Problem
from modernbert.errors import ConfigError
from modernbert.model.adapters import AdapterSettings
from modernbert.recipes.tuning.settings import TuningRun, require

TaskName = Literal["classify", "tag", "answer", "choose", "prompt"]

TAKEN_BY: Mapping[str, tuple[TaskName, ...]] = {
    "data.label_separator": ("classify",),
    "data.stride": ("tag", "answer"),
    "data.columns.text": ("classify", "tag", "prompt"),
    "data.columns.text_pair": ("classify", "prompt"),
    "data.columns.label": ("classify", "choose", "prompt"),
    "data.columns.words": ("tag",),
    "data.columns.tags": ("tag",),
    "data.columns.spans": ("tag",),
    "data.columns.question": ("answer", "choose"),
    "data.columns.context": ("answer", "choose"),
    "data.columns.answers": ("answer",),
    "data.columns.choices": ("choose",),
    "data.columns.id": ("classify", "answer", "prompt"),
    "head.problem": ("classify",),
    "head.pooling": ("classify", "choose"),
    "head.dropout": ("classify", "tag", "answer", "choose"),
    "head.label_smoothing": ("classify", "tag"),
    "head.class_weights": ("classify", "tag"),
    "head.template": ("prompt",),
    "head.words": ("prompt",),
}
"""The settings that not every task has a use for; the others refuse them."""


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Which examples.

    Attributes:
        train: File to learn from.
        validation: File by which the best checkpoint is chosen; None: a part of `train`.
        test: File that is looked at once, at the end.
        held_out: Share of `train` that becomes the validation where there is no file for it; 0: there is
            none, and the last checkpoint is the best.
        fold: Which part of `train` that is, if it is cut into `folds` parts of one size; null: a random
            share.
        folds: Into how many parts `train` is cut.
        columns: Which column is what; those that are not given are guessed by their names.
        label_separator: What stands between the labels of a text in one cell, for several labels at once.
        max_length: Tokens beyond which texts are cut, or documents read by windows; None: what the model
            takes.
        stride: Tokens that the windows of a long document share.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    held_out: float = 0.1
    fold: int | None = None
    folds: int | None = None
    columns: Columns = field(default_factory=Columns)
    label_separator: str | None = None
    max_length: int | None = None
    stride: int = 128

    def __post_init__(self) -> None:
        require("held_out", self.held_out, 0 <= self.held_out < 1, "at least 0 and below 1")
        require("max_length", self.max_length, self.max_length is None or self.max_length >= 8, "at least 8")
        require("stride", self.stride, self.stride >= 0, "at least 0")
        require("folds", self.folds, self.folds is None or self.folds >= 2, "at least 2, or null")
        has_fold = self.fold is None if self.folds is None else self.fold is not None
        in_range = self.fold is None or 0 <= self.fold < (self.folds or 0)
        require("fold", self.fold, has_fold and in_range, f"from 0 to below `folds`, {self.folds}")
        require("folds", self.folds, not (self.folds and self.validation), "null beside a `validation`")
        if self.validation is not None:
            is_idle = self.held_out in (0, LabelledData.held_out)
            require("held_out", self.held_out, is_idle, "left out beside a `validation`")

    @property
    def has_validation(self) -> bool:
        """Whether there is something by which checkpoints can be compared."""
        return self.validation is not None or self.folds is not None or self.held_out > 0


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What the head is, and how its loss counts.

    Attributes:
        problem: Of `classify`: one label, several at once, or numbers; None: as the labels look.
        pooling: The vector that stands for a sequence.
        dropout: Before the classifier, in training.
        label_smoothing: Share of the target that is spread over all labels.
        class_weights: By what the examples of each label count, in the order of the labels; `balanced`: by
            the inverse of how frequent the label is; null: all alike.
        template: Of `prompt`: what is completed: `{text}`, of pairs also `{text_pair}`, and once `[MASK]`.
        words: Of `prompt`: the word, one token after a space, that stands for each label; a label without one
            stands for itself.
    """

    problem: Problem | None = None
    pooling: Literal["cls", "mean"] = "mean"
    dropout: float = 0.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    template: str = "{text} {text_pair} Answer: [MASK]"
    words: dict[str, str] | None = None

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        require("label_smoothing", smoothing, 0 <= smoothing < 1, "at least 0 and below 1")
        if isinstance(self.class_weights, tuple):
            require(
                "class_weights", list(self.class_weights), min(self.class_weights, default=1) > 0, "above 0"
            )


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """Several runs in place of one; the best of them gives the model.

    Attributes:
        seeds: So many, from the run's on, each with every other choice.
        folds: Cut `data.train` into so many parts, each of which is held out once; 0: they are not.
        search: Values to try, all with all, by the dotted name of the setting: `tuning.learning_rate`.
    """

    seeds: int = 1
    folds: int = 0
    search: dict[str, tuple[bool | int | float | str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require("seeds", self.seeds, self.seeds >= 1, "at least 1")
        require("folds", self.folds, self.folds == 0 or self.folds >= 2, "at least 2, or 0")
        for name, values in self.search.items():
            require(f"search.{name}", list(values), len(values) > 0, "at least one value")


@dataclass(frozen=True, kw_only=True)
class FinetuneRun(TuningRun):
    """One fine-tuning run from a checkpoint to a model for a task; a head of the same kind and size is kept.

    Attributes:
        task: What the model is for.
        data: Which examples.
        head: The head, and its loss.
        trials: Several runs in place of one.
        adapter: Learn low-rank changes in place of all weights; null: all weights.
    """

    task: TaskName
    data: LabelledData
    head: HeadSettings = field(default_factory=HeadSettings)
    trials: TrialSettings = field(default_factory=TrialSettings)
    adapter: AdapterSettings | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_uses()

    def _check_uses(self) -> None:
        """Refuse what would be without effect."""
        for name, tasks in TAKEN_BY.items():
            *path, key = name.split(".")
            owner: Any = self
            for part in path:
                owner = getattr(owner, part)
            if self.task not in tasks and getattr(owner, key) != getattr(type(owner), key):
                raise ConfigError(
                    f"`{name}` is {getattr(owner, key)!r}; `{self.task}` has no use for it, only "
                    f"{' and '.join(f'`{task}`' for task in tasks)}; leave it out"
                )
        self.selection.check_against(has_validation=self.data.has_validation)
        if self.adapter is not None and self.task != "prompt" and "classifier" not in self.adapter.trained:
            raise ConfigError(
                f"`adapter.trained` is {list(self.adapter.trained)}; it must have `classifier`, which is "
                "new to the model; add it"
            )
        for key in ("frozen_layers", "new_layers"):
            count = getattr(self.tuning, key)
            rule = "0 with an `adapter`, which leaves all layers as they are"
            require(f"tuning.{key}", count, self.adapter is None or count == 0, rule)


def read_run(path: Path | None, given: Mapping[str, Any], overrides: Iterable[str] = ()) -> FinetuneRun:
    """Read a run file, if there is one; what is given besides, and `a.b=c` overrides, count before it.

    Raises:
        ConfigError: The file is missing, or a setting is unknown, missing or does not fit.
    """
    tree = {} if path is None else config.load(path)
    for key, value in given.items():
        inner = tree.get(key)
        tree[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    return config.build(FinetuneRun, config.override(tree, overrides))
