"""Files to texts whose words have tags: CoNLL, words with tags, or texts with spans."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from modernbert.data import corpus
from modernbert.data.columns import Columns, tag_columns
from modernbert.data.records import Records, Remarks, TagRecord
from modernbert.data.remote import is_url
from modernbert.data.table_rows import (
    TABLE_SUFFIXES,
    Table,
    TableRow,
    file_kind,
    lines_of,
    read_table,
    read_whole,
)
from modernbert.data.tag_schemes import OUTSIDE, find_scheme, tag_names, to_bio
from modernbert.errors import InputError, nearest

CONLL_SUFFIXES = (".conll", ".txt", ".iob", ".bio")

NO_WORDS = "text without a word, left out"
BLANK_WORD = "word without a character to be seen"
MENDED = "tag inside of an entity that begins one, read as its beginning"

_DOCUMENT = "-DOCSTART-"
_COMMENT = re.compile(r"#\s+(id|sent_id|text|newdoc|newpar|global)\b")
_SPACE = re.compile(r"[ \t]+")
_SPAN_LABELS = ("label", "type", "entity", "tag", "entity_group")


def read_tags(
    path: str | Path, columns: Columns | None = None, *, names: Sequence[str] | None = None
) -> Records[TagRecord]:
    """Read texts whose words have tags.

    Args:
        path: `.conll`, `.txt`, `.iob` or `.bio`, also with `.gz` or `.zst` behind: a line is a word and,
            behind spaces or a tab, its tag, with anything between; a blank line ends a sentence. Or what
            `table_rows.read_table` reads, with lists of words and of tags, or with texts and spans: objects
            with `start`, `end` (characters, the end not counted in) and `label`, or lists of the three. The
            words of such a text are what stands between spaces and punctuation marks, which are words too,
            cut where a span begins or ends.
        columns: Those to read; the rest is guessed, see `columns.tag_columns`.
        names: What tags that are numbers stand for; else what the file says, else `LABEL_0`, `LABEL_1` …

    Raises:
        InputError: The file or a row of it cannot be used. The message names file and line.
    """
    found = Columns()
    if not is_url(path) and file_kind(Path(path).name, (*CONLL_SUFFIXES, *TABLE_SUFFIXES)) in CONLL_SUFFIXES:
        sentences = list(read_conll(Path(path)))
    else:
        table = read_table(path)
        found = tag_columns(table.columns, columns or Columns(), origin=table.path)
        sentences = list(_read_rows(table, found, names))
    remarks = Remarks()
    scheme = find_scheme(sentence.tags for sentence in sentences)
    records = []
    for sentence in sentences:
        if not sentence.words:
            remarks.add(NO_WORDS, sentence.place)
            continue
        tags, num_mended = to_bio(sentence.tags, scheme)
        for _ in range(num_mended):
            remarks.add(MENDED, sentence.place)
        for start, end in sentence.words:
            if not sentence.text[start:end].strip():
                remarks.add(BLANK_WORD, sentence.place)
        records.append(replace(sentence, tags=tags))
    if not records:
        raise InputError(
            f"`{path}` holds no word with a tag; there must be one; check that it is the right file"
        )
    return Records(path=str(path), records=records, columns=found, remarks=remarks, scheme=scheme)


def check_tags(train: Sequence[TagRecord], *others: Sequence[TagRecord]) -> None:
    """Make sure that there is something to learn, and that other files have no further tags.

    Raises:
        InputError: There is one tag only, or a tag, or kind of entity, that only another file has. The
            message names file and line.
    """
    known = tag_names(record.tags for record in train)
    if len(known) < 2:
        raise InputError(
            f"`{train[0].place}`: this and all other words to learn from have the tag `{known[0]}`; there "
            "must be at least two different ones; give a file with others too"
        )
    for record in (record for records in others for record in records):
        for tag in record.tags:
            if tag not in known:
                near = nearest(tag, known)
                hint = f"; did you mean `{near}`?" if near is not None else ""
                raise InputError(
                    f"`{record.place}`: the tag `{tag}` is in no example to learn from{hint}; these have: "
                    f"{', '.join(known[:20])}; add examples with it there, or remove this one"
                )


def words_of(text: str, cuts: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Return first character of each word and the one after its last.

    Words are what stands between spaces and punctuation marks or symbols, each of which is a word too.

    Args:
        text: Any.
        cuts: Characters at which a word begins or ends, whatever stands there.
    """
    breaks = set(cuts)
    words: list[tuple[int, int]] = []
    begin = 0
    for place, character in enumerate(text):
        is_space = character.isspace()
        is_mark = not is_space and unicodedata.category(character)[0] in "PS"
        if begin < place and (is_space or is_mark or place in breaks):
            words.append((begin, place))
            begin = place
        if is_mark:
            words.append((place, place + 1))
        if is_space or is_mark:
            begin = place + 1
    return [*words, (begin, len(text))] if begin < len(text) else words


# CoNLL


@dataclass
class _Sentence:
    """A sentence while its lines are read."""

    line: int = 0
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


