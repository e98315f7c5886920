"""The one packed form of a batch: the tokens of all sequences in a row, a `SequenceLayout` beside them.

Letters used in shapes throughout the package: `T` packed tokens, `B` sequences, `N` heads,
`H` head width, `D` model width, `F` feed-forward width, `V` vocabulary, `M` masked positions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from modernbert.errors import InputError

Derived = TypeVar("Derived")


@dataclass(frozen=True, eq=False)
class SequenceLayout:
    """Where each sequence lies in a packed row of tokens.

    Lengths stay on the host, so that no backend waits for the device to learn a size.

    Attributes:
        lengths: Tokens of each sequence, in packed order; each at least 1. Host integers, `B` of them.
        device: Where `offsets`, `positions` and `sequence_ids` live.
    """

    lengths: tuple[int, ...]
    device: torch.device = torch.device("cpu")
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.lengths:
            raise InputError("the batch holds no sequence; it must hold at least one")
        if min(self.lengths) < 1:
            empty = self.lengths.index(min(self.lengths))
            raise InputError(
                f"sequence {empty} has length {self.lengths[empty]}; each must have at least one token; "
                "drop it or give it its special tokens"
            )

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> SequenceLayout:
        """Build the layout of sequences of these lengths."""
        return cls(tuple(int(length) for length in lengths), torch.device(device))

    @property
    def num_sequences(self) -> int:
        return len(self.lengths)

    @cached_property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First token of each sequence and, last, the number of tokens: `offsets` on the host."""
        return (0, *accumulate(self.lengths))

    @cached_property
    def offsets(self) -> Tensor:
        """int32 `[B + 1]`: sequence `b` is tokens `offsets[b]` up to `offsets[b + 1]`."""
        return self._uploaded(torch.tensor(self.starts, dtype=torch.int32))

    @cached_property
    def sequence_ids(self) -> Tensor:
        """int32 `[T]`: the index of the sequence that each token belongs to."""
        return self._uploaded(self._host_sequence_ids.to(torch.int32))

    @cached_property
    def positions(self) -> Tensor:
        """int64 `[T]`: each token's place in its own sequence, counted from 0."""
        starts = torch.tensor(self.starts[:-1])[self._host_sequence_ids]
        return self._uploaded(torch.arange(self.num_tokens) - starts)

    @property
    def _host_sequence_ids(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(self.num_sequences), torch.tensor(self.lengths))

    def _uploaded(self, host: Tensor) -> Tensor:
        """Copy a host tensor to the layout's device; from pinned memory, so that the host need not wait."""
        pinned = host.pin_memory() if self.device.type == "cuda" else host
        return pinned.to(self.device, non_blocking=True)

    def worked_out(self) -> SequenceLayout:
        """Work out now what a compiled model reads of a layout, so that it finds tensors and numbers there.

        Else torch.compile would trace how they come of the lengths, and compile anew for other lengths.
        """
        for name in ("num_tokens", "longest", "offsets", "positions"):
            getattr(self, name)
        return self

    def to(self, device: torch.device | str) -> SequenceLayout:
        """Return this layout with its tensors on `device`."""
        target = torch.device(device)
        return self if target == self.device else SequenceLayout(self.lengths, target)

    def derive(self, key: Hashable, build: Callable[[SequenceLayout], Derived]) -> Derived:
        """Return `build(self)`, computed once: what a backend needs of a layout, all layers share."""
        if key not in self._derived:
            self._derived[key] = build(self)
        return self._derived[key]  # type: ignore[no-any-return]

    def split(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Cut a packed tensor `[T, ...]` into one `[length, ...]` view a sequence."""
        return torch.split(packed, list(self.lengths))


def pack(
    sequences: Sequence[Sequence[int] | Tensor], device: torch.device | str = "cpu"
) -> tuple[Tensor, SequenceLayout]:
    """Lay sequences of token ids in a row.

    Args:
        sequences: `B` sequences of token ids, each of at least one token.
        device: Where the result lives.

    Returns:
        int64 ids `[T]` and their layout.

    Raises:
        InputError: No sequence, or one without tokens.
    """
    rows = [torch.as_tensor(sequence, dtype=torch.int64).cpu() for sequence in sequences]
    layout = SequenceLayout.of([len(row) for row in rows], device)
    return torch.cat(rows).to(device), layout
