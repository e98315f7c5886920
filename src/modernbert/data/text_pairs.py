"""Pairs that a corpus gives by itself: a title and text below it, and passages that follow each other.

How many pairs a document gives depends on its text alone; which of its passages they are, on a key. So each
epoch sees others, as many, and the same whenever it is read again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from modernbert.data.corpus import Document
from modernbert.data.counter_random import permute, uniform
from modernbert.data.records import PairRecord
from modernbert.data.sentences import sentence_starts
from modernbert.errors import ConfigError

# A line of its own, an empty line below it, that begins like a word and does not end like a sentence.
_TITLE = re.compile(r"\s*+(\w[^\n]{0,118}[^\s.,;:!?…=({}\[\]])[ \t]*\n\s*\n")


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Which pairs a document gives.

    Attributes:
        titles: Whether its title and a passage below it are one, if its first line looks like a title.
        neighbours: At most so many pairs of a passage and the one that follows it.
        passage_characters: Passages are whole sentences up to about so many characters.

    Raises:
        ConfigError: A number out of range, or no pairs at all.
    """

    titles: bool = True
    neighbours: int = 1
    passage_characters: int = 800

    def __post_init__(self) -> None:
        if self.neighbours < (0 if self.titles else 1):
            least = "0" if self.titles else "1 without `titles`, as there would be no pairs"
            raise ConfigError(f"`neighbours` is {self.neighbours}; it must be at least {least}")
        if self.passage_characters < 1:
            raise ConfigError(f"`passage_characters` is {self.passage_characters}; it must be at least 1")


def document_pairs(document: Document, settings: PairSettings, key: int) -> Iterator[PairRecord]:
    """Yield the pairs of a document.

    Args:
        document: As `corpus.read_documents` gives it.
        settings: Which pairs.
        key: Draws the passages; another key, others, but as many.
    """
    title, body = split_title(document.text)
    passages = cut_passages(body, settings.passage_characters)
    place = document.origin
    if title and settings.titles and passages:
        # The square leans to the beginning, where a text says what it is about.
        drawn = int(len(passages) * uniform(key, 0)[0] ** 2)
        yield PairRecord(query=title, positive=passages[drawn], place=place)
    count = len(passages) - 1
    if count > 0 and settings.neighbours:
        drawn_pairs = permute(range(min(count, settings.neighbours)), count, key)
        for index in drawn_pairs.tolist():
            yield PairRecord(query=passages[index], positive=passages[index + 1], place=place)


def split_title(text: str) -> tuple[str, str]:
    """Return the title that a text begins with, empty if it has none, and the rest."""
    match = _TITLE.match(text)
    return (match[1], text[match.end() :]) if match else ("", text)


def cut_passages(text: str, characters: int) -> list[str]:
    """Cut a text into passages of whole sentences, of at most so many characters if no sentence has more."""
    passages, start, last = [], 0, 0
    for end in [*sentence_starts(text)[1:], len(text)]:
        if end - start > characters and last > start:
            passages.append(text[start:last])
            start = last
        last = end
    passages.append(text[start:])
    return [stripped for passage in passages if (stripped := passage.strip())]
