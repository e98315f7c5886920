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
from modernbert.runtime import Precision
from modernbert.train.parallel import DistributionSettings
from modernbert.train.supervised import TuningSettings

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
        _require("held_out", self.held_out, 0 <= self.held_out < 1, "at least 0 and below 1")
        _require("max_length", self.max_length, self.max_length is None or self.max_length >= 8, "at least 8")
        _require("stride", self.stride, self.stride >= 0, "at least 0")
        _require("folds", self.folds, self.folds is None or self.folds >= 2, "at least 2, or null")
        has_fold = self.fold is None if self.folds is None else self.fold is not None
        in_range = self.fold is None or 0 <= self.fold < (self.folds or 0)
        _require("fold", self.fold, has_fold and in_range, f"from 0 to below `folds`, {self.folds}")
        _require("folds", self.folds, not (self.folds and self.validation), "null beside a `validation`")
        if self.validation is not None:
            is_idle = self.held_out in (0, LabelledData.held_out)
            _require("held_out", self.held_out, is_idle, "left out beside a `validation`")

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
        _require("label_smoothing", smoothing, 0 <= smoothing < 1, "at least 0 and below 1")
        if isinstance(self.class_weights, tuple):
            _require(
                "class_weights", list(self.class_weights), min(self.class_weights, default=1) > 0, "above 0"
            )


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """When the validation is looked at, and which checkpoint is taken.

    Attributes:
        times_an_epoch: How often it is looked at; each time a checkpoint is saved.
        metric: By which the best is chosen; null: the task's own.
        patience: The run ends once so many looks in a row brought nothing better; null: it goes to its end.
    """

    times_an_epoch: int = 1
    metric: str | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        _require("times_an_epoch", self.times_an_epoch, self.times_an_epoch >= 1, "at least 1")
        _require(
            "patience", self.patience, self.patience is None or self.patience >= 1, "at least 1, or null"
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
        _require("seeds", self.seeds, self.seeds >= 1, "at least 1")
        _require("folds", self.folds, self.folds == 0 or self.folds >= 2, "at least 2, or 0")
        for name, values in self.search.items():
            _require(f"search.{name}", list(values), len(values) > 0, "at least one value")


@dataclass(frozen=True, kw_only=True)
class FinetuneRun:
    """One fine-tuning run from a checkpoint to a model for a task.

    Attributes:
        folder: Where everything of the run goes.
        task: What the model is for.
        model: Checkpoint to begin with: folder or hub id. A head of the same kind and size is kept.
        revision: Branch, tag or commit of `model` on the hub.
        data: Which examples.
        tuning: How weights follow them.
        head: The head, and its loss.
        selection: Which checkpoint is taken.
        trials: Several runs in place of one.
        adapter: Learn low-rank changes in place of all weights; null: all weights.
        micro_batch_tokens: Most tokens of one packed row, which is one forward pass.
        seed: Fixes new weights, dropout and the order of the examples.
        device: Where to compute.
        precision: Of forward and backward; weights are always fp32.
        attention: Attention backend.
        compile: Let torch.compile fuse the steps of each layer.
        deterministic: Compute the same bits each time; on a CPU it does in any case.
        distribution: How the run is spread over several processes.
    """

    folder: str
    task: TaskName
    model: str
    data: LabelledData
    revision: str | None = None
    tuning: TuningSettings = field(default_factory=TuningSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    trials: TrialSettings = field(default_factory=TrialSettings)
    adapter: AdapterSettings | None = None
    micro_batch_tokens: int = 16_384
    seed: int = 17
    device: str = "auto"
    precision: Precision = "auto"
    attention: str = "auto"
    compile: bool = False
    deterministic: bool = False
    distribution: DistributionSettings = field(default_factory=DistributionSettings)

    def __post_init__(self) -> None:
        _require("micro_batch_tokens", self.micro_batch_tokens, self.micro_batch_tokens >= 1, "at least 1")
        _require("seed", self.seed, 0 <= self.seed < 1 << 63, "at least 0 and below 2^63")
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
        for key in ("metric", "patience"):
            given, selection = getattr(self.selection, key), self.data.has_validation
            _require(f"selection.{key}", given, given is None or selection, "null where nothing is held out")
        if self.adapter is not None and self.task != "prompt" and "classifier" not in self.adapter.trained:
            raise ConfigError(
                f"`adapter.trained` is {list(self.adapter.trained)}; it must have `classifier`, which is "
                "new to the model; add it"
            )
        for key in ("frozen_layers", "new_layers"):
            count = getattr(self.tuning, key)
            rule = "0 with an `adapter`, which leaves all layers as they are"
            _require(f"tuning.{key}", count, self.adapter is None or count == 0, rule)


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


def _require(key: str, value: object, is_right: bool, rule: str) -> None:
    if not is_right:
        raise ConfigError(f"`{key}` is {value!r}; it must be {rule}")
