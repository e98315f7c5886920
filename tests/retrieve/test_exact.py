"""Exact search is the sort of all products, however the documents come in blocks; ties go by place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modernbert.retrieve import exact
from modernbert.retrieve.exact import best, search_vectors

FEW = st.integers(-2, 2).map(float)  # many ties, and products that are exact
DOCUMENTS = arrays.arrays(np.float32, st.tuples(st.integers(0, 20), st.just(3)), elements=FEW)
QUERIES = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(3)), elements=FEW)


def test_the_best_by_hand() -> None:
    scores = np.array([1.0, 3.0, 2.0, 3.0, 0.0])
    assert best(scores, 3).places.tolist() == [1, 3, 2]
    assert best(scores, 1).places.tolist() == [1]
    assert best(scores, 9).scores.tolist() == [3.0, 3.0, 2.0, 1.0, 0.0]
    assert best(np.zeros(0), 3).places.tolist() == []


@given(documents=DOCUMENTS, queries=QUERIES, k=st.integers(1, 25), size=st.integers(1, 25))
def test_search_is_a_sort(documents: np.ndarray, queries: np.ndarray, k: int, size: int) -> None:
    blocks = (documents[start : start + size] for start in range(0, len(documents), size))
    found = search_vectors(queries, blocks, k)
    assert len(found) == len(queries)
    for query, hits in zip(queries, found, strict=True):
        products = documents @ query
        expected = sorted(range(len(documents)), key=lambda place: (-products[place], place))[:k]
        assert hits.places.tolist() == expected
        assert hits.scores.tolist() == products[expected].tolist()


def test_queries_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = np.eye(5, 3, dtype=np.float32), np.eye(3, dtype=np.float32)
    whole = search_vectors(queries, [documents], 2)
    monkeypatch.setattr(exact, "QUERIES_AT_ONCE", 2)
    parts = search_vectors(queries, [documents], 2)
    assert [hits.places.tolist() for hits in parts] == [hits.places.tolist() for hits in whole]
