"""Answers as SQuAD's script compares them."""

from __future__ import annotations

import pytest

from modernbert.recipes.finetune.squad import character_f1, exact_match, normalize, score_answers, word_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Broncos.", "broncos"),
        ("An  apple a day", "apple day"),
        ("U.S.", "us"),
        ("theatre", "theatre"),
        ("the", ""),
        ("  \n", ""),
        ("Saint-Exupéry", "saintexupéry"),
        ("$3,000", "3000"),
    ],
)
def test_normalizing(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("gold", "predicted", "exact", "f1"),
    [
        ("Santa Clara, California", "santa clara california", 1, 1),
        ("Santa Clara", "Clara", 0, 2 / 3),
        ("the the cat", "cat cat", 0, 2 / 3),  # a word counts as often as it stands in both
        ("yes", "no", 0, 0),
        ("", "", 1, 1),
        ("", "something", 0, 0),
        ("a", "the", 1, 1),  # nothing is left of either
    ],
)
def test_words(gold: str, predicted: str, exact: float, f1: float) -> None:
    assert exact_match(gold, predicted) == exact
    assert word_f1(gold, predicted) == pytest.approx(f1)


def test_the_best_of_several_answers_counts() -> None:
    scores = score_answers([["one two three", "two"], ["the"], []], ["two", "", "x"])
    assert scores.f1.tolist() == [1, 1, 0]
    assert scores.has_answer.tolist() == [True, False, False]  # an article alone is no answer


@pytest.mark.parametrize(
    ("gold", "predicted", "f1"),
    [
        ("東京都", "東京都", 1),
        ("東京都", "東京", 4 / 5),
        ("2020年", "２０２０年。", 1),
        ("「日本」", "日 本", 1),
        ("京都", "大阪", 0),
        ("", "大阪", 0),
    ],
)
def test_characters(gold: str, predicted: str, f1: float) -> None:
    assert character_f1(gold, predicted) == pytest.approx(f1)
