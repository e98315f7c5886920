"""From sources to batches: mixing by tokens, packing, masking, and a state that continues exactly."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from modernbert import config
from modernbert.data.counter_random import combine, key_of
from modernbert.data.masking import MaskedBatch, Masker
from modernbert.data.packing import BestFitPacker
from modernbert.data.source import SequenceRef, Source
from modernbert.errors import CheckpointError, ConfigError, InputError
from modernbert.layout import SequenceLayout

_NAMED_IN_IDENTITY = 4


@dataclass(frozen=True)
class Row:
    """The sequences that are packed together.

    Attributes:
        number: Rows of the stream before it.
        sequences: In packed order.
    """

    number: int
    sequences: tuple[SequenceRef, ...]

    @cached_property
    def num_tokens(self) -> int:
        return sum(sequence.length for sequence in self.sequences)

    @property
    def identity(self) -> str:
        """What messages call it: `row 123: wiki#17+1022, … (45 sequences)`, with document and first token."""
        named = [f"{s.source}#{s.document}+{s.start}" for s in self.sequences[:_NAMED_IN_IDENTITY]]
        more = f", … ({len(self.sequences)} sequences)" if len(self.sequences) > _NAMED_IN_IDENTITY else ""
        return f"row {self.number}: {', '.join(named)}{more}"


class RowStream:
    """A stream of packed rows over weighted sources, endless if they are.

    The next sequence is always of the source that is furthest behind its share of the tokens. One that is
    used up is left out.
    The state is a few numbers and the packer's look-ahead, so going on takes the same short time
    wherever the run was.

    Args:
        sources: Each with its own name.
        weights: Each source's share of the tokens, relative to the others'.
        row_tokens: Most tokens of a row.
        look_ahead: See `BestFitPacker`.
        state: What `state()` gave, to go on with the very next sequence.

    Raises:
        ConfigError: No source, a name twice, or a weight that is not above 0.
        CheckpointError: The state is of a stream over other sources or with other settings.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        *,
        row_tokens: int,
        look_ahead: int = 1024,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        _check_mixture(sources, weights)
        self._sources = list(sources)
        self._weights = list(weights)
        self._plan = _plan(sources, weights, row_tokens, look_ahead)
        self._num_rows = 0
        self._drawn = [0] * len(sources)
        self._tokens = [0] * len(sources)
        waiting: list[SequenceRef] = []
        if state is not None:
            waiting = self._restore(state)
        self._packer = BestFitPacker(row_tokens, look_ahead=look_ahead, waiting=waiting)
        self._arrivals = self._draw()

    def take(self, num_rows: int) -> list[Row]:
        """Return the next rows.

        Raises:
            InputError: All sources are used up; or a piece of one cannot be read.
        """
        return [self._next_row() for _ in range(num_rows)]

    def state(self) -> dict[str, Any]:
        """Return what `RowStream(..., state=…)` needs to go on after the last row taken; JSON can hold it."""
        drawn = {
            source.name: {"sequences": sequences, "tokens": tokens}
            for source, sequences, tokens in zip(self._sources, self._drawn, self._tokens)
        }
        waiting = [[sequence.source, sequence.draw] for sequence in self._packer.waiting]
        return {"plan": self._plan, "rows": self._num_rows, "drawn": drawn, "waiting": waiting}

    def _next_row(self) -> Row:
        row = Row(self._num_rows, tuple(self._packer.next_row(self._arrivals)))
        if not row.sequences:
            names = ", ".join(f"`{source.name}`" for source in self._sources)
            raise InputError(
                f"after {self._num_rows} rows all of {names} is used up; there must be text for each row; "
                "add text, or let the sources repeat"
            )
        self._num_rows += 1
        return row

    def _draw(self) -> Iterator[SequenceRef]:
        """Draw on from the source with the fewest tokens for its weight, the first if some are even."""
        behind = [
            (self._tokens[i] / self._weights[i], i)
            for i, source in enumerate(self._sources)
            if source.has(self._drawn[i])
        ]
        heapq.heapify(behind)
        while behind:
            i = behind[0][1]
            sequence = self._sources[i].sequence(self._drawn[i])
            self._drawn[i] += 1
            self._tokens[i] += sequence.length
            if self._sources[i].has(self._drawn[i]):
                heapq.heapreplace(behind, (self._tokens[i] / self._weights[i], i))
            else:
                heapq.heappop(behind)
            yield sequence

    def _restore(self, state: Mapping[str, Any]) -> list[SequenceRef]:
        changed = config.differences(state.get("plan"), self._plan)
        if changed:
            raise CheckpointError(
                f"the loader's state is of another stream; these differ: {'; '.join(changed)}; "
                "restore the data and settings of that run, or begin a new run in another folder"
            )
        self._num_rows = state["rows"]
        for i, source in enumerate(self._sources):
            self._drawn[i] = state["drawn"][source.name]["sequences"]
            self._tokens[i] = state["drawn"][source.name]["tokens"]
        by_name = {source.name: source for source in self._sources}
        return [by_name[name].sequence(draw) for name, draw in state["waiting"]]


