"""Carries out a benchmark: fine-tunes run by run, scores each as published, collects what was found.

A run that is finished is not repeated: the same benchmark in the same folder goes on where it was stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from modernbert import config, files, telemetry
from modernbert.errors import ConfigError, ModernBertError, did_you_mean
from modernbert.evaluate import finetuned, normalised
from modernbert.evaluate.collected import Finished, Outcome, Scores
from modernbert.evaluate.finetuned import AUTO, NONE, SEEDS, EvaluationRun, Planned
from modernbert.evaluate.glue import GLUE, MNLI
from modernbert.evaluate.normalised import Prepared
from modernbert.evaluate.scores import METRICS, Answers
from modernbert.evaluate.suites import DEV, TRAIN, Example, SuiteTask

RESULT, CHECKPOINTS = "result.json", "checkpoints"
SPLITS = ("train", "validation", "test")
"""What fine-tuning calls them."""


class Result(Protocol):
    """What fine-tuning gives back."""

    @property
    def model(self) -> Path | None:
        """Folder of the best model; None if the run was stopped."""

    @property
    def figures(self) -> Mapping[str, Mapping[str, float]]:
        """Metrics by split, `validation` and `test`."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    @property
    def stopped_by(self) -> str | None:
        """The signal that ended it early; None: nothing did."""


class Stopped(ModernBertError):
    """A signal has ended a benchmark before its end."""


Finetune = Callable[[dict[str, Any]], Result]
"""Fine-tunes as a tree of settings says."""
Predict = Callable[[SuiteTask, Path, Sequence[Example]], Sequence[Any]]
"""Gives a model's label, number or choice for each example."""


