"""Label texts or pairs of texts: one label, several at once, or numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert.data.records import Records, TextRecord
from modernbert.data.text_records import Problem as Form
from modernbert.data.text_records import (
    check_labels,
    check_texts,
    guess_problem,
    label_name,
    label_names,
    read_texts,
    shown_names,
)
from modernbert.errors import ConfigError
from modernbert.infer.outputs import Array, per_sequence, sigmoid
from modernbert.infer.runner import Runner
from modernbert.infer.texts import Texts
from modernbert.model.config import HeadConfig
from modernbert.model.heads import ModernBertForSequenceClassification
from modernbert.recipes.finetune import calibration, evaluated
from modernbert.recipes.finetune.evaluated import Sampling, Shown
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.metrics import Problem
from modernbert.recipes.finetune.settings import FinetuneRun, LabelledData
from modernbert.recipes.finetune.task import TRAIN, VALIDATION, WHOLE, TuningTask, inverse_shares
from modernbert.train.examples import Example
from modernbert.train.objective import Objective
from modernbert.train.objectives import Classes, LabelSets, Values

PROBLEMS: Mapping[Form, Problem] = {
    "single_label_classification": "classes",
    "multi_label_classification": "label_sets",
    "regression": "values",
}


class Classify(TuningTask[TextRecord]):
    """See `TuningTask`."""

    kind = ModernBertForSequenceClassification

    def __init__(self, run: FinetuneRun, texts: Texts, splits: Mapping[str, Records[TextRecord]]) -> None:
        super().__init__(run, texts, splits)
        train, *others = (split.records for split in splits.values())
        self.form: Form = run.head.problem or guess_problem(train)
        self.problem = PROBLEMS[self.form]
        self._check_uses()
        check_texts(train, *others)
        check_labels(train, *others, problem=self.form)
        self.labels = self._labels(train)
        self._temperature: float | None = None
        self._thresholds: tuple[float, ...] = ()

    @staticmethod
    def read(path: Path, data: LabelledData) -> Records[TextRecord]:
        return read_texts(path, data.columns, label_separator=data.label_separator)

    @staticmethod
    def names(run: FinetuneRun, records: Sequence[TextRecord]) -> Sequence[Set[str]]:
        is_regression = (run.head.problem or guess_problem(records)) == "regression"
        return [] if is_regression else [set(label_names([record])) for record in records]

    @property
    def takes_pairs(self) -> bool:
        return len(self.splits[TRAIN].records[0].texts) == 2

    def head(self) -> HeadConfig:
        settings = self.run.head
        return HeadConfig(
            labels=self._shown_labels(),
            problem_type=self.form,
            pooling=settings.pooling,
            dropout=settings.dropout,
        )

    def objective(self) -> Objective:
        smoothing = self.run.head.label_smoothing
        if self.problem == "values":
            return Values(num_values=len(self.labels))
        if self.problem == "label_sets":
            return LabelSets(num_labels=len(self.labels), positive_weights=self._weights())
        return Classes(num_labels=len(self.labels), class_weights=self._weights(), label_smoothing=smoothing)

    def _make_examples(self, split: str) -> list[Example]:
        records = self.splits[split].records
        places = [record.place for record in records]
        if self.takes_pairs:
            pairs = [(record.texts[0], record.texts[1]) for record in records]
            sequences = self._encoded(split, self.texts.pair_ids, pairs, places)
        else:
            sequences = self._encoded(split, self.texts.ids, [it.texts[0] for it in records], places)
        return [
            Example((ids,), self._target(record.label), record.place)
            for record, ids in zip(records, sequences)
        ]

    def _compute(self, runner: Runner, sequences: list[list[int]]) -> list[Array]:
        return per_sequence(runner, sequences)

    def _shape(self, sequence: list[int]) -> tuple[int, ...]:
        return (len(self.labels),)

    def _judge(self, split: str, outputs: Iterator[Array], sampling: Sampling) -> Findings:
        logits = np.stack([np.atleast_1d(output) for output in outputs])
        gold = np.array([example.target for example in self.examples(split)])
        records = self.splits[split].records
        shown = [Shown(text=" | ".join(record.texts), place=record.place) for record in records]
        if self.problem == "values":
            return evaluated.of_values(split, gold, logits, shown, sampling=sampling)
        if split == VALIDATION and sampling == WHOLE:
            self._fit(gold, logits)
        labels, temperature = self._shown_labels(), self._temperature
        if self.problem == "classes":
            return evaluated.of_classes(
                split, gold, logits, labels, shown, temperature=temperature, sampling=sampling
            )
        return evaluated.of_label_sets(
            split,
            gold,
            logits,
            labels,
            shown,
            thresholds=self._thresholds,
            temperature=temperature,
            sampling=sampling,
        )

    def _fit(self, gold: NDArray[Any], given: Array) -> None:
        """Find temperature and thresholds on the validation; the test is judged with these."""
        logits = given.astype(np.float64)
        self._temperature = calibration.fit_temperature(gold, logits)
        if self.problem == "label_sets":
            self._thresholds = calibration.best_thresholds(gold, sigmoid(given).astype(np.float64))

    def _labels(self, train: list[TextRecord]) -> list[str]:
        """Return the names of the labels as the file has them, or of the numbers."""
        if self.problem != "values":
            return label_names(train)
        first = train[0].label
        return [f"LABEL_{place}" for place in range(len(first) if isinstance(first, tuple) else 1)]

    def _shown_labels(self) -> tuple[str, ...]:
        """Return the names that the model's labels have: of ids, those that the file gives, if it does."""
        names = self.splits[TRAIN].class_names
        return tuple(self.labels) if self.problem == "values" else shown_names(self.labels, names)

    def _target(self, label: Any) -> int | list[float]:
        if self.problem == "values":
            return [float(value) for value in (label if isinstance(label, tuple) else (label,))]
        if self.problem == "classes":
            return self._ids[label_name(label)]
        if label and not isinstance(label[0], str):
            return [float(value) for value in label]
        present = {self._ids[name] for name in label}
        return [float(index in present) for index in range(len(self.labels))]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.labels)}

    def _weights(self) -> tuple[float, ...]:
        return self._class_weights(self._shown_labels(), self._balanced)

    def _balanced(self) -> tuple[float, ...]:
        """Return the weights that make all labels count alike, or each label's presence as its absence."""
        targets = np.array([self._target(record.label) for record in self.splits[TRAIN].records])
        if self.problem == "classes":
            return inverse_shares(np.bincount(targets, minlength=len(self.labels)).tolist())
        positives = targets.sum(axis=0).clip(min=1)
        return tuple(((len(targets) - positives).clip(min=1) / positives).tolist())

    def _check_uses(self) -> None:
        """Refuse settings of the loss that this problem has not."""
        head = self.run.head
        idle = {
            "label_smoothing": head.label_smoothing > 0 and self.problem != "classes",
            "class_weights": head.class_weights is not None and self.problem == "values",
        }
        for name, is_idle in idle.items():
            if is_idle:
                raise ConfigError(
                    f"`head.{name}` is {getattr(head, name)!r}; {self.form} has no use for it; leave it out, "
                    "or set `head.problem` if these labels are something else"
                )
