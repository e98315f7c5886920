"""A fine-tuning run: what `recipes.tuning` carries on, with labelled examples, and a report at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import InputError
from modernbert.infer.runner import TorchRunner
from modernbert.model.adapter_files import save_adapter
from modernbert.model.adapters import add_adapter, is_adapted
from modernbert.model.checkpoint import Pretrained
from modernbert.recipes.finetune.data import log_remarks, open_texts, read_splits
from modernbert.recipes.finetune.evaluated import Sampling
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.outcome import write_outcome
from modernbert.recipes.finetune.settings import FinetuneRun
from modernbert.recipes.finetune.start import check_packages
from modernbert.recipes.finetune.task import QUICK, TEST, TRAIN, VALIDATION, WHOLE, TuningTask
from modernbert.recipes.finetune.tasks import TASKS
from modernbert.recipes.tuning.session import (
    TuningResult,
    TuningSession,
    Workplace,
    carry_out,
    carry_out_on,
    choose_metric,
)
from modernbert.recipes.tuning.start import begin
from modernbert.train.examples import Example, ExampleStep, digest, example_steps
from modernbert.train.ranks import Ranks


def finetune(run: FinetuneRun) -> TuningResult:
    """Fine-tune a checkpoint for a task.

    The folder gets `run.yaml`, `metrics.jsonl`, `checkpoints/` and, at the end, `model/`, `report.html` and
    `report.json`. Ctrl-C and SIGTERM save a checkpoint and end the run; the same call goes on.
    In each process that `torchrun` started, it carries its part of the run.

    Raises:
        ConfigError: The folder holds a run with other settings, or settings do not fit each other.
        InputError: The examples cannot be used.
        CheckpointError: The model cannot be found or is damaged.
        DivergenceError: The loss is not finite.
        BackendError: There is no such device here, its memory is too small, or a package is missing.
        StorageError: The disk is full or not writable.
    """
    return carry_out(run, partial(_Session, run))


def finetune_on(run: FinetuneRun, ranks: Ranks, device: torch.device) -> TuningResult:
    """Do the work of `finetune` in processes that have joined."""
    return carry_out_on(run, ranks, device, partial(_Session, run))


class _Session(TuningSession[FinetuneRun]):
    """See `TuningSession`."""

    title = "finetune"

    def __init__(self, run: FinetuneRun, place: Workplace) -> None:
        check_packages(run)
        kind = TASKS[run.task]
        words = Tokenizer.from_pretrained(run.model, revision=run.revision)
        self.task: TuningTask[Any] = kind(run, open_texts(run, words), read_splits(run, kind))
        self.examples, self.objective = self._make_examples(), self.task.objective()
        can_look = VALIDATION in self.task.splits
        metric = choose_metric(run, self.task.metric, partial(self.task.figure_names, VALIDATION))
        model: Pretrained = begin(run, self.task.kind, self.task.head())
        if run.adapter is not None:
            add_adapter(model, run.adapter, seed=run.seed)
        super().__init__(
            run,
            place,
            words=words,
            model=model,
            num_examples=len(self.examples),
            source=run.data.train,
            digest=digest([*self.examples, *(self.task.examples(VALIDATION) if can_look else [])]),
            metric=metric,
            can_look=can_look,
        )

    def _make_examples(self) -> list[Example]:
        """Return what is learned from. What is wrong with other splits is found now too, and all remarked."""
        for split in self.task.splits:
            self.task.examples(split)
        log_remarks(self.task.splits)
        examples = self.task.examples(TRAIN)
        if not examples:
            raise InputError(
                f"`{self.task.run.data.train}` has no token that a label belongs to; there must be something "
                "to learn; check that it is the right file"
            )
        return examples

    def steps(self, done: int) -> Iterator[ExampleStep]:
        return example_steps(
            self.examples,
            self.objective,
            batch_size=self.run.tuning.batch_size,
            row_tokens=self.run.micro_batch_tokens,
            num_steps=self.num_steps,
            seed=self.run.seed,
            done=done,
            ranks=self.ranks,
        )

    def longest(self) -> tuple[int, str]:
        return max(example.num_tokens for example in self.examples), "data.max_length"

    def look(self) -> Mapping[str, float]:
        return self._measured(VALIDATION, QUICK).figures

    def _measured(self, split: str, sampling: Sampling = WHOLE) -> Findings:
        runner = TorchRunner(self.model, self.run.precision)
        return self.task.evaluate(runner, split, sampling, self.ranks)

    def save_model(self, model: Pretrained, folder: Path) -> None:
        """Write a model, or its adapter alone."""
        if is_adapted(model):
            save_adapter(model, folder, base=self.run.model)
        else:
            model.save_pretrained(folder)

    def conclude(self, best_step: int) -> Mapping[str, Mapping[str, float]]:
        """Measure the best model; write it, its card and the report."""
        with self.measuring():
            found = {it: self._measured(it) for it in (VALIDATION, TEST) if it in self.task.splits}
        whole = self.spread.gathered()
        if whole is not None:
            write_outcome(
                self.task,
                self.folder,
                whole,
                self.words,
                found,
                progress=self.progress,
                best_step=best_step,
                facts=self.facts,
            )
        self.ranks.meet()
        return {split: findings.figures for split, findings in found.items()}
