"""Choose the right one of several texts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import cast

from modernbert.data.choice_records import read_choices
from modernbert.data.records import ChoiceRecord, Records
from modernbert.infer.outputs import Array, per_sequence
from modernbert.infer.runner import Runner
from modernbert.model.config import HeadConfig
from modernbert.model.heads import ModernBertForMultipleChoice
from modernbert.recipes.finetune import evaluated
from modernbert.recipes.finetune.evaluated import Sampling, Shown
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.metrics import Problem
from modernbert.recipes.finetune.settings import LabelledData
from modernbert.recipes.finetune.task import TuningTask
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

    def _make_examples(self, split: str) -> list[Example]:
        records = self.splits[split].records
        pairs = [(record.prompt, choice) for record in records for choice in record.choices]
        places = [record.place for record in records for _ in record.choices]
        sequences = iter(self._encoded(split, self.texts.pair_ids, pairs, places))
        return [
            Example(
                tuple(islice(sequences, len(record.choices))),
                (len(record.choices), record.label),
                record.place,
            )
            for record in records
        ]

    def _compute(self, runner: Runner, sequences: list[list[int]]) -> list[Array]:
        return per_sequence(runner, sequences)

    def _shape(self, sequence: list[int]) -> tuple[int, ...]:
        return ()

    def _judge(self, split: str, outputs: Iterator[Array], sampling: Sampling) -> Findings:
        records = self.splits[split].records
        return evaluated.of_choices(
            split,
            [cast(int, record.label) for record in records],  # `read_choices` leaves out those without
            [list(islice(outputs, len(record.choices))) for record in records],
            [Shown(text=record.prompt, place=record.place) for record in records],
            [record.choices for record in records],
            sampling=sampling,
        )