def read_conll(path: Path) -> Iterator[TagRecord]:
    """Yield the sentences of a file of a word a line, their tags as they stand; see `read_tags`.

    Raises:
        InputError: The file is damaged, or a line is not a word and a tag.
    """
    sentence = _Sentence()
    for number, line in enumerate(lines_of(read_whole(path)), 1):
        line = line.strip(" \t\r\n")
        if not line or line.startswith(_DOCUMENT):
            if sentence.words:
                yield _from_words(sentence.words, sentence.tags, f"{path}, line {sentence.line}")
            sentence = _Sentence()
            continue
        if not sentence.words and _COMMENT.match(line):
            continue
        fields = line.split("\t") if "\t" in line else _SPACE.split(line)
        if len(fields) < 2:
            raise InputError(
                f"`{path}, line {number}` is {line[:40]!r}; it must be a word and, behind a space or a tab, "
                "its tag; mend it"
            )
        sentence.line = sentence.line or number
        sentence.words.append(fields[0])
        sentence.tags.append(fields[-1].split()[-1])  # a word may have spaces in it, a tag has not
    if sentence.words:
        yield _from_words(sentence.words, sentence.tags, f"{path}, line {sentence.line}")


def _from_words(words: Sequence[str], tags: Sequence[str], place: str) -> TagRecord:
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    places = tuple((start, start + len(word)) for start, word in zip(starts, words))
    return TagRecord(text=" ".join(words), words=places, tags=tuple(tags), place=place)


# Tables


def _read_rows(table: Table, columns: Columns, names: Sequence[str] | None) -> Iterator[TagRecord]:
    if columns.words is None:
        assert columns.text is not None
        assert columns.spans is not None
        yield from (_from_spans(row, columns.text, columns.spans) for row in table.rows)
        return
    assert columns.tags is not None
    names = names if names is not None else table.class_names.get(columns.tags)
    for row in table.rows:
        words = [corpus.check_text(word, columns.words, row.place) for word in _list(row, columns.words)]
        tags = [_tag(tag, names, columns.tags, row.place) for tag in _list(row, columns.tags)]
        if len(words) != len(tags):
            raise InputError(
                f"`{row.place}` has {len(words)} words (`{columns.words}`) and {len(tags)} tags "
                f"(`{columns.tags}`); each word must have one tag; mend it"
            )
        yield _from_words(words, tags, row.place)


def _list(row: TableRow, column: str) -> list[Any]:
    value = row.structure(column)
    if not isinstance(value, list | tuple):
        raise InputError(f"`{row.place}`: `{column}` is {repr(value)[:40]}; it must be a list; mend it")
    return list(value)


def _tag(tag: object, names: Sequence[str] | None, column: str, place: str) -> str:
    if isinstance(tag, str) and tag.strip():
        return tag.strip()
    if not isinstance(tag, int) or isinstance(tag, bool) or tag < 0:
        raise InputError(
            f"`{place}`: `{column}` has {tag!r}; a tag must be a string or a number from 0 on; mend it"
        )
    if names is None:
        return f"LABEL_{tag}"
    if tag >= len(names):
        raise InputError(
            f"`{place}`: `{column}` has {tag}, and there are {len(names)} names of tags, counted from 0; "
            "give a name for each, or mend it"
        )
    return names[tag]


# Spans


def _from_spans(row: TableRow, text_column: str, spans_column: str) -> TagRecord:
    text = row.text(text_column)
    spans = sorted(_span(span, text, spans_column, row.place) for span in _list(row, spans_column))
    for (start, end, label), following in pairwise(spans):
        if following[0] < end:
            raise InputError(
                f"`{row.place}`: the spans {start} to {end} (`{label}`) and {following[0]} to {following[1]} "
                f"(`{following[2]}`) overlap; a character must be in one span at most; remove one"
            )
    words = words_of(text, [edge for start, end, _ in spans for edge in (start, end)])
    tags = [OUTSIDE] * len(words)
    for start, end, label in spans:
        inside = [index for index, (first, _) in enumerate(words) if start <= first < end]
        if not inside:
            raise InputError(
                f"`{row.place}`: the span {start} to {end} (`{label}`) holds {text[start:end]!r}; it must "
                "hold more than space; mend or remove it"
            )
        for index in inside:
            tags[index] = f"{'B' if index == inside[0] else 'I'}-{label}"
    return TagRecord(text=text, words=tuple(words), tags=tuple(tags), place=row.place)


def _span(span: object, text: str, column: str, place: str) -> tuple[int, int, str]:
    values: Sequence[Any] = ()
    if isinstance(span, dict):
        label = next((span[name] for name in _SPAN_LABELS if name in span), None)
        values = (span.get("start"), span.get("end"), label)
    elif isinstance(span, list | tuple):
        values = span
    if [type(value) for value in values] != [int, int, str] or not values[2].strip():
        raise InputError(
            f"`{place}`: `{column}` has {repr(span)[:60]}; a span must be an object with whole numbers "
            "`start` and `end` and a `label`, or a list of the three; mend it"
        )
    start, end, label = values
    if not 0 <= start <= end <= len(text):
        raise InputError(
            f"`{place}`: the span {start} to {end} (`{label}`) is not within the text, which has {len(text)} "
            "characters; it must begin at 0 or later and end no later than the text; mend it"
        )
    if start == end:
        raise InputError(
            f"`{place}`: the span {start} to {end} (`{label}`) is empty; its end must be greater than its "
            "start, as the character at the end is not counted in; mend or remove it"
        )
    return start, end, label.strip()
