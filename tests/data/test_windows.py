"""At every length the same tokens are predicted, each once, and every window is as long as it can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from modernbert.data import windows
from modernbert.data.masking import MaskedBatch, Masker, MaskingSettings
from modernbert.data.source import SequenceRef
from modernbert.data.windows import MaskedStretch, Stretch, mask_every, mask_stretches, window_rows
from modernbert.errors import InputError

CLS, SEP, MASK = 900, 901, 902


class Vocabulary:
    vocab_size, mask_id = 1000, MASK
    special_ids = frozenset((CLS, SEP, MASK))
    ordinary_ids = np.arange(900)


class Lines:
    """A source of documents, each the numbers from its index times 100 on."""

    def __init__(self, name: str, lengths: Sequence[int], sequence_length: int = 22) -> None:
        self.name, self.sequence_length = name, sequence_length
        self._lengths = lengths
        self.num_sequences, self.num_tokens = len(lengths), sum(lengths)

    def sequence(self, draw: int) -> SequenceRef:
        return SequenceRef(self.name, draw, draw, 0, self._lengths[draw])

    def read_into(self, row: np.ndarray, sequence: SequenceRef) -> None:
        row[:] = [CLS, *range(100 * sequence.draw, 100 * sequence.draw + sequence.length - 2), SEP]


def stretches(*sizes: int) -> list[Stretch]:
    return [Stretch(i + 1, np.arange(100 * i, 100 * i + size)) for i, size in enumerate(sizes)]


def pieces(rows: Sequence[MaskedBatch]) -> list[list[int]]:
    return [piece.tolist() for row in rows for piece in row.layout.split(row.input_ids)]


def everything_masked(of: Sequence[Stretch]) -> list[MaskedStretch]:
    return [MaskedStretch(s.tokens, s.tokens, np.ones(len(s.tokens), dtype=bool)) for s in of]


@pytest.mark.parametrize("length", [3, 5, 7, 12, 22])
def test_each_token_is_predicted_once_at_its_place(length: int) -> None:
    rows = window_rows(everything_masked(stretches(20, 20)), length, (CLS, SEP), row_tokens=25)
    labels = [label for row in rows for label in row.labels.tolist()]
    assert labels == [*range(20), *range(100, 120)]
    assert all(row.input_ids[row.masked_positions].tolist() == row.labels.tolist() for row in rows)
    for piece in pieces(rows):
        assert (piece[0], piece[-1], len(piece)) == (CLS, SEP, length)
        assert np.diff(piece[1:-1]).tolist() == [1] * (length - 3)


def test_the_last_window_reaches_back_and_predicts_what_is_left() -> None:
    rows = window_rows(everything_masked(stretches(10)), 6, (CLS, SEP), row_tokens=6)
    assert pieces(rows) == [[CLS, 0, 1, 2, 3, SEP], [CLS, 4, 5, 6, 7, SEP], [CLS, 6, 7, 8, 9, SEP]]
    assert [row.labels.tolist() for row in rows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_stretch_shorter_than_the_window_is_one_window() -> None:
    (row,) = window_rows(everything_masked(stretches(3)), 9, (CLS, SEP), row_tokens=9)
    assert row.input_ids.tolist() == [CLS, 0, 1, 2, SEP]
    assert row.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("row_tokens", "expected"), [(1, [1] * 6), (12, [2, 2, 2]), (17, [2, 2, 2]), (99, [6])]
)
def test_rows_hold_as_many_windows_as_fit_and_at_least_one(row_tokens: int, expected: list[int]) -> None:
    rows = window_rows(everything_masked(stretches(12, 12)), 6, (CLS, SEP), row_tokens=row_tokens)
    assert [row.layout.num_sequences for row in rows] == expected


@pytest.mark.parametrize("length", [6, 9, 22])
def test_the_same_tokens_are_masked_alike_at_every_length(length: int) -> None:
    masker = Masker(Vocabulary(), MaskingSettings(), seed=3)
    masked = mask_stretches(stretches(20, 20, 20), masker, 0.4)
    rows = window_rows(masked, length, (CLS, SEP), row_tokens=44)
    seen = {}
    for row in rows:
        for place, label in zip(row.masked_positions.tolist(), row.labels.tolist()):
            seen[label] = row.input_ids[place].item()
    expected = {}
    for stretch in masked:
        for place in np.flatnonzero(stretch.is_masked):
            expected[int(stretch.tokens[place])] = int(stretch.input_ids[place])
    assert seen == expected
    assert 12 < len(seen) < 36
    assert MASK in seen.values()


def test_stretches_are_masked_by_their_key() -> None:
    masker = Masker(Vocabulary(), MaskingSettings(), seed=3)
    text = np.arange(200)
    one, again, other = mask_stretches([Stretch(1, text), Stretch(1, text), Stretch(2, text)], masker, 0.3)
    assert np.array_equal(one.input_ids, again.input_ids)
    assert not np.array_equal(one.is_masked, other.is_masked)


@pytest.mark.parametrize("stride", [2, 3, 10])
def test_strides_are_disjoint_and_cover_every_token(stride: int) -> None:
    labels: list[int] = []
    for offset in range(stride):
        masked = mask_every(stretches(20, 17), MASK, stride=stride, offset=offset)
        for row in window_rows(masked, 12, (CLS, SEP), row_tokens=60):
            assert set(row.input_ids[row.masked_positions].tolist()) == {MASK}
            labels += row.labels.tolist()
    assert sorted(labels) == [*range(20), *range(100, 117)]


def test_a_stride_as_wide_as_the_window_masks_one_token_of_each() -> None:
    for offset in range(10):
        masked = mask_every(stretches(37), MASK, stride=10, offset=offset)
        rows = window_rows(masked, 12, (CLS, SEP), row_tokens=60)
        assert [piece.count(MASK) for piece in pieces(rows)] == [1] * (4 if offset < 7 else 3)
        assert sum(row.num_masked for row in rows) == (4 if offset < 7 else 3)


def test_only_full_sequences_are_drawn() -> None:
    sources = [Lines("a", [22, 5, 22, 21, 22]), Lines("b", [7, 22])]
    drawn = windows.draw_stretches(sources, max_tokens=1000)  # type: ignore[arg-type]
    assert sorted(stretch.tokens[0] for stretch in drawn) == [0, 100, 200, 400]
    assert {len(stretch.tokens) for stretch in drawn} == {20}
    assert len({stretch.key for stretch in drawn}) == 4


@pytest.mark.parametrize(("max_tokens", "expected"), [(1, 1), (22, 1), (43, 1), (44, 2), (66, 3)])
def test_no_more_is_drawn_than_wanted(max_tokens: int, expected: int) -> None:
    assert len(windows.draw_stretches([Lines("a", [22] * 5)], max_tokens)) == expected  # type: ignore[list-item]


def test_text_that_is_too_short_for_the_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"no held-out document has 20 tokens.*at a length of 22"):
        windows.draw_stretches([Lines("a", [21, 3])], 100)  # type: ignore[list-item]
