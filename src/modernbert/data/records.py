"""Labelled examples as files hold them, each with its place, before any tokenizer has seen them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from modernbert.data.columns import Columns, PairColumns

# What a text is labelled with: a class, a number, several classes, or several numbers.
Label = str | float | tuple[str, ...] | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TextRecord:
    """A text or a pair, and what it is.

    Attributes:
        texts: One or two.
        label: None where it is not known.
        place: `train.csv, line 7`.
    """

    texts: tuple[str, ...]
    label: Label | None
    place: str


@dataclass(frozen=True, kw_only=True)
class TagRecord:
    """A text whose words have tags.

    Attributes:
        text: Words that came as words are joined by spaces.
        words: First character of each word and the one after its last.
        tags: One a word; of entities in BIO.
        place: `train.conll, line 7`.
    """

    text: str
    words: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]
    place: str


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """A question on a text.

    Attributes:
        id: The name of the question.
        question: What is asked.
        context: The text in which the answer stands.
        answers: First character and text of each answer; none: it is not answered there.
        place: `train.json, question 56be4db0`.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...]
    place: str


@dataclass(frozen=True, kw_only=True)
class ChoiceRecord:
    """Something to choose from.

    Attributes:
        prompt: What the choices follow.
        choices: At least two.
        label: Index of the right one; None where it is not known.
        place: `train.jsonl, line 7`.
    """

    prompt: str
    choices: tuple[str, ...]
    label: int | None
    place: str


@dataclass(frozen=True, kw_only=True)
class PairRecord:
    """A query and what it should find, or two texts that belong together.

    Attributes:
        query: What is asked.
        positive: What it should find.
        negatives: What it should not find; more of it come from the other pairs of a batch.
        place: `train.jsonl, line 7`, or the place of a document.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    place: str


@dataclass(frozen=True, kw_only=True)
class CandidateRecord:
    """A query, and documents to put in order for it.

    Attributes:
        query: What is asked.
        documents: At least one.
        grades: How relevant each is: 0 or less not at all, more the more.
        is_ordered: Whether the documents came in an order that says something.
        place: `test.jsonl, line 7`.
    """

    query: str
    documents: tuple[str, ...]
    grades: tuple[int, ...]
    is_ordered: bool
    place: str


class Remark(NamedTuple):
    """Something about examples that is no error, but should be known.

    Attributes:
        kind: What it is, in words that go with a number.
        number: How often.
        first: Where first.
    """

    kind: str
    number: int
    first: str

    def summary(self) -> str:
        """Say it in a line."""
        return f"{self.number:,} × {self.kind} (first: {self.first})"


class Remarks:
    """Remarks, counted by kind."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._firsts: dict[str, str] = {}

    def add(self, kind: str, place: str) -> None:
        """Count a remark."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._firsts.setdefault(kind, place)

    def __iter__(self) -> Iterator[Remark]:
        """Yield each kind, the first to come up first."""
        return (Remark(kind, number, self._firsts[kind]) for kind, number in self._counts.items())


Record = TypeVar("Record", TextRecord, TagRecord, AnswerRecord, ChoiceRecord, PairRecord, CandidateRecord)


@dataclass(frozen=True, kw_only=True)
class Records(Generic[Record]):
    """What a file held.

    Attributes:
        path: The file, as it was named.
        records: At least one.
        columns: Which column was read as what; all None where the format has no columns.
        remarks: What should be known.
        class_names: The names of the label's ids, if the file tells and has ids.
        scheme: How the tags of entities were written.
    """

    path: str
    records: list[Record]
    columns: Columns | PairColumns
    remarks: Remarks
    class_names: tuple[str, ...] = ()
    scheme: str | None = None
