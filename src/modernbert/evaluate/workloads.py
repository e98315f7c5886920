"""The four synthetic sets of the efficiency table: short or long documents, of one length or of many.

As published (paper 3.7): 512 or 8,192 tokens; or lengths around half of that, normal with a standard
deviation of an eighth; ids drawn evenly from the same range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Document = NDArray[np.int64]

SETS = ("short-fixed", "short-variable", "long-fixed", "long-variable")
LONGEST = {"short": 512, "long": 8192}
"""Tokens of a document at most."""
PUBLISHED_DOCUMENTS = 8192
"""Of each set."""
SHORTEST = 16
FEWEST_DOCUMENTS = 2
FIRST_ID, END_ID = 100, 16_000
SEED = 42


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One set as it is measured.

    Attributes:
        name: Of `SETS`.
        longest: Tokens that a document may have; fewer than published where the set is cut.
        documents: Token ids of each.
    """

    name: str
    longest: int
    documents: tuple[Document, ...]

    @property
    def is_fixed(self) -> bool:
        return self.name.endswith("-fixed")

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self.documents))

    @property
    def num_tokens(self) -> int:
        """Real tokens: padding is not among them."""
        return sum(self.lengths)

    def describe(self) -> str:
        """Say what is in it, and what of the published set is not."""
        shown = f"{len(self.documents):,} documents, {self.num_tokens:,} tokens"
        longest = LONGEST[self.name.partition("-")[0]]
        cut = f", cut to {self.longest:,} tokens from {longest:,}" if self.longest < longest else ""
        return f"{self.name}: {shown} (published: {PUBLISHED_DOCUMENTS:,} documents{cut})"


def draw_workload(name: str, vocab_size: int, *, tokens: int, limit: int) -> Workload:
    """Draw a set.

    Args:
        name: Of `SETS`.
        vocab_size: Of the model.
        tokens: About so many places of longest documents. Where two of them do not fit, they are cut.
        limit: Tokens of the longest sequence that the model takes.
    """
    longest = min(LONGEST[name.partition("-")[0]], limit, max(tokens // FEWEST_DOCUMENTS, SHORTEST))
    count = min(max(tokens // longest, FEWEST_DOCUMENTS), PUBLISHED_DOCUMENTS)
    draw = np.random.default_rng(SEED)
    lengths = np.full(count, longest)
    if name.endswith("-variable"):
        drawn = draw.normal(longest / 2, longest / 8, size=count).round().astype(np.int64)
        lengths = drawn.clip(min(SHORTEST, longest), longest)
    documents = tuple(draw_document(int(length), vocab_size, draw) for length in lengths)
    return Workload(name=name, longest=longest, documents=documents)


def draw_document(length: int, vocab_size: int, draw: np.random.Generator) -> Document:
    """Draw token ids from the published range, as far as the vocabulary reaches."""
    end = min(END_ID, vocab_size)
    return draw.integers(min(FIRST_ID, end // 2), end, size=length)


def in_batches(documents: Sequence[Document], count: int) -> list[list[Document]]:
    """Cut documents, in their order, into batches of so many."""
    return [list(documents[start : start + count]) for start in range(0, len(documents), count)]
