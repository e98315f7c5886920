"""A corpus as an endless stream of sequences: chunks of its documents, in a new order every epoch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from modernbert.data.counter_random import combine, key_of, permute, uniform
from modernbert.data.shards import TokenShards
from modernbert.errors import ConfigError, InputError, did_you_mean

Overflow = Literal["chunk", "truncate"]
Split = Literal["train", "validation"]

_BLOCK = 1024  # sequences whose place is computed at once
NUM_SPECIAL = 2  # [CLS] before, [SEP] behind
_PIECE = 1 << 20  # documents that are counted at once


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One part of a mixture.

    Attributes:
        name: What reports and errors call it.
        path: Folder of token shards, or the text that they are to be made of; a URL of either.
        weight: Its share of the tokens, relative to the other sources' weights.
        text_key: Name of the text in its JSON lines, Parquet or hub data set, if not that of all.
        max_tokens: So many tokens are made of its text; None: of all of it.
    """

    name: str
    path: str
    weight: float = 1.0
    text_key: str | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError(f"the source with path `{self.path}` has an empty `name`; name it")
        if self.name in (".", "..") or set(self.name) & set("/\\"):
            raise ConfigError(f"`name` is `{self.name}`; it must be a plain name: a folder has it")
        if not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"`weight` of source `{self.name}` is {self.weight}; it must be above 0; "
                "remove a source that is not wanted"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(
                f"`max_tokens` of source `{self.name}` is {self.max_tokens}; it must be at least 1, or null"
            )


class SequenceRef(NamedTuple):
    """Where a sequence is read from.

    Attributes:
        source: Name of its source.
        draw: How many sequences its source had given before it; with the source it is unique in a run.
        document: Index of its document in the source's shards.
        start: Its first token in the document.
        length: Its tokens, with `[CLS]` and `[SEP]`.
    """

    source: str
    draw: int
    document: int
    start: int
    length: int


