"""Files to questions with choices, of which one is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modernbert.data import corpus
from modernbert.data.columns import Columns, choice_columns, split_names
from modernbert.data.counter_random import key_of
from modernbert.data.records import ChoiceRecord, Records, Remarks
from modernbert.data.table_rows import TableRow, read_table
from modernbert.errors import InputError

NO_LABEL = "row without a label, left out"
EMPTY_PROMPT = "empty question"
EMPTY_CHOICE = "empty choice"
SAME_CHOICES = "question with the same choice twice"
DUPLICATE = "question that is there before, with the same choices"

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_choices(
    path: str | Path, columns: Columns | None = None, *, labelled: bool = True
) -> Records[ChoiceRecord]:
    """Read questions with choices.

    Args:
        path: See `table_rows.read_table`. Choices are a list, an object with the lists `text` and `label`
            (their names), or columns with one each, of which empty ones at a row's end are none. The label is
            an index from 0, the name or letter of a choice, or its text. Where the label is one of the
            columns of choices, these are put in an order that depends on nothing but their and the question's
            text.
        columns: Those to read; the rest is guessed, see `columns.choice_columns`.
        labelled: Whether only rows with a label are wanted; a file without labels is then an error.

    Raises:
        InputError: The file or a row of it cannot be used. The message names file and line.
    """
    table = read_table(path)
    found = choice_columns(table.columns, columns or Columns(), origin=table.path, labelled=labelled)
    remarks = Remarks()
    records = []
    for row in table.rows:
        record = _record(row, found, split_names(found.choices or "", table.columns))
        if labelled and record.label is None:
            remarks.add(NO_LABEL, row.place)
        else:
            records.append(record)
    if not records:
        raise InputError(
            f"`{path}`: no row has anything in `{found.label}`; rows to learn from must have a label; set "
            "`columns.label` to the right column"
        )
    _remark(records, remarks)
    return Records(path=table.path, records=records, columns=found, remarks=remarks)


def _record(row: TableRow, columns: Columns, names: list[str]) -> ChoiceRecord:
    assert columns.question is not None
    prompt = _joined(row, columns.context, columns.question)
    if columns.label is not None and columns.label in names:
        right, *wrong = [
            row.text(name) for name in (columns.label, *(it for it in names if it != columns.label))
        ]
        choices = sorted([right, *wrong], key=lambda choice: key_of(prompt, choice))
        return ChoiceRecord(
            prompt=prompt, choices=tuple(choices), label=choices.index(right), place=row.place
        )
    choices, their_names = _choices(row, names)
    if len(choices) < 2:
        raise InputError(
            f"`{row.place}` has {len(choices)} choices in `{', '.join(names)}`; there must be at least 2; "
            "add some, or remove the row"
        )
    label = row.values.get(columns.label) if columns.label is not None else None
    index = _index(label, choices, their_names, row.place)
    return ChoiceRecord(prompt=prompt, choices=tuple(choices), label=index, place=row.place)


def _joined(row: TableRow, context: str | None, question: str) -> str:
    """Return the question, behind what it is about if the row has that."""
    has_context = context is not None and row.values.get(context) is not None
    parts = [
        row.text(name) for name in ([context, question] if has_context else [question]) if name is not None
    ]
    return " ".join(part for part in parts if part.strip())


def _choices(row: TableRow, names: list[str]) -> tuple[list[str], list[str]]:
    """Return the choices of a row and what they are called, if that is not by letters."""
    if len(names) > 1:
        texts = [row.values.get(name) for name in names]
        while texts and texts[-1] in (None, ""):
            texts.pop()
        return [corpus.check_text(text, name, row.place) for text, name in zip(texts, names)], []
    value = row.structure(names[0])
    called: Any = []
    if isinstance(value, Mapping):
        called = value.get("label", [])
        value = value.get("text")
    if not isinstance(value, list) or not isinstance(called, list) or len(called) not in (0, len(value)):
        raise InputError(
            f"`{row.place}`: `{names[0]}` is {repr(row.values.get(names[0]))[:60]}; it must be a list of "
            "choices; mend it"
        )
    return [corpus.check_text(text, names[0], row.place) for text in value], [str(name) for name in called]


def _index(label: object, choices: list[str], names: list[str], place: str) -> int | None:
    """Return which choice a label means."""
    if label is None or (isinstance(label, str) and not label.strip()):
        return None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    text = str(label).strip()
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(choices):
        return int(text)
    if isinstance(label, str) and label in choices:
        return choices.index(label)
    if len(text) == 1 and text.upper() in _LETTERS[: len(choices)]:
        return _LETTERS.index(text.upper())
    raise InputError(
        f"`{place}`: the label is {label!r}, and there are {len(choices)} choices; it must be the index of "
        f"one, counted from 0, a letter from A to {_LETTERS[min(len(choices), 26) - 1]}, or the text of "
        "one; mend it"
    )


def _remark(records: list[ChoiceRecord], remarks: Remarks) -> None:
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for record in records:
        if not record.prompt.strip():
            remarks.add(EMPTY_PROMPT, record.place)
        if any(not choice.strip() for choice in record.choices):
            remarks.add(EMPTY_CHOICE, record.place)
        if len(set(record.choices)) < len(record.choices):
            remarks.add(SAME_CHOICES, record.place)
        if (record.prompt, record.choices) in seen:
            remarks.add(DUPLICATE, record.place)
        seen.add((record.prompt, record.choices))
