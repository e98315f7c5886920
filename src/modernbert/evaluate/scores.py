"""Metrics as benchmarks publish them, of what is right and what was predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert.recipes.finetune import metrics


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What is scored.

    Attributes:
        right: A label, or a number, an example.
        predicted: As many.
        labels: All labels, in order; of two, the second is the positive one.
        groups: The question that each example belongs to; empty if nobody asks.
    """

    right: Sequence[Any]
    predicted: Sequence[Any]
    labels: tuple[str, ...] = ()
    groups: Sequence[Any] = ()


def accuracy(answers: Answers) -> float:
    """Return the share of examples that are right."""
    return float(np.mean([a == b for a, b in zip(answers.right, answers.predicted)]))


def positive_f1(answers: Answers) -> float:
    """Return the F1 of the positive label, the second of two."""
    return float(metrics.f1_of(_confusion(answers))[1])


def macro_f1(answers: Answers) -> float:
    """Return the mean over the labels that occur of the F1 of each."""
    return metrics.macro_f1_of(_confusion(answers))


def matthews(answers: Answers) -> float:
    """Return Matthews' correlation; 0 if one side is constant."""
    return metrics.mcc_of(_confusion(answers))


def pearson(answers: Answers) -> float:
    """Return Pearson's correlation of numbers; 0 if one side is constant."""
    right, predicted = (metrics.as_columns(side) for side in (answers.right, answers.predicted))
    return metrics.pearson_of(right, predicted, np.ones(len(right)))


def spearman(answers: Answers) -> float:
    """Return Spearman's correlation of numbers, that of their ranks; 0 if one side is constant."""
    right, predicted = (metrics.as_columns(side) for side in (answers.right, answers.predicted))
    return metrics.spearman_of(right, predicted)


def exact_match(answers: Answers) -> float:
    """Return the share of questions of which every example is right."""
    whole: dict[Any, bool] = {}
    for group, right, predicted in zip(answers.groups, answers.right, answers.predicted):
        whole[group] = whole.get(group, True) and right == predicted
    return float(np.mean([*whole.values()]))


METRICS: Mapping[str, Callable[[Answers], float]] = {
    "accuracy": accuracy,
    "f1": positive_f1,
    "f1a": positive_f1,  # MultiRC's name for it: over all answers of all questions
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "exact_match": exact_match,
}


def _confusion(answers: Answers) -> NDArray[np.float64]:
    places = {label: place for place, label in enumerate(answers.labels)}
    right, predicted = (
        np.array([places[label] for label in side]) for side in (answers.right, answers.predicted)
    )
    return metrics.confusion_matrix(right, predicted, len(places))
