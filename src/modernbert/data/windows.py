"""Held-out text seen through windows of one length or another: the same tokens to predict at each.

A stretch of text, as long as the longest window, is cut into windows of a length. All of its tokens are
predicted once at every length, so that two lengths differ by what the context tells and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from modernbert.data.counter_random import combine, key_of
from modernbert.data.loader import one_epoch
from modernbert.data.masking import Ids, MaskedBatch, Masker
from modernbert.data.source import NUM_SPECIAL, Source
from modernbert.errors import InputError
from modernbert.layout import SequenceLayout


@dataclass(frozen=True, eq=False)
class Stretch:
    """Consecutive tokens of one document.

    Attributes:
        key: Names it, for its masks.
        tokens: int64, without special tokens.
    """

    key: int
    tokens: Ids


@dataclass(frozen=True, eq=False)
class MaskedStretch:
    """A stretch in disguise.

    Attributes:
        tokens: int64, the true ids.
        input_ids: int64, what the model sees.
        is_masked: bool, which are to be predicted.
    """

    tokens: Ids
    input_ids: Ids
    is_masked: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class _Window(NamedTuple):
    """Ids with special tokens; the places to predict; their true ids."""

    input_ids: Ids
    places: Ids
    labels: Ids


def cut_stretches(
    documents: Iterable[Sequence[int]], *, width: int, max_tokens: int, takes_short: bool
) -> Iterator[Stretch]:
    """Cut documents into stretches, until there are tokens enough.

    Args:
        documents: Token ids of each, without special ones.
        width: Tokens of a stretch.
        max_tokens: At most so many tokens, with two special ones a stretch.
        takes_short: Take also what is left at a document's end.
    """
    left = max_tokens
    for ids in documents:
        for start in range(0, len(ids), width):
            tokens = np.array(ids[start : start + width], dtype=np.int64)
            if len(tokens) < width and not takes_short:
                break
            left -= len(tokens) + NUM_SPECIAL
            if left < 0:
                return
            yield Stretch(left, tokens)


def draw_stretches(sources: Sequence[Source], max_tokens: int) -> list[Stretch]:
    """Draw held-out sequences that are as long as their source cuts them.

    Args:
        sources: Of split `validation`, all of one sequence length.
        max_tokens: At most so many tokens, with special ones; one stretch at least.

    Raises:
        InputError: No held-out document is as long as that.
    """
    length = sources[0].sequence_length
    by_name = {source.name: source for source in sources}
    stretches: list[Stretch] = []
    for sequence in one_epoch(sources):
        if sequence.length < length:
            continue
        if stretches and (len(stretches) + 1) * length > max_tokens:
            break
        tokens = np.empty(length, dtype=np.int64)
        by_name[sequence.source].read_into(tokens, sequence)
        key = combine(key_of("sequence", "validation", sequence.source), sequence.draw)
        stretches.append(Stretch(int(key[0]), tokens[1:-1]))
    if not stretches:
        raise InputError(
            f"no held-out document has {length - NUM_SPECIAL} tokens or more; to validate at a length of "
            f"{length}, at least one must; hold out more, add longer documents, or leave the length out"
        )
    return stretches


def mask_stretches(stretches: Iterable[Stretch], masker: Masker, rate: float) -> list[MaskedStretch]:
    """Disguise a share of the tokens as training does, the same ones whatever the window."""
    masked = []
    for stretch in stretches:
        tokens = stretch.tokens
        keys, positions = np.full(len(tokens), stretch.key, dtype=np.uint64), np.arange(len(tokens))
        input_ids, places, _ = masker.mask(tokens, keys, positions, rate)
        is_masked = np.zeros(len(tokens), dtype=bool)
        is_masked[places] = True
        masked.append(MaskedStretch(tokens, input_ids, is_masked))
    return masked


def mask_every(
    stretches: Iterable[Stretch], mask_id: int, *, stride: int, offset: int
) -> list[MaskedStretch]:
    """Put `[MASK]` in the place of every `stride`-th token, from the one at `offset` on."""
    masked = []
    for stretch in stretches:
        is_masked = np.arange(len(stretch.tokens)) % stride == offset
        input_ids = np.where(is_masked, mask_id, stretch.tokens)
        masked.append(MaskedStretch(stretch.tokens, input_ids, is_masked))
    return masked


def window_rows(
    stretches: Iterable[MaskedStretch], length: int, special: tuple[int, int], *, row_tokens: int
) -> list[MaskedBatch]:
    """Pack the windows of a length, those without anything to predict left out.

    The last window of a stretch reaches back so far that it is as long as the others; what the one before
    has predicted, it does not predict again.

    Args:
        stretches: What to look at.
        length: Tokens of a window, with its special ones.
        special: Ids of `[CLS]` and `[SEP]`.
        row_tokens: Most tokens of a row, which is as long as one window in any case.
    """
    rows: list[MaskedBatch] = []
    waiting: list[_Window] = []
    for window in (window for stretch in stretches for window in _windows(stretch, length, special)):
        if waiting and (sum(len(each.input_ids) for each in waiting) + len(window.input_ids)) > row_tokens:
            rows.append(_pack(waiting))
            waiting = []
        waiting.append(window)
    return [*rows, _pack(waiting)] if waiting else rows


def _windows(stretch: MaskedStretch, length: int, special: tuple[int, int]) -> Iterator[_Window]:
    width, size = length - NUM_SPECIAL, len(stretch.tokens)
    for first in range(0, size, width):
        begin = max(0, min(first, size - width))
        places = first + np.flatnonzero(stretch.is_masked[first : first + width])
        if len(places):
            text = stretch.input_ids[begin : begin + width]
            input_ids = np.concatenate([special[:1], text, special[1:]])
            yield _Window(input_ids, places - begin + 1, stretch.tokens[places])


def _pack(windows: Sequence[_Window]) -> MaskedBatch:
    layout = SequenceLayout(tuple(len(window.input_ids) for window in windows))
    places = [window.places + start for window, start in zip(windows, layout.starts)]
    return MaskedBatch(
        torch.from_numpy(np.concatenate([window.input_ids for window in windows])),
        layout,
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.concatenate([window.labels for window in windows])),
    )
