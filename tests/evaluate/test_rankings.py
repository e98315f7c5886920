"""Figures of rankings: by hand, and against the plain definitions on made-up rankings."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.errors import BackendError
from modernbert.evaluate.rankings import score_rankings

NAMES = [f"d{number}" for number in range(150)]


def plain(grades: Mapping[str, int], ranking: Sequence[str]) -> dict[str, float]:
    """The definitions, as one would write them down."""
    found = [max(grades.get(name, 0), 0) for name in ranking]
    right = [rank for rank, grade in enumerate(found, 1) if grade > 0]
    relevant = sum(grade > 0 for grade in grades.values())

    def dcg(gains: Sequence[int]) -> float:
        return sum(gain / math.log2(1 + rank) for rank, gain in enumerate(gains[:10], 1))

    return {
        "nDCG@10": dcg(found) / dcg(sorted((max(it, 0) for it in grades.values()), reverse=True)),
        "MRR@10": 1 / right[0] if right and right[0] <= 10 else 0.0,
        "recall@100": sum(rank <= 100 for rank in right) / relevant,
        "MAP": sum(number / rank for number, rank in enumerate(right, 1)) / relevant,
    }


def test_by_hand() -> None:
    judgements = [{"a": 3, "b": 1, "c": 0}, {"a": 1}, {"a": 1, "gone": 1}]
    rankings = [["c", "a", "x", "b"], [], [*NAMES[:10], "a"]]
    found = score_rankings(judgements, rankings)
    assert [*found] == ["nDCG@10", "MRR@10", "recall@100", "MAP"]
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    assert found["nDCG@10"] == pytest.approx([(3 / math.log2(3) + 1 / math.log2(5)) / ideal, 0, 0])
    assert found["MRR@10"] == pytest.approx([1 / 2, 0, 0])
    assert found["recall@100"] == pytest.approx([1, 0, 1 / 2])
    assert found["MAP"] == pytest.approx([(1 / 2 + 2 / 4) / 2, 0, 1 / 11 / 2])


@given(
    judged=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(NAMES), st.integers(-1, 3), max_size=30),
            st.permutations(NAMES),
            st.integers(0, len(NAMES)),
        ).filter(lambda drawn: max(drawn[0].values(), default=0) > 0),
        min_size=1,
        max_size=3,
    )
)
def test_the_definitions(judged: list[tuple[dict[str, int], list[str], int]]) -> None:
    found = score_rankings(
        [grades for grades, *_ in judged], [ranking[:count] for _, ranking, count in judged]
    )
    for place, (grades, ranking, count) in enumerate(judged):
        expected = plain(grades, ranking[:count])
        assert {name: values[place] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(BackendError, match=r"need pytrec_eval.*modernbert\[retrieval\]"):
        score_rankings([], [])