class Source:
    """The sequences of one corpus: `[CLS] chunk [SEP]`, in an order that any draw can look up.

    Args:
        name: Names the source in mixtures, states and messages.
        shards: Its tokens.
        sequence_length: Most tokens of a sequence, with its two special ones.
        cls_id: Begins a sequence.
        sep_id: Ends it.
        overflow: Cut a longer document in chunks that are sequences of their own, or keep only the
            first, as the reference does.
        split: Which documents to take. A document's split depends on the seed and its index alone.
        validation_fraction: Share of documents held out; 0 for no such split.
        seed: Another seed, another order and split.
        order: Names an order of its own under this seed, for a phase that goes through the same split again.
        repeats: Whether another epoch follows the first.

    Attributes:
        num_sequences: Sequences of an epoch.
        num_tokens: Their tokens, with the special ones.

    Raises:
        ConfigError: A value that cannot be, or a validation split of nothing.
        InputError: Too few documents to hold one out.
    """

    def __init__(
        self,
        name: str,
        shards: TokenShards,
        *,
        sequence_length: int,
        cls_id: int,
        sep_id: int,
        overflow: Overflow = "chunk",
        split: Split = "train",
        validation_fraction: float = 0.0,
        seed: int,
        order: str = "",
        repeats: bool = True,
    ) -> None:
        if overflow not in get_args(Overflow):
            raise ConfigError(f"`overflow` is {overflow!r}{did_you_mean(overflow, get_args(Overflow))}")
        if sequence_length <= NUM_SPECIAL:
            raise ConfigError(
                f"`sequence_length` is {sequence_length}; it must be at least {NUM_SPECIAL + 1}: "
                "[CLS], one token of text, [SEP]"
            )
        self.name = name
        self.seed = seed
        self.order = order
        self.repeats = repeats
        self.sequence_length = sequence_length
        self._shards = shards
        self._special = cls_id, sep_id
        self._chunk_tokens = sequence_length - NUM_SPECIAL
        self._order_key = key_of("order", seed, name, split, order)
        self._cuts = overflow == "chunk"
        held_out = _held_out(name, shards.num_documents, split, validation_fraction, seed)
        self._firsts, self.num_tokens = self._count(held_out, split)
        self.num_sequences = int(self._firsts[-1])
        self._block_number = -1
        self._block: list[SequenceRef] = []

    def has(self, draw: int) -> bool:
        """Whether there is a sequence of this draw."""
        return self.repeats or draw < self.num_sequences

    def sequence(self, draw: int) -> SequenceRef:
        """Return the sequence of this draw, counted from 0 for ever: every epoch has each once."""
        number, place = divmod(draw, _BLOCK)
        if number != self._block_number:
            self._block = self._compute_block(number)
            self._block_number = number
        return self._block[place]

    def read_into(self, row: NDArray[np.int64], sequence: SequenceRef) -> None:
        """Write a sequence, with its special tokens, over `row` (int64 `[length]`)."""
        row[0], row[-1] = self._special
        stop = sequence.start + sequence.length - NUM_SPECIAL
        row[1:-1] = self._shards.read(sequence.document, sequence.start, stop)

    def _count(self, held_out: NDArray[np.bool_] | None, split: Split) -> tuple[NDArray[Any], int]:
        """Return the sequences before each document, and in all, and the tokens of all.

        In pieces, for a corpus may have a thousand million documents.
        """
        chunk, num_tokens = np.uint32(self._chunk_tokens), 0
        counts = np.zeros(self._shards.num_documents + 1, dtype=np.uint32)
        for first in range(0, self._shards.num_documents, _PIECE):
            piece = slice(first, first + _PIECE)
            lengths = self._shards.lengths[piece]
            if not self._cuts:
                lengths = np.minimum(lengths, chunk)
            if held_out is not None:
                lengths = lengths * (held_out[piece] == (split == "validation"))
            here = (lengths + (chunk - np.uint32(1))) // chunk
            counts[1:][piece] = here
            num_tokens += int(lengths.sum()) + NUM_SPECIAL * int(here.sum())
        is_small = int(counts.sum(dtype=np.int64)) < 1 << 32
        return np.cumsum(counts, dtype=np.uint32 if is_small else np.int64), num_tokens

    def _compute_block(self, number: int) -> list[SequenceRef]:
        draws = np.arange(number * _BLOCK, (number + 1) * _BLOCK)
        epochs, indices = np.divmod(draws, self.num_sequences)
        places = permute(indices, self.num_sequences, combine(self._order_key, epochs))
        # A document of the other split has no sequence, so none is found. Of one dtype, or all is converted.
        documents = np.searchsorted(self._firsts, places.astype(self._firsts.dtype), side="right") - 1
        starts = (places - self._firsts[documents]) * self._chunk_tokens
        lengths = np.minimum(self._shards.lengths[documents] - starts, self._chunk_tokens) + NUM_SPECIAL
        columns = (draws, documents, starts, lengths)
        return [SequenceRef(self.name, *row) for row in zip(*(column.tolist() for column in columns))]


def _held_out(
    name: str, num_documents: int, split: Split, fraction: float, seed: int
) -> NDArray[np.bool_] | None:
    """Say of each document whether it is held out; None if none is."""
    if not 0 <= fraction < 1:
        raise ConfigError(f"`validation_fraction` is {fraction}; it must be at least 0 and below 1")
    if split not in ("train", "validation"):
        raise ConfigError(f"`split` is {split!r}{did_you_mean(split, ('train', 'validation'))}")
    if fraction == 0:
        if split == "validation":
            raise ConfigError(
                f"`validation_fraction` is 0, so source `{name}` has no validation split; raise it"
            )
        return None
    if num_documents < 2:
        raise InputError(
            f"source `{name}` has {num_documents} document; to hold one out for validation it must have "
            "at least 2; add documents, split this one, or set `validation_fraction` to 0"
        )
    return _draw_held_out(num_documents, fraction, seed)


@functools.lru_cache(maxsize=32)  # the same for all phases
def _draw_held_out(num_documents: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    held_out = np.empty(num_documents, dtype=bool)
    lowest, highest = (1.0, 0), (0.0, 0)  # draws and their documents
    for first in range(0, num_documents, _PIECE):
        draws = uniform(key_of("split", seed), np.arange(first, min(first + _PIECE, num_documents)))
        held_out[first : first + _PIECE] = draws < fraction
        lowest = min(lowest, (float(draws.min()), first + int(draws.argmin())))
        highest = max(highest, (float(draws.max()), first + int(draws.argmax())))
    held_out[lowest[1]], held_out[highest[1]] = True, False  # at least one document on each side
    return held_out
