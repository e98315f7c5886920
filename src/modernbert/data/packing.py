"""Best-fit packing: sequences of any length into rows of a token budget, near the order they arrive in.

The reference (paper A.2) empties a buffer before it refills it; here the buffer slides, so that
every row has the whole look-ahead to choose from.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from modernbert.errors import ConfigError, InputError

# A sequence's key sorts by length, then by age: of two of the same length, the older sorts higher.
_AGES = 1 << 48


class HasLength(Protocol):
    """Anything with a number of tokens."""

    @property
    def length(self) -> int: ...


Packed = TypeVar("Packed", bound=HasLength)


class BestFitPacker(Generic[Packed]):
    """Fills rows from a sliding look-ahead of sequences.

    A row takes sequences in the order of arrival while they fit; then it closes its gap with the
    longest of the look-ahead that fits, again and again. The oldest one waiting always begins the
    next row, so a sequence waits at most `look_ahead` rows.

    Args:
        row_tokens: Most tokens of a row.
        look_ahead: Sequences to choose from.
        waiting: What an earlier packer had waiting, to go on where it was.
    """

    def __init__(self, row_tokens: int, *, look_ahead: int = 1024, waiting: Iterable[Packed] = ()) -> None:
        for name, value in (("row_tokens", row_tokens), ("look_ahead", look_ahead)):
            if value < 1:
                raise ConfigError(f"`{name}` is {value}; it must be at least 1")
        self.row_tokens = row_tokens
        self.look_ahead = look_ahead
        self._arrived = 0
        self._order: deque[int] = deque()  # keys by arrival; those already taken stay until they come up
        self._sorted: list[int] = []
        self._sequences: dict[int, Packed] = {}
        for sequence in waiting:
            self._add(sequence)

    @property
    def waiting(self) -> list[Packed]:
        """The sequences not yet in a row, oldest first: the packer's whole state."""
        return list(self._sequences.values())

    def next_row(self, arrivals: Iterator[Packed]) -> list[Packed]:
        """Take from `arrivals` what is needed and return the next row, empty when all is used up.

        Raises:
            InputError: A sequence is longer than a row.
        """
        row: list[Packed] = []
        space = self.row_tokens
        while True:
            self._refill(arrivals)
            while self._order and self._order[0] not in self._sequences:
                self._order.popleft()
            if not self._order or self._order[0] // _AGES > space:
                break
            space -= self._order[0] // _AGES
            row.append(self._take(bisect_left(self._sorted, self._order.popleft())))
        while fitting := bisect_right(self._sorted, (space + 1) * _AGES - 1):
            space -= self._sorted[fitting - 1] // _AGES
            row.append(self._take(fitting - 1))
        return row

    def _refill(self, arrivals: Iterator[Packed]) -> None:
        while len(self._sequences) < self.look_ahead:
            sequence = next(arrivals, None)
            if sequence is None:
                return
            self._add(sequence)

    def _add(self, sequence: Packed) -> None:
        if sequence.length > self.row_tokens:
            raise InputError(
                f"a sequence of {sequence.length} tokens does not fit a row of {self.row_tokens}; "
                "shorten the sequences or raise `row_tokens`"
            )
        self._arrived += 1
        key = sequence.length * _AGES + _AGES - self._arrived
        insort(self._sorted, key)
        self._order.append(key)
        self._sequences[key] = sequence

    def _take(self, place: int) -> Packed:
        return self._sequences.pop(self._sorted.pop(place))