def assemble(
    row: Row, sources: Sequence[Source], masker: Masker, rate: float, phase_key: int | str
) -> MaskedBatch:
    """Read a row's tokens and mask them, on the host.

    A sequence is masked by what it is: its phase, source and draw. So each epoch masks it anew,
    and the row it lies in, the rank and the worker do not matter.

    Args:
        row: What to read.
        sources: Those that it was drawn from.
        masker: Chooses and disguises.
        rate: Share of tokens to predict.
        phase_key: Names the phase; another one, other masks.
    """
    by_name = {source.name: source for source in sources}
    keys = {name: key_of("sequence", phase_key, name) for name in by_name}
    layout = SequenceLayout(tuple(sequence.length for sequence in row.sequences))
    tokens = np.empty(layout.num_tokens, dtype=np.int64)
    for sequence, start in zip(row.sequences, layout.starts):
        by_name[sequence.source].read_into(tokens[start : start + sequence.length], sequence)
    draws = np.array([sequence.draw for sequence in row.sequences])
    source_keys = np.array([keys[sequence.source] for sequence in row.sequences], dtype=np.uint64)
    starts = np.repeat(layout.starts[:-1], layout.lengths)
    input_ids, places, labels = masker.mask(
        tokens,
        keys=np.repeat(combine(source_keys, draws), layout.lengths),
        positions=np.arange(layout.num_tokens) - starts,
        rate=rate,
    )
    return MaskedBatch(
        torch.from_numpy(input_ids), layout, torch.from_numpy(places), torch.from_numpy(labels)
    )


def validation_batches(
    sources: Sequence[Source], masker: Masker, rate: float, *, row_tokens: int, max_tokens: int
) -> list[MaskedBatch]:
    """Pack the validation splits, once, with masks that never change.

    If there is more than `max_tokens`, each source gives in proportion to its size, documents at random.

    Args:
        sources: Of split `validation`.
        masker: Chooses and disguises.
        rate: Share of tokens to predict (paper: 0.15 in evaluation, 0.30 in training).
        row_tokens: Most tokens of a batch.
        max_tokens: Most tokens of all.

    Raises:
        InputError: `max_tokens` does not hold a single sequence.
    """
    packer: BestFitPacker[SequenceRef] = BestFitPacker(row_tokens)
    arrivals = one_epoch(sources, max_tokens)
    batches: list[MaskedBatch] = []
    while sequences := packer.next_row(arrivals):
        row = Row(len(batches), tuple(sequences))
        batches.append(assemble(row, sources, masker, rate, phase_key="validation"))
    if not batches:
        raise InputError(
            f"`max_tokens` is {max_tokens}; it must hold at least one validation sequence; raise it"
        )
    return batches


def one_epoch(sources: Sequence[Source], max_tokens: float = math.inf) -> Iterator[SequenceRef]:
    """Draw one epoch of all sources side by side, as far as `max_tokens` goes."""
    behind = [(0.0, i, 0, 0) for i in range(len(sources))]
    total = 0
    while behind:
        _, i, draw, tokens = heapq.heappop(behind)
        sequence = sources[i].sequence(draw)
        total += sequence.length
        if total > max_tokens:
            return
        yield sequence
        tokens += sequence.length
        if draw + 1 < sources[i].num_sequences:
            heapq.heappush(behind, (tokens / sources[i].num_tokens, i, draw + 1, tokens))


def _check_mixture(sources: Sequence[Source], weights: Sequence[float]) -> None:
    if not sources:
        raise ConfigError("the mixture has no source; it must have at least one")
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two sources are named `{name}`; each must have its own name; rename one")
    if len(weights) != len(sources):
        raise ConfigError(f"there are {len(weights)} weights for {len(sources)} sources; give one each")
    for name, weight in zip(names, weights):
        if not 0 < weight < float("inf"):
            raise ConfigError(
                f"the weight of source `{name}` is {weight}; it must be above 0; remove a source not wanted"
            )


def _plan(
    sources: Sequence[Source], weights: Sequence[float], row_tokens: int, look_ahead: int
) -> dict[str, Any]:
    """Describe what a state holds for: with anything else, draw counters would mean other sequences."""
    described = {
        source.name: {
            "weight": float(weight),
            "seed": source.seed,
            "order": source.order,
            "sequence_length": source.sequence_length,
            "num_sequences": source.num_sequences,
            "num_tokens": source.num_tokens,
        }
        for source, weight in zip(sources, weights)
    }
    return {"row_tokens": row_tokens, "look_ahead": look_ahead, "sources": described}