def evaluate(run: EvaluationRun, *, finetune: Finetune, predict: Predict) -> Outcome:
    """Fine-tune and score a model on the tasks of a benchmark; what was finished before is read back.

    Args:
        run: Which tasks, and how.
        finetune: Called for each run that is not finished.
        predict: Called for what it made, to score it as published; not for tags, which it scores itself.

    Raises:
        ConfigError: A named task has no data, the folder is in use or holds results of other settings, or
            there are several processes.
        InputError: Data that cannot be read.
        CheckpointError: There is no such model.
        StorageError: The disk is full or not writable.
        Stopped: A signal ended a run early; the same call goes on.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ConfigError(f"a benchmark was started in {processes} processes; it must be one; start it alone")
    with files.hold(Path(run.folder), f"`{run.folder}` is in use by another process; choose another folder"):
        return _Evaluation(run, finetune, predict).carry_out()


def score(task: SuiteTask, examples: Sequence[Example], predicted: Sequence[Any]) -> dict[str, float]:
    """Score predictions by the metrics of a task, as published."""
    answers = Answers(
        right=[example["label"] for example in examples],
        predicted=predicted,
        labels=task.labels,
        groups=[example.get("group") for example in examples],
    )
    return {metric: METRICS[metric](answers) for metric in task.metrics}


class _Evaluation:
    """A benchmark that is being carried out."""

    def __init__(self, run: EvaluationRun, finetune: Finetune, predict: Predict) -> None:
        self._run, self._finetune, self._predict = run, finetune, predict
        self._suite = run.suite_of_tasks
        self._folder = Path(run.folder)
        self._notes = [self._suite.note]
        self._finished: dict[str, Finished] = {}
        self._prepared: dict[str, Prepared] = {}

    def carry_out(self) -> Outcome:
        run = self._run
        tasks = self._with_data()
        shape = finetuned.read_shape(run.model)
        size = run.values if run.values != "auto" else finetuned.nearest_size(shape)
        planned = finetuned.plan(run, tasks, size, tunes_mnli=self._tunes_mnli(tasks))
        for name in dict.fromkeys(it.task.name for it in planned):
            self._prepare(self._suite.tasks[name])
        for number, it in enumerate(planned, start=1):
            self._finished[it.name] = self._carry_out(it, f"{self._suite.title} {number}/{len(planned)}")
        return Outcome(
            suite=self._suite.name,
            model=run.model,
            parameters=shape.num_parameters(),
            size=size,
            tasks=tuple(task.name for task in tasks),
            examples={name: dict(data.counts) for name, data in self._prepared.items()},
            sources={name: data.source for name, data in self._prepared.items()},
            finished=tuple(self._finished.values()),
            notes=tuple(self._notes),
            limit=run.limit,
        )

    def _with_data(self) -> tuple[SuiteTask, ...]:
        """Return the wanted tasks that have data; the others are noted, or refused if they were named."""
        tasks = []
        for task in self._suite.choose(self._run.tasks):
            lack = normalised.missing(self._run.data, task)
            if lack is None:
                tasks.append(task)
            elif self._run.tasks is not None:
                raise ConfigError(f"{task.title}: {lack}; add the data, or leave it out of `tasks`")
            else:
                self._note(f"{task.title} left out: {lack}")
        if not tasks:
            raise ConfigError(f"`{self._run.data}` has data of no task of {self._suite.title}; give another")
        return tuple(tasks)

    def _tunes_mnli(self, tasks: Iterable[SuiteTask]) -> bool:
        """Whether a model is fine-tuned on MNLI for others to start from."""
        starting = [task.title for task in tasks if task.from_mnli]
        if not starting or self._run.mnli != AUTO:
            return False
        lack = normalised.missing(self._run.data, GLUE.tasks[MNLI])
        if lack is not None:
            self._note(
                f"MNLI: {lack}; {', '.join(starting)} start from the model itself, not from MNLI as published"
            )
        return lack is None

    def _prepare(self, task: SuiteTask) -> None:
        folder = self._folder / "data" / task.name
        found = normalised.prepare(self._run.data, task, folder, limit=self._run.limit)
        self._prepared[task.name] = found
        for note in found.notes:
            self._note(note)

    def _carry_out(self, planned: Planned, title: str) -> Finished:
        """Fine-tune and score, unless that was done before."""
        data = self._prepared[planned.task.name]
        start, model = self._start(planned)
        tree = finetuned.settings_of(self._run, planned, data, model)
        of_place = ("folder", "model", "data")
        settings = {key: value for key, value in tree.items() if key not in of_place}
        reading = {key: value for key, value in tree["data"].items() if key not in SPLITS}
        lasting = {**settings, "start": start, "digest": data.digest, "data": reading}
        file = self._folder / "runs" / planned.name / RESULT
        if file.is_file():
            telemetry.note(f"{title}: {planned.name} is done already")
            return _read_back(file, lasting)
        telemetry.note(f"{title}: {planned.name}, from {start}")
        result = self._finetune(tree)
        if result.model is None:
            raise Stopped(f"stopped by {result.stopped_by} in {planned.name}; the same command goes on")
        done = Finished(
            name=planned.name,
            task=planned.task.name,
            values=planned.values,
            seed=planned.seed,
            start=start,
            from_mnli=planned.task.from_mnli and start != self._run.model,
            scores=self._scores(planned.task, data, result.model, result.figures),
            model=self._placed(result.model),
            seconds=result.seconds,
            figures={split: dict(found) for split, found in result.figures.items()},
            settings=lasting,
        )
        files.write_json(file, config.to_tree(done))
        self._tidy(done)
        return done

    def _start(self, planned: Planned) -> tuple[str, str]:
        """Return the lasting name of what a run starts from, and where that is."""
        run = self._run
        if planned.starts_from_mnli:
            # Of the first seed, so that seeds that are added later change nothing.
            first = [it for it in self._finished.values() if it.task == MNLI and it.seed == SEEDS[0]]
            best = max(first, key=lambda it: it.selected_by)
            return best.name, str(self._folder / best.model)
        if planned.task.from_mnli and run.mnli not in (AUTO, NONE):
            return run.mnli, run.mnli
        return run.model, run.model

    def _scores(
        self, task: SuiteTask, data: Prepared, model: Path, figures: Scores
    ) -> dict[str, dict[str, float]]:
        if task.kind == "tag":
            splits = {DEV: "validation", task.scored_on: "test"}
            return {split: _chosen(task, figures, name) for split, name in splits.items()}
        scores = {}
        for split, path in data.files.items():
            if split != TRAIN:
                examples = normalised.read_examples(path)
                scores[split] = score(task, examples, self._predict(task, model, examples))
        return scores

    def _tidy(self, done: Finished) -> None:
        """Remove what a finished run leaves to go on with, and the models of all but a task's best run.

        What MNLI hands on is of the first seed, whose runs are compared among themselves.
        """
        shutil.rmtree(self._folder / "runs" / done.name / CHECKPOINTS, ignore_errors=True)
        if self._run.keep == "all":
            return
        rivals = [
            it
            for it in (*self._finished.values(), done)
            if it.task == done.task and (it.task != MNLI or (it.seed == SEEDS[0]) == (done.seed == SEEDS[0]))
        ]
        best = max(rivals, key=lambda it: it.selected_by)
        for it in rivals:
            if it is not best and not Path(it.model).is_absolute():
                shutil.rmtree(self._folder / it.model, ignore_errors=True)

    def _placed(self, model: Path) -> str:
        """Return a path as it is seen from the benchmark's folder, absolute if it lies elsewhere."""
        whole, folder = model.resolve(), self._folder.resolve()
        return str(whole.relative_to(folder)) if folder in whole.parents else str(whole)

    def _note(self, text: str) -> None:
        self._notes.append(text)
        telemetry.note(text)


def _chosen(task: SuiteTask, figures: Scores, split: str) -> dict[str, float]:
    """Pick a task's metrics from what fine-tuning measured."""
    found = figures.get(split, {})
    for metric in task.metrics:
        if metric not in found:
            raise ConfigError(f"fine-tuning gave no `{metric}` of {split}{did_you_mean(metric, found)}")
    return {metric: found[metric] for metric in task.metrics}


def _read_back(file: Path, settings: Mapping[str, Any]) -> Finished:
    """Read a finished run, which must have been made with the same settings.

    Raises:
        ConfigError: It was not.
    """
    stored = Finished.from_json(files.read_json(file))
    if changed := config.differences(stored.settings, settings):
        raise ConfigError(
            f"`{file.parent}` was made with other settings: {'; '.join(changed)}; set them back, remove that "
            "folder, or choose another `folder`"
        )
    return stored
