"""Reciprocal ranks, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from modernbert.retrieve.exact import Hits
from modernbert.retrieve.fusion import fuse


def hits(*places: int) -> Hits:
    return Hits(np.array(places, np.int64), np.arange(len(places), 0, -1.0))


def test_by_hand() -> None:
    found = fuse([hits(7, 3, 5), hits(3, 9)], 10)
    assert found.places.tolist() == [3, 7, 9, 5]
    assert found.scores == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])
    assert fuse([hits(7, 3, 5), hits(3, 9)], 2).places.tolist() == [3, 7]


def test_one_that_found_nothing_changes_nothing() -> None:
    assert fuse([hits(), hits(4, 2)], 5).places.tolist() == [4, 2]
    assert fuse([hits(), hits()], 5).places.tolist() == []
