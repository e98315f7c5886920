"""Choose the right one of several texts."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from modernbert.data.choice_records import read_choices
from modernbert.data.records import ChoiceRecord, Records
from modernbert.infer.choose import Choose as Choosing
from modernbert.infer.engine import Engine
from modernbert.infer.runner import Runner
from modernbert.model.config import HeadConfig
from modernbert.model.heads import ModernBertForMultipleChoice
from modernbert.recipes.finetune import evaluated
from modernbert.recipes.finetune.evaluated import Sampling, Shown
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.metrics import Problem
from modernbert.recipes.finetune.settings import LabelledData
from modernbert.recipes.finetune.task import EVALUATED_TOKENS, WHOLE, TuningTask
from modernbert.train.examples import Example
from modernbert.train.objective import Objective
from modernbert.train.objectives import Choices


class Choose(TuningTask[ChoiceRecord]):
    """See `TuningTask`."""

    kind = ModernBertForMultipleChoice
    problem: Problem = "choices"

    @staticmethod
    def read(path: Path, data: LabelledData) -> Records[ChoiceRecord]:
        return read_choices(path, data.columns)

    def head(self) -> HeadConfig:
        return HeadConfig(pooling=self.run.head.pooling, dropout=self.run.head.dropout)

    def objective(self) -> Objective:
        return Choices()

    def make_examples(self, split: str) -> list[Example]:
        records = self.splits[split].records
        prepared = self._cutter.prepare([(record.prompt, record.choices) for record in records], 0)
        return [
            Example(tuple(it.sequences), (len(record.choices), record.label), record.place)
            for record, it in zip(records, prepared)
        ]

    def evaluate(self, runner: Runner, split: str, sampling: Sampling = WHOLE) -> Findings:
        records = self.splits[split].records
        inputs = ((record.prompt, record.choices) for record in records)
        found = Engine(EVALUATED_TOKENS).run(Choosing(runner, self.texts), inputs)
        return evaluated.of_choices(
            split,
            [cast(int, record.label) for record in records],  # `read_choices` leaves out those without
            [np.log(answer["scores"]) for answer in found],
            [Shown(text=record.prompt, place=record.place) for record in records],
            [record.choices for record in records],
            sampling=sampling,
        )

    @cached_property
    def _cutter(self) -> Choosing:
        runner: Any = None  # it only cuts
        return Choosing(runner, self.texts)
