from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.data.packing import BestFitPacker
from modernbert.errors import ConfigError, InputError


class Piece(NamedTuple):
    number: int
    length: int


def pieces(lengths: list[int]) -> list[Piece]:
    return [Piece(number, length) for number, length in enumerate(lengths)]


def all_rows(lengths: list[int], row_tokens: int, look_ahead: int = 1024) -> list[list[Piece]]:
    packer: BestFitPacker[Piece] = BestFitPacker(row_tokens, look_ahead=look_ahead)
    arrivals = iter(pieces(lengths))
    return list(iter(lambda: packer.next_row(arrivals), []))


def real_lengths(num_sequences: int) -> list[int]:
    """Chunks of at most 1,024 tokens of documents with log-normal lengths."""
    documents = np.random.default_rng(0).lognormal(5.9, 1.1, num_sequences).astype(int) + 1
    chunks = [
        length for document in documents for length in [1024] * (document // 1022) + [document % 1022 + 2]
    ]
    return chunks[:num_sequences]


def test_takes_in_order_while_it_fits_then_the_best_fit() -> None:
    rows = all_rows([4, 3, 5, 1, 2, 3, 1], row_tokens=10)
    assert [[piece.number for piece in row] for row in rows] == [[0, 1, 5], [2, 3, 4, 6]]


def test_of_equally_long_the_oldest_fills_the_gap() -> None:
    rows = all_rows([6, 9, 4, 4, 9, 4], row_tokens=10)
    assert [[piece.number for piece in row] for row in rows] == [[0, 2], [1], [3, 5], [4]]


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 120), st.integers(1, 40))
def test_loses_and_doubles_nothing(lengths: list[int], row_tokens: int, look_ahead: int) -> None:
    rows = all_rows(lengths, row_tokens, look_ahead)
    assert Counter(piece for row in rows for piece in row) == Counter(pieces(lengths))
    assert all(0 < sum(piece.length for piece in row) <= row_tokens for row in rows)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 40))
def test_none_waits_more_rows_than_the_look_ahead(lengths: list[int], look_ahead: int) -> None:
    packer: BestFitPacker[Piece] = BestFitPacker(60, look_ahead=look_ahead)
    arrivals = iter(pieces(lengths))
    waited: Counter[int] = Counter()
    while row := packer.next_row(arrivals):
        waited.update(piece.number for piece in packer.waiting)
        assert min(piece.number for piece in [*row, *packer.waiting]) in {piece.number for piece in row}
    assert max(waited.values(), default=0) <= look_ahead


@pytest.mark.parametrize("distribution", ["real", "log-normal", "uniform"])
@pytest.mark.parametrize("row_tokens", [1024, 8192, 98_304])
def test_rows_are_full(row_tokens: int, distribution: str) -> None:
    random = np.random.default_rng(0)
    lengths = {
        "real": real_lengths(20_000),
        "log-normal": np.clip(random.lognormal(5.5, 1, 20_000).astype(int) + 3, None, 1024).tolist(),
        "uniform": random.integers(3, 1025, 20_000).tolist(),
    }[distribution]
    packer: BestFitPacker[Piece] = BestFitPacker(row_tokens)
    arrivals = iter(pieces(lengths))
    used, shares = 0, []
    while used < 15_000:  # while the look-ahead is full, as it is for ever in training
        row = packer.next_row(arrivals)
        used += len(row)
        shares.append(sum(piece.length for piece in row) / row_tokens)
    assert np.mean(shares) > 0.99
    assert np.mean(shares[-len(shares) // 4 :]) > 0.99, "it must not wear off"


@pytest.mark.parametrize("row_tokens", [1024, 8192])
def test_what_waits_stays_like_what_arrives(row_tokens: int) -> None:
    lengths = real_lengths(20_000)
    packer: BestFitPacker[Piece] = BestFitPacker(row_tokens)
    arrivals = iter(pieces(lengths))
    for _ in range(5_000_000 // row_tokens):
        packer.next_row(arrivals)
    waiting = np.array([piece.length for piece in packer.waiting])
    short = np.mean(np.array(lengths) < 128)
    assert len(waiting) < 1024
    assert np.mean(waiting < 128) < short + 0.05, "short ones must not gather"
    newest = max(piece.number for piece in packer.waiting)
    assert newest - min(piece.number for piece in packer.waiting) < 4 * 1024, "old ones must not stay"


@given(st.integers(0, 30))
def test_goes_on_from_what_was_waiting(num_rows: int) -> None:
    arrivals = iter(pieces(real_lengths(400)))
    packer: BestFitPacker[Piece] = BestFitPacker(2048, look_ahead=50)
    for _ in range(num_rows):
        packer.next_row(arrivals)
    later = list(arrivals)
    continued = BestFitPacker(2048, look_ahead=50, waiting=packer.waiting)
    one, other = iter(later), iter(later)
    for _ in range(20):
        assert continued.next_row(one) == packer.next_row(other)


def test_is_fast() -> None:
    arrivals = iter(pieces(real_lengths(60_000)))
    packer: BestFitPacker[Piece] = BestFitPacker(8192)
    begun = time.process_time()
    while packer.next_row(arrivals):
        pass
    per_second = 60_000 / (time.process_time() - begun)
    assert per_second > 50_000, per_second  # several times that on an idle machine


def test_draws_no_more_than_its_look_ahead() -> None:
    arrivals = iter(pieces([10] * 100))
    BestFitPacker(10, look_ahead=7).next_row(arrivals)
    assert len(list(islice(arrivals, 100))) == 92  # seven, and one for the one taken


def test_refuses_what_no_row_can_hold() -> None:
    with pytest.raises(
        InputError, match=r"a sequence of 11 tokens does not fit a row of 10; shorten .* `row_tokens`"
    ):
        BestFitPacker(10).next_row(iter([Piece(0, 11)]))
    with pytest.raises(ConfigError, match="`row_tokens` is 0; it must be at least 1"):
        BestFitPacker(0)
    with pytest.raises(ConfigError, match="`look_ahead` is -1; it must be at least 1"):
        BestFitPacker(10, look_ahead=-1)
