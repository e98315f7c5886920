"""BM25 is Lucene's formula; words are those that the settings say."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from modernbert.errors import BackendError, ConfigError, InputError
from modernbert.retrieve.bm25 import Bm25, Bm25Settings

DOCUMENTS = ["The wing of a plane", "", "wings and wing, Wing", "the other"]


def formula(frequency: int, length: int, holding: int, k1: float, b: float) -> float:
    """Of one word; `DOCUMENTS` have 4, 0, 4 and 2 plain words, as one letter is no word."""
    rarity = math.log(1 + (4 - holding + 0.5) / (holding + 0.5))
    return rarity * frequency / (frequency + k1 * (1 - b + b * length / 2.5))


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (1.2, 0.0)])
def test_the_formula(k1: float, b: float) -> None:
    index = Bm25(DOCUMENTS, Bm25Settings(words="plain", k1=k1, b=b))
    wing = [formula(1, 4, 2, k1, b), 0, formula(2, 4, 2, k1, b), 0]
    the = [formula(1, 4, 2, k1, b), 0, 0, formula(1, 2, 2, k1, b)]
    assert index.scores("WING?") == pytest.approx(wing, rel=1e-6)
    assert index.scores("the wing unheard") == pytest.approx(np.add(wing, the), rel=1e-6)
    assert index.scores("wing wing") == pytest.approx(2 * np.array(wing), rel=1e-6)


def test_english_words() -> None:
    index = Bm25(DOCUMENTS, Bm25Settings())
    assert index.search("the wings", 4).places.tolist() == [2, 0]
    assert index.search("the wings", 1).places.tolist() == [2]
    assert index.scores("winged").tolist() == index.scores("wing").tolist()


@pytest.mark.parametrize("query", ["", "the", "unheard", "?"])
def test_a_query_without_a_known_word_finds_nothing(query: str) -> None:
    assert Bm25(DOCUMENTS, Bm25Settings()).search(query, 4).places.tolist() == []


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no document has a word"):
        Bm25(["", "the of"], Bm25Settings())
    with pytest.raises(ConfigError, match=r"k1 is -1 and b 0\.75; k1 must be at least 0, b from 0 to 1"):
        Bm25Settings(k1=-1)
    with pytest.raises(ConfigError, match="`words` is 'german'; it must be `english` or `plain`"):
        Bm25Settings(words="german")
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    with pytest.raises(BackendError, match=r"BM25 needs bm25s and PyStemmer.*modernbert\[retrieval\]"):
        Bm25(DOCUMENTS, Bm25Settings())
