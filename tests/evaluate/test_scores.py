"""Metrics against scikit-learn and scipy."""

from __future__ import annotations

import random

import pytest

from modernbert.evaluate.scores import METRICS, Answers

LABELS = ("no", "yes")


def drawn(seed: int, labels: tuple[str, ...], count: int = 60) -> Answers:
    draw = random.Random(seed)
    right = draw.choices(labels, k=count)
    predicted = [draw.choice(labels) if draw.random() < 0.4 else label for label in right]
    return Answers(right=right, predicted=predicted, labels=labels)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_labels_are_those_of_sklearn(seed: int) -> None:
    judge = pytest.importorskip("sklearn.metrics")
    two = drawn(seed, LABELS)
    assert METRICS["accuracy"](two) == pytest.approx(judge.accuracy_score(two.right, two.predicted))
    assert METRICS["f1"](two) == pytest.approx(judge.f1_score(two.right, two.predicted, pos_label="yes"))
    assert METRICS["matthews"](two) == pytest.approx(judge.matthews_corrcoef(two.right, two.predicted))
    three = drawn(seed, ("a", "b", "c"))
    expected = judge.f1_score(three.right, three.predicted, average="macro")
    assert METRICS["macro_f1"](three) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_those_of_scipy_with_ties_too(seed: int) -> None:
    judge = pytest.importorskip("scipy.stats")
    draw = random.Random(seed)
    right = [draw.randint(0, 5) / 1 for _ in range(40)]
    predicted = [value + draw.gauss(0, 2) // 1 for value in right]
    answers = Answers(right=right, predicted=predicted)
    assert METRICS["pearson"](answers) == pytest.approx(judge.pearsonr(right, predicted).statistic)
    assert METRICS["spearman"](answers) == pytest.approx(judge.spearmanr(right, predicted).statistic)


def test_constant_predictions_correlate_with_nothing() -> None:
    assert METRICS["matthews"](Answers(right=["yes", "no"], predicted=["no"] * 2, labels=LABELS)) == 0
    numbers = Answers(right=[1.0, 2.0], predicted=[3.0, 3.0])
    assert METRICS["pearson"](numbers) == METRICS["spearman"](numbers) == 0
    assert METRICS["f1"](Answers(right=["no"], predicted=["no"], labels=LABELS)) == 0


def test_a_question_counts_if_all_its_answers_are_right() -> None:
    answers = Answers(
        right=["yes", "no", "yes", "no"],
        predicted=["yes", "no", "yes", "yes"],
        labels=LABELS,
        groups=["first", "first", "second", "second"],
    )
    assert METRICS["exact_match"](answers) == 0.5
    assert METRICS["f1a"](answers) == pytest.approx(0.8)
