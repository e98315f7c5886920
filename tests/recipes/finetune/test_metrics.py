"""Figures against values made by hand, and against scikit-learn, scipy and seqeval."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import BILOU, IOBES
from sklearn import metrics as judge

from modernbert.errors import BackendError, InputError
from modernbert.recipes.finetune import metrics
from modernbert.recipes.tuning.selection import is_better

LABELS = ["a", "b", "c", "d"]


def one_hot(predicted: list[int], num_labels: int) -> np.ndarray:
    return 4.0 * np.eye(num_labels)[predicted]


def drawn_classes(num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(num_labels)
    gold = draw.integers(num_labels, size=200)
    logits = draw.normal(size=(200, num_labels))
    logits[np.arange(200), gold] += 1
    return gold, logits


@pytest.mark.parametrize("num_labels", [2, 3, 9])
def test_figures_of_classes_are_those_of_scikit_learn(num_labels: int) -> None:
    gold, logits = drawn_classes(num_labels)
    found = metrics.classes(gold, logits, [str(i) for i in range(num_labels)])
    predicted = logits.argmax(axis=1)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = {
        "accuracy": judge.accuracy_score(gold, predicted),
        "macro_f1": judge.f1_score(gold, predicted, average="macro"),
        "micro_f1": judge.f1_score(gold, predicted, average="micro"),
        "weighted_f1": judge.f1_score(gold, predicted, average="weighted"),
        "mcc": judge.matthews_corrcoef(gold, predicted),
        "log_loss": judge.log_loss(gold, chances),
    }
    if num_labels == 2:
        expected["f1"] = judge.f1_score(gold, predicted)
        expected["roc_auc"] = judge.roc_auc_score(gold, chances[:, 1])
        expected["average_precision"] = judge.average_precision_score(gold, chances[:, 1])
    assert {name: found.pop(name) for name in expected} == pytest.approx(expected)
    assert list(found) == ["calibration_error"]


def test_macro_f1_is_over_the_labels_that_occur() -> None:
    gold, predicted = [0, 0, 1, 1], [0, 0, 1, 0]  # labels c and d nowhere
    found = metrics.classes(gold, one_hot(predicted, 4), LABELS)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("gold", "predicted"), [([1, 1, 1], [1, 1, 1]), ([0, 0], [1, 1]), ([0, 1], [1, 1]), ([0], [0])]
)
def test_degenerate_classes_give_no_nan(gold: list[int], predicted: list[int]) -> None:
    found = metrics.classes(gold, one_hot(predicted, 2), ["no", "yes"])
    assert all(math.isfinite(value) for value in found.values())
    assert found["mcc"] == 0
    assert ("roc_auc" in found) == (len(set(gold)) == 2)
    assert ("average_precision" in found) == (1 in gold)


def test_of_no_examples_there_are_no_figures() -> None:
    assert metrics.classes([], [], LABELS) == {}
    assert metrics.label_sets(np.zeros((0, 3)), np.zeros((0, 3))) == {}
    assert metrics.values([], []) == {}
    assert metrics.tags([], []) == {}
    assert metrics.answers([], []) == {}
    assert metrics.choices([], []) == {}


def test_very_sure_logits_overflow_nothing() -> None:
    assert all(
        math.isfinite(v) for v in metrics.classes([0, 1], [[1e4, -1e4], [1e4, 0]], ["a", "b"]).values()
    )
    assert all(math.isfinite(v) for v in metrics.label_sets([[0, 1]], [[1e4, -1e4]]).values())


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match=r"logits are \[2, 3\] for 2 examples and 4 labels; they must be"):
        metrics.classes([0, 1], np.zeros((2, 3)), LABELS)
    with pytest.raises(InputError, match="a right label is -100; it must be from 0 to 3"):
        metrics.classes([0, -100], np.zeros((2, 4)), LABELS)
    with pytest.raises(InputError, match="1 of 8 numbers are not finite"):
        metrics.classes([0, 1], [[0, 0, 0, math.nan], [0] * 4], LABELS)
    with pytest.raises(InputError, match="must each be 0 or 1"):
        metrics.label_sets([[0, 2]], [[0, 0]])
    with pytest.raises(InputError, match=r"predictions are \[3, 1\] where what is right is \[2, 1\]"):
        metrics.values([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="sequence 1 has 1 predicted tags for 2 words"):
        metrics.tags([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(InputError, match="1 answers for 2 questions"):
        metrics.answers([["a"], ["b"]], ["a"])
    with pytest.raises(InputError, match="question 0 has 2 choices and 2 as the right one"):
        metrics.choices([2], [[0.0, 1.0]])


def test_label_sets_by_hand_and_by_scikit_learn() -> None:
    gold = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]])
    logits = np.array([[2.0, -1, -3], [-0.5, 1, -3], [-2, -1, -3], [1, 3, -3]])
    found = metrics.label_sets(gold, logits)
    assert found["micro_f1"] == pytest.approx(6 / 8)  # 3 right of 4 predicted and 4 true
    assert found["macro_f1"] == pytest.approx((2 / 4 + 1) / 2)  # the third label occurs nowhere
    assert found["exact_match"] == 0.5
    assert found["best_micro_f1"] == pytest.approx(8 / 9)  # from -0.5 on: 4 right of 5
    assert found["best_threshold"] == pytest.approx((1 / (1 + math.exp(0.5)) + 1 / (1 + math.e)) / 2)
    chances = 1 / (1 + np.exp(-logits))
    areas = [judge.average_precision_score(gold[:, i], chances[:, i]) for i in (0, 1)]
    assert found["mean_average_precision"] == pytest.approx(np.mean(areas))
    assert found["micro_f1"] == pytest.approx(judge.f1_score(gold, logits >= 0, average="micro"))


def test_label_sets_where_nothing_is_right() -> None:
    found = metrics.label_sets(np.zeros((2, 2)), np.full((2, 2), -1.0))
    assert (found["micro_f1"], found["macro_f1"], found["exact_match"]) == (0, 0, 1)
    assert found["best_threshold"] == 0.5
    assert "mean_average_precision" not in found


@pytest.mark.parametrize("width", [1, 3])
def test_values_are_those_of_scipy_and_scikit_learn(width: int) -> None:
    draw = np.random.default_rng(4)
    gold = draw.normal(size=(50, width)).round(1)
    predicted = gold + draw.normal(size=(50, width)).round(1)
    found = metrics.values(gold, predicted)
    columns = list(zip(gold.T, predicted.T))
    expected = {
        "pearson": np.mean([scipy.stats.pearsonr(*pair)[0] for pair in columns]),
        "spearman": np.mean([scipy.stats.spearmanr(*pair)[0] for pair in columns]),
        "mse": judge.mean_squared_error(gold, predicted),
        "mae": judge.mean_absolute_error(gold, predicted),
        "r2": judge.r2_score(gold, predicted),
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gold", "predicted", "r2"),
    [([1, 2, 3], [0.1, 0.1, 0.1], None), ([0.1] * 3, [1, 2, 3], 0), ([5, 5], [5, 5], 1), ([1], [2], 0)],
)
def test_constant_values_do_not_correlate(
    gold: list[float], predicted: list[float], r2: float | None
) -> None:
    found = metrics.values(gold, predicted)
    assert (found["pearson"], found["spearman"]) == (0, 0)
    assert all(math.isfinite(value) for value in found.values())
    assert r2 is None or found["r2"] == r2


def test_tags_by_hand() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["I-LOC", "B-LOC"]]
    found = metrics.tags(gold, predicted)
    assert (found["precision"], found["recall"]) == (pytest.approx(2 / 4), pytest.approx(2 / 3))
    assert found["f1"] == pytest.approx(4 / 7)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert (found["f1/PER"], found["precision/LOC"], found["recall/LOC"]) == (0, pytest.approx(2 / 3), 1)


def tag_lists(prefixes: str) -> st.SearchStrategy[list[list[tuple[str, str]]]]:
    tag = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC"))])
    return st.lists(st.lists(st.tuples(tag, tag), min_size=1, max_size=8), min_size=1, max_size=5)


def judged(
    pairs: list[list[tuple[str, str]]], **options: object
) -> tuple[dict[str, float], dict[str, float]]:
    gold, predicted = ([[pair[side] for pair in pairs] for pairs in pairs] for side in (0, 1))
    scores = {
        "precision": seqeval.metrics.precision_score(gold, predicted, zero_division=0, **options),
        "recall": seqeval.metrics.recall_score(gold, predicted, zero_division=0, **options),
        "f1": seqeval.metrics.f1_score(gold, predicted, zero_division=0, **options),
        "accuracy": seqeval.metrics.accuracy_score(gold, predicted),
    }
    found = metrics.tags(gold, predicted)
    return {name: found[name] for name in scores}, scores


@settings(max_examples=60, deadline=None)
@given(tag_lists("BI"))
def test_bio_is_that_of_seqeval(pairs: list[list[tuple[str, str]]]) -> None:
    found, expected = judged(pairs)
    assert found == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(tag_lists("BIES"), st.sampled_from([("BIES", IOBES), ("BILU", BILOU)]))
def test_bioes_and_bilou_are_seqevals_strict_ones(pairs: list[list[tuple[str, str]]], kind: tuple) -> None:
    names = dict(zip("BIES", kind[0] if kind[0] == "BIES" else "BILU"))
    sure = (f"{names['S']}-PER", "O")  # so that the scheme shows
    renamed = [[tuple(names.get(tag[0], tag[0]) + tag[1:] for tag in pair) for pair in one] for one in pairs]
    found, expected = judged([*renamed, [sure]], mode="strict", scheme=kind[1])  # type: ignore[list-item]
    assert found == pytest.approx(expected)


def test_tags_without_prefix_count_word_by_word() -> None:
    found = metrics.tags([["NOUN", "VERB", "NOUN"]], [["NOUN", "NOUN", "NOUN"]])
    assert found["f1"] == found["accuracy"] == pytest.approx(2 / 3)
    assert found["f1/NOUN"] == pytest.approx(4 / 5)


def test_tags_of_nothing_but_o() -> None:
    found = metrics.tags([["O", "O"]], [["O", "O"]])
    assert found == {"precision": 0, "recall": 0, "f1": 0, "accuracy": 1}


def test_answers_with_and_without_an_answer() -> None:
    gold = [["the Denver Broncos", "Broncos"], ["1895"], [], []]
    found = metrics.answers(gold, ["Denver Broncos!", "in 1895", "", "no"])
    assert found["exact_match"] == 0.5
    assert found["f1"] == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)
    assert found["has_answer_f1"] == pytest.approx(5 / 6)
    assert (found["has_answer_exact_match"], found["no_answer_exact_match"], found["no_answer_f1"]) == (
        0.5,
    ) * 3
    assert "has_answer_f1" not in metrics.answers(gold[:2], ["", ""])


def test_choices_of_any_number() -> None:
    found = metrics.choices([1, 0], [[0.0, 1.0], [0.0, 0.0, 3.0]])
    assert found["accuracy"] == 0.5
    second = -math.log(1 / (2 + math.exp(3)))
    assert found["log_loss"] == pytest.approx((math.log(1 + math.exp(-1)) + second) / 2)


def test_the_primary_figure_is_always_there_and_higher_is_better() -> None:
    found = {
        "classes": metrics.classes([0], [[1.0, 0.0]], ["a", "b"]),
        "label_sets": metrics.label_sets([[0, 0]], [[-1, -1]]),
        "values": metrics.values([1], [1]),
        "tags": metrics.tags([["O"]], [["O"]]),
        "answers": metrics.answers([[]], [""]),
        "choices": metrics.choices([0], [[1.0]]),
    }
    assert found.keys() == metrics.PRIMARY.keys()
    for problem, name in metrics.PRIMARY.items():
        assert name in found[problem]
        assert is_better(name, 0.6, 0.5)
    assert is_better("log_loss", 0.5, 0.6)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("sklearn.metrics", lambda: metrics.classes([0, 1], np.eye(2), ["a", "b"])),
        ("scipy.stats", lambda: metrics.values([1, 2], [1, 2])),
        ("seqeval", lambda: metrics.tags([["B-A"]], [["O"]])),
    ],
)
def test_a_missing_library_is_named(module: str, call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(BackendError, match=r"run `pip install 'modernbert\[finetune\]'`"):
        call()
