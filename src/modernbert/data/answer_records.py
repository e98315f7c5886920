"""Files to questions with answers that stand in a text: SQuAD 1.1 and 2.0, or a question a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modernbert.data.columns import Columns, answer_columns
from modernbert.data.records import AnswerRecord, Records, Remarks
from modernbert.data.table_rows import TableRow, read_table
from modernbert.errors import InputError

MOVED = "answer that stands a little elsewhere than said, moved there"
SEARCHED = "answer without a place that the text has more than once, taken where it is first"
EMPTY_QUESTION = "empty question"
EMPTY_CONTEXT = "empty context"
DUPLICATE = "question that is there before, on the same text"

# How far from where an answer is said to stand it is looked for.
MOST_CHARACTERS_OFF = 100

_PARAGRAPHS = "paragraphs"


def read_answers(
    path: str | Path, columns: Columns | None = None, *, labelled: bool = True
) -> Records[AnswerRecord]:
    """Read questions with answers.

    Args:
        path: SQuAD's JSON, or what `table_rows.read_table` reads, a question a row. Answers are `{"text":
            [...], "answer_start": [...]}` or a list of `{"text", "answer_start"}`, characters counted from 0;
            or one string, which is looked for in the context if no column `answer_start` tells its place.
            None, or where `is_impossible` is true: there is no answer.
        columns: Those to read; the rest is guessed, see `columns.answer_columns`.
        labelled: Whether there must be a column of answers.

    Raises:
        InputError: The file or a row of it cannot be used, or an answer is not in its text where it is said
            to be, or near. The message names file and line, or the question's id.
    """
    table = read_table(path)
    found = Columns()
    remarks = Remarks()
    if _PARAGRAPHS in table.columns:
        rows = [row for article in table.rows for row in _questions(article, table.path)]
        names = Columns(question="question", context="context", answers="answers", id="id")
    else:
        rows = list(table.rows)
        names = found = answer_columns(
            table.columns, columns or Columns(), origin=table.path, labelled=labelled
        )
    records = [_record(row, names, number, remarks) for number, row in enumerate(rows, 1)]
    if not records:
        raise InputError(f"`{path}` holds no question; there must be one; check that it is the right file")
    _remark(records, remarks)
    return Records(path=table.path, records=records, columns=found, remarks=remarks)


# SQuAD


def _questions(article: TableRow, path: str) -> Iterator[TableRow]:
    """Yield the questions of an article of SQuAD as rows."""
    for paragraph in _objects(article.values.get(_PARAGRAPHS), _PARAGRAPHS, article.place):
        for question in _objects(paragraph.get("qas"), "qas", article.place):
            values = {"context": paragraph.get("context"), **question}
            place = f"{path}, question {question['id']}" if "id" in question else article.place
            yield TableRow(values=values, place=place)


def _objects(value: object, key: str, place: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(
            f"`{place}`: `{key}` is {repr(value)[:40]}; it must be a list of objects, as in SQuAD; mend the "
            "file"
        )
    return value


# Rows


def _record(row: TableRow, columns: Columns, number: int, remarks: Remarks) -> AnswerRecord:
    assert columns.question is not None
    assert columns.context is not None
    context = row.text(columns.context)
    name = row.values.get(columns.id) if columns.id is not None else None
    return AnswerRecord(
        id=str(number if name is None else name),
        question=row.text(columns.question),
        context=context,
        answers=tuple(
            _placed(text, start, context, row.place, remarks)
            for text, start in _answers(row, columns.answers)
        ),
        place=row.place,
    )


def _answers(row: TableRow, column: str | None) -> list[tuple[str, int | None]]:
    """Return the answers of a row and where they are said to stand."""
    if column is None or _is_true(row.values.get("is_impossible")):
        return []
    value = row.structure(column)
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise InputError(
                f"`{row.place}`: `{column}` is {repr(value)[:60]}; it must have `text` and `answer_start`, "
                "lists of the same length; mend it"
            )
        pairs = list(zip(texts, starts))
    elif isinstance(value, list):
        pairs = [
            (it.get("text"), it.get("answer_start")) if isinstance(it, Mapping) else (it, None)
            for it in value
        ]
    else:
        pairs = [] if value is None or value == "" else [(value, row.values.get("answer_start"))]
    return [(_answer_text(text, column, row.place), _start(start, row.place)) for text, start in pairs]


def _is_true(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() == "true")


def _answer_text(text: object, column: str, place: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"`{place}`: an answer in `{column}` is {repr(text)[:40]}; it must be a string that is not "
            "empty; mend it, or give no answers where there is none"
        )
    return text


def _start(start: object, place: str) -> int | None:
    if start is None or start == "":
        return None
    if isinstance(start, int) and not isinstance(start, bool):
        return start
    if isinstance(start, str) and start.strip().isdecimal():
        return int(start)
    raise InputError(
        f"`{place}`: an `answer_start` is {start!r}; it must be a whole number, the answer's first "
        "character; mend it"
    )


def _placed(text: str, start: int | None, context: str, place: str, remarks: Remarks) -> tuple[int, str]:
    """Return where an answer really stands, and the answer."""
    if start is not None and start >= 0 and context.startswith(text, start):
        return start, text
    starts = list(_occurrences(text, context))
    if start is None and starts:
        if len(starts) > 1:
            remarks.add(SEARCHED, place)
        return starts[0], text
    nearest = min(starts, key=lambda it: abs(it - (start or 0)), default=None)
    if nearest is None or abs(nearest - (start or 0)) > MOST_CHARACTERS_OFF:
        there = "nowhere in the text" if nearest is None else f"at {nearest}"
        said = "" if start is None else f" at {start}"
        raise InputError(
            f"`{place}`: the answer {text[:40]!r} must stand in its text{said}, and is {there}; it must be "
            "there letter by letter; mend it"
        )
    remarks.add(MOVED, place)
    return nearest, text


def _occurrences(text: str, context: str) -> Iterator[int]:
    start = context.find(text)
    while start >= 0:
        yield start
        start = context.find(text, start + 1)


def _remark(records: list[AnswerRecord], remarks: Remarks) -> None:
    seen: set[tuple[str, str]] = set()
    for record in records:
        if not record.question.strip():
            remarks.add(EMPTY_QUESTION, record.place)
        if not record.context.strip():
            remarks.add(EMPTY_CONTEXT, record.place)
        if (record.question, record.context) in seen:
            remarks.add(DUPLICATE, record.place)
        seen.add((record.question, record.context))
