"""Answers beside those that are right, as SQuAD's script compares them, and by characters."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import InputError

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)


@dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """How good each prediction is, float64 `[n]` each, from 0 to 1, by the right answer that fits best.

    Attributes:
        exact_match: Whether the normalised texts are equal.
        f1: Of their words.
        character_f1: Of their characters, for languages without spaces.
        has_answer: bool `[n]`, whether there is an answer; if not, only the empty text is right.
    """

    exact_match: NDArray[np.float64]
    f1: NDArray[np.float64]
    character_f1: NDArray[np.float64]
    has_answer: NDArray[np.bool_]


def score_answers(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> AnswerScores:
    """Compare predictions with the right answers.

    Args:
        gold: For each question the texts that are right; none: it has no answer.
        predicted: A text for each; empty: no answer.

    Raises:
        InputError: There are more or fewer predictions than questions.
    """
    if len(gold) != len(predicted):
        raise InputError(f"there are {len(predicted)} answers for {len(gold)} questions; each must have one")
    # As the script does: an answer of which nothing is left says as little as none.
    known = [[text for text in texts if normalize(text)] for texts in gold]

    def best(score: Callable[[str, str], float]) -> NDArray[np.float64]:
        return np.array(
            [max(score(text, guess) for text in texts or [""]) for texts, guess in zip(known, predicted)],
            dtype=np.float64,
        )

    return AnswerScores(
        exact_match=best(exact_match),
        f1=best(word_f1),
        character_f1=best(character_f1),
        has_answer=np.array([bool(texts) for texts in known], dtype=bool),
    )


def normalize(text: str) -> str:
    """Lower the letters; drop ASCII punctuation, the English articles, and spaces beyond one."""
    lowered = "".join(letter for letter in text.lower() if letter not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", lowered).split())


def exact_match(gold: str, predicted: str) -> float:
    """Whether the normalised texts are equal, as 0 or 1."""
    return float(normalize(gold) == normalize(predicted))


def word_f1(gold: str, predicted: str) -> float:
    """Return the F1 of the normalised texts' words; with an empty one, whether both are."""
    return _f1(normalize(gold).split(), normalize(predicted).split())


def character_f1(gold: str, predicted: str) -> float:
    """Return the F1 of the characters, without spaces and punctuation, and with half and full width alike."""
    return _f1(_characters(gold), _characters(predicted))


def _characters(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).lower()
    return [letter for letter in folded if not letter.isspace() and unicodedata.category(letter)[0] != "P"]


def _f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    if not gold or not predicted:
        return float(not gold and not predicted)
    shared = (Counter(gold) & Counter(predicted)).total()
    return 2 * shared / (len(gold) + len(predicted))
