"""A benchmark as a run: which tasks a model is fine-tuned on, with what values, in which order.

RTE, MRPC and STS-B start from a model that was fine-tuned on MNLI before, as the paper's did (App. E.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from modernbert import config, hub
from modernbert.errors import ConfigError, did_you_mean
from modernbert.evaluate.glue import GLUE, MNLI
from modernbert.evaluate.ner import NER
from modernbert.evaluate.normalised import Prepared
from modernbert.evaluate.suites import DEV, TRAIN, Size, Suite, SuiteTask, Values
from modernbert.evaluate.superglue import SUPERGLUE
from modernbert.model import checkpoint
from modernbert.model.config import EncoderConfig

SUITES: Mapping[str, Suite] = {suite.name: suite for suite in (GLUE, SUPERGLUE, NER)}
SEEDS = (1618, 42, 6033, 3145)
"""Those of the authors; a fifth and more are 1, 2 …"""
WARMUP = 0.1
PATIENCE = 3
"""Looks at dev, one an epoch, that may bring nothing better before a run is stopped early. All published runs
were stopped so; how patiently is not published."""
SIZES: Mapping[Size, float] = {"base": 149e6, "large": 395e6}

AUTO, NONE = "auto", "none"

Setting = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """A benchmark of one model.

    Attributes:
        suite: `glue`, `superglue` or `ner`.
        model: Folder or hub id of what is fine-tuned.
        data: A folder with a folder a task, or `hub`.
        folder: Gets data, models and results; the same run in the same folder goes on.
        tasks: Their names; None: all of the suite that count in its mean and whose data are there.
        seeds: How many, beginning with those of the authors.
        grid: Whether the published grid is swept, and the best on dev taken.
        values: Of which size the best values are taken, where `best` has none: `base` or `large`; `auto`:
            of the nearest.
        best: Values by the task's name.
        mnli: What RTE, MRPC and STS-B start from: a model fine-tuned on MNLI, `none` for `model` itself, or
            `auto`: fine-tune one first, if the data are there.
        limit: So many rows of each split, the first, to try things out; None: all.
        keep: Which models stay: `best` of each task, or `all`.
        finetune: More settings of each fine-tuning, which count before the suite's: `tuning.batch_size`,
            `data.max_length` …

    Raises:
        ConfigError: An unknown task, a number out of range, or one that each has its own of.
    """

    suite: Literal["glue", "superglue", "ner"]
    model: str
    data: str
    folder: str
    tasks: tuple[str, ...] | None = None
    seeds: int = 1
    grid: bool = False
    values: Literal["auto", "base", "large"] = "auto"
    best: dict[str, Values] = field(default_factory=dict)
    mnli: str = AUTO
    limit: int | None = None
    keep: Literal["best", "all"] = "best"
    finetune: dict[str, Setting | dict[str, Setting]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("seeds", "limit"):
            number = getattr(self, key)
            if number is not None and number < 1:
                raise ConfigError(f"`{key}` is {number}; it must be at least 1")
        self.suite_of_tasks.choose(self.tasks)
        known = self.suite_of_tasks.tasks
        for name in self.best:
            if name not in known:
                raise ConfigError(f"`best.{name}` names no task of {self.suite}{did_you_mean(name, known)}")
        self._check_finetune()

    def _check_finetune(self) -> None:
        tuning = self.finetune.get("tuning")
        for value in fields(Values):
            if isinstance(tuning, dict) and value.name in tuning:
                raise ConfigError(
                    f"`finetune.tuning.{value.name}` is set for all tasks; it must be each task's own; set "
                    f"`best.TASK.{value.name}`"
                )
        for key in ("folder", "task", "model", "seed", "trials"):
            if key in self.finetune:
                raise ConfigError(f"`finetune.{key}` is set for all runs; each has its own; leave it out")

    @property
    def suite_of_tasks(self) -> Suite:
        return SUITES[self.suite]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One fine-tuning.

    Attributes:
        starts_from_mnli: Whether it starts from the model that was fine-tuned on MNLI in this benchmark.
    """

    task: SuiteTask
    values: Values
    seed: int
    starts_from_mnli: bool = False

    @property
    def name(self) -> str:
        """Its folder below `runs`."""
        return f"{self.task.name}/{self.values.name}-seed{self.seed}"


def plan(run: EvaluationRun, tasks: Iterable[SuiteTask], size: Size, *, tunes_mnli: bool) -> list[Planned]:
    """List what is to be fine-tuned, in order: MNLI first, if it is to be tuned for others to start from.

    Args:
        run: The benchmark.
        tasks: Those that are wanted and have data.
        size: Whose best values are taken.
        tunes_mnli: Whether RTE, MRPC and STS-B start from a model that is made here. Then MNLI is tuned even
            if it is not among `tasks`, with the first seed alone.
    """
    planned = []
    wanted = [*tasks]
    if tunes_mnli and all(task.name != MNLI for task in wanted):
        mnli = GLUE.tasks[MNLI]
        planned += [Planned(task=mnli, values=it, seed=SEEDS[0]) for it in _values(run, mnli, size)]
    for task in sorted(wanted, key=lambda task: not (tunes_mnli and task.name == MNLI)):
        planned += [
            Planned(task=task, values=it, seed=seed, starts_from_mnli=tunes_mnli and task.from_mnli)
            for it in _values(run, task, size)
            for seed in _seeds(run.seeds)
        ]
    return planned


def read_shape(model: str) -> EncoderConfig:
    """Return the shape of the model at a folder or hub id.

    Raises:
        CheckpointError: There is no such model.
    """
    return checkpoint.read_config(hub.find(model, patterns=[checkpoint.CONFIG]))


def nearest_size(shape: EncoderConfig) -> Size:
    """Return of which published size a model is, or is nearest to, by its parameters."""
    parameters = math.log(shape.num_parameters())
    return min(SIZES, key=lambda size: abs(math.log(SIZES[size]) - parameters))


def settings_of(run: EvaluationRun, planned: Planned, data: Prepared, model: str) -> dict[str, Any]:
    """Return the tree of settings with which one run is fine-tuned."""
    task, suite = planned.task, run.suite_of_tasks
    tests = [path for split, path in data.files.items() if split not in (TRAIN, DEV)]
    tree = {
        "folder": str(Path(run.folder) / "runs" / planned.name),
        "task": task.kind,
        "model": model,
        "data": {
            "train": str(data.files[TRAIN]),
            "validation": str(data.files[DEV]),
            "test": str(tests[0]) if tests else None,
            "columns": data.columns,
            "max_length": suite.max_length,
        },
        "tuning": {**config.to_tree(planned.values), "batch_size": suite.batch_size, "warmup": WARMUP},
        "selection": {"metric": task.selected_by, "patience": PATIENCE},
        "seed": planned.seed,
    }
    if task.kind == "classify":
        tree["head"] = {"problem": "single_label_classification" if task.labels else "regression"}
    return _merged(tree, run.finetune)


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with changes, each of which goes as deep as it says."""
    merged = dict(tree)
    for key, value in changes.items():
        inner = tree.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def _seeds(count: int) -> tuple[int, ...]:
    return (*SEEDS[:count], *range(1, count - len(SEEDS) + 1))


def _values(run: EvaluationRun, task: SuiteTask, size: Size) -> Iterator[Values]:
    if run.grid:
        return run.suite_of_tasks.grid(task)
    return iter([run.best.get(task.name, task.values[size])])
