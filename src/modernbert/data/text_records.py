"""Files to labelled texts and pairs, what kind of problem they pose, and whether the files fit together."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from modernbert.data.columns import Columns, text_columns
from modernbert.data.records import Label, Records, Remarks, TextRecord
from modernbert.data.table_rows import TableRow, read_table
from modernbert.errors import InputError, nearest

# As transformers name them in `problem_type`.
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]

NO_LABEL = "row without a label, left out"
EMPTY_TEXT = "empty text"
DUPLICATE = "example that is there before"
CONTRADICTION = "text that is there before with another label"

# Whole numbers that are more than this and no ids 0, 1, 2 … are amounts.
MOST_NUMBERED_CLASSES = 20

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")


def read_texts(
    path: str | Path,
    columns: Columns | None = None,
    *,
    labelled: bool = True,
    label_separator: str | None = None,
) -> Records[TextRecord]:
    """Read labelled texts or pairs.

    Args:
        path: See `table_rows.read_table`.
        columns: Those to read; the rest is guessed, see `columns.text_columns`.
        labelled: Whether only rows with a label are wanted; a file without labels is then an error.
        label_separator: What stands between several labels in one string; an empty one then has none of them.
            Lists of JSON, also those that stand in a CSV field, are several labels without it.

    Raises:
        InputError: The file or a row of it cannot be used. The message names file and line.
    """
    table = read_table(path)
    found = text_columns(table.columns, columns or Columns(), origin=table.path, labelled=labelled)
    names = [name for name in (found.text, found.text_pair) if name is not None]
    labels = _labels(table.rows, found.label, label_separator, table.is_delimited)
    remarks = Remarks()
    records = []
    for row, label in zip(table.rows, labels):
        if labelled and label is None:
            remarks.add(NO_LABEL, row.place)
            continue
        records.append(
            TextRecord(texts=tuple(row.text(name) for name in names), label=label, place=row.place)
        )
    if not records:
        raise InputError(
            f"`{path}`: no row has anything in `{found.label}`; rows to learn from must have a label; set "
            "`columns.label` to the right column"
        )
    _remark(records, remarks)
    class_names = table.class_names.get(found.label or "", ())
    return Records(path=table.path, records=records, columns=found, remarks=remarks, class_names=class_names)


def guess_problem(records: Sequence[TextRecord]) -> Problem:
    """Return what kind of problem labels pose.

    Lists of classes, or of zeros and ones, are multi-label classification, other lists of numbers regression.
    Numbers are regression if one is not whole, or if there are more than 20 different ones that are not the
    ids 0, 1, 2 … All else is single-label classification.

    Raises:
        InputError: Some labels are lists and others are not, or there is no label.
    """
    labels = _known(records)
    lists = [label for label in labels if isinstance(label, tuple)]
    if len(lists) < len(labels) and lists:
        odd = next(record for record in records if record.label is not None and not _is_list(record))
        raise InputError(
            f"`{odd.place}`: the label is {odd.label!r}, others are lists; all must be lists if some are; "
            "write a list, or give what separates the labels in a string"
        )
    if lists:
        numbers = [item for label in lists for item in label]
        is_regression = any(not isinstance(item, str) and item not in (0, 1) for item in numbers)
        return "regression" if is_regression else "multi_label_classification"
    values = {label for label in labels if isinstance(label, int | float)}
    if any(not isinstance(label, int | float) for label in labels):
        return "single_label_classification"
    if any(not float(value).is_integer() for value in values):
        return "regression"
    are_ids = values == set(range(len(values)))
    return (
        "regression" if len(values) > MOST_NUMBERED_CLASSES and not are_ids else "single_label_classification"
    )


def label_names(records: Sequence[TextRecord]) -> list[str]:
    """Return the names of all classes in an order that the files' order does not change.

    Numbers are sorted by value, so that ids 0, 1, 2 … are the indices; strings as strings. Places in lists of
    zeros and ones are numbered.
    """
    names: set[str] = set()
    for label in _known(records):
        if not isinstance(label, tuple):
            names.add(label_name(label))
        elif label and not isinstance(label[0], str):
            names.update(map(str, range(len(label))))
        else:
            names.update(map(label_name, label))
    if all(_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)


def label_name(label: str | float) -> str:
    """Return the name of a class: whole numbers have no decimal point."""
    if isinstance(label, str):
        return label
    return str(int(label)) if float(label).is_integer() else repr(label)


def shown_names(names: Sequence[str], class_names: Sequence[str]) -> tuple[str, ...]:
    """Return classes by the names that a file gives their ids, if it gives any.

    Raises:
        InputError: An id that it gives no name.
    """
    if not class_names:
        return tuple(names)
    for name in names:
        if not name.isdecimal() or int(name) >= len(class_names):
            raise InputError(
                f"the label {name} has no name; the file names {len(class_names)}, counted from 0: "
                f"{', '.join(class_names[:20])}; mend the label, or remove its examples"
            )
    return tuple(class_names[int(name)] for name in names)


def check_labels(train: Sequence[TextRecord], *others: Sequence[TextRecord], problem: Problem) -> None:
    """Make sure that the labels to learn from pose `problem`, and that other files have no further ones.

    Raises:
        InputError: A label of the wrong kind, a class that only another file has, or one class or number
            only. The message names file and line.
    """
    check = {
        "regression": _check_numbers,
        "multi_label_classification": _check_lists,
        "single_label_classification": _check_classes,
    }[problem]
    for records in (train, *others):
        check(records)
    width = next((len(record.label) for record in train if isinstance(record.label, tuple)), 1)
    if problem == "regression" or _has_vectors(train):
        for record in (record for records in (train, *others) for record in records):
            _check_width(record, width)
        if problem == "regression":
            _check_number(train, list({repr(record.label) for record in train}), 2)
        return
    known = label_names(train)
    _check_number(train, known, 2 if problem == "single_label_classification" else 1)
    for record in (record for records in others for record in records):
        for name in label_names([record]) if record.label is not None else ():
            _check_known(name, known, record)


def check_texts(train: Sequence[TextRecord], *others: Sequence[TextRecord]) -> None:
    """Make sure that all examples are single texts, or all pairs.

    Raises:
        InputError: Some files have pairs and others have not. The message names file and line.
    """
    first = train[0]
    for record in (records[0] for records in others if records):
        if len(record.texts) != len(first.texts):
            own, wanted = ("a pair" if len(it.texts) == 2 else "a single text" for it in (record, first))
            raise InputError(
                f"`{record.place}` has {own}, where `{first.place}` has {wanted}; all files must have as "
                "many texts; set `columns.text` and `columns.text_pair`, or give another file"
            )


# Labels of a file


def _labels(
    rows: Sequence[TableRow], column: str | None, separator: str | None, is_delimited: bool
) -> list[Label | None]:
    if column is None:
        return [None] * len(rows)
    raw = [_raw_label(row, column, separator) for row in rows]
    lists = [label for label in raw if isinstance(label, list)]
    if any(isinstance(item, float) for label in lists for item in label) or _are_flags(lists):
        return [_vector(label, row) if isinstance(label, list) else label for label, row in zip(raw, rows)]
    if is_delimited:
        read = _reader_of_numbers([label for label in raw if isinstance(label, str)])
        raw = [read(label) if isinstance(label, str) else label for label in raw]
    return [tuple(dict.fromkeys(map(label_name, it))) if isinstance(it, list) else it for it in raw]


def _raw_label(row: TableRow, column: str, separator: str | None) -> str | float | list[Any] | None:
    value = row.values.get(column)
    if isinstance(value, str) and separator is not None:
        parts = (part.strip() for part in value.split(separator))
        return [part for part in parts if part]
    if isinstance(value, str) and value.strip()[:1] == "[" and value.strip()[-1:] == "]":
        value = _list_or_text(value)
    if isinstance(value, list | tuple):
        items = [_scalar(item, row, column) for item in value]
        return [item for item in items if item is not None]
    return _scalar(value, row, column)


def _list_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _scalar(value: object, row: TableRow, column: str) -> str | float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise InputError(
        f"`{row.place}`: the label `{column}` is {repr(value)[:60]}; it must be a string, a finite number "
        "or a list of these; mend it, or set `columns.label` to another column"
    )


def _are_flags(lists: list[list[Any]]) -> bool:
    """Whether lists say yes or no to each class, and are not lists of ids: these have no id twice."""
    flags = {0, 1, "true", "false"}
    return (
        len({len(label) for label in lists}) == 1
        and all(item in flags for label in lists for item in label)
        and any(len(set(label)) < len(label) for label in lists)
    )


def _vector(label: list[Any], row: TableRow) -> tuple[float, ...]:
    for item in label:
        if isinstance(item, str) and item not in ("true", "false"):
            raise InputError(
                f"`{row.place}`: the list of labels has {item!r} where others have numbers; all must be "
                "numbers, or all names; mend it"
            )
    return tuple(float(item == "true") if isinstance(item, str) else float(item) for item in label)


def _reader_of_numbers(labels: list[str]) -> Any:
    """Return how to read the labels of a file in which all is written as text: as numbers if all are.

    "NaN" among numbers is none.
    """
    numbers = [label for label in labels if label.lower() != "nan"]
    if not numbers or not all(_NUMBER.fullmatch(label) for label in numbers):
        return str
    kind = int if all(label.removeprefix("-").isdecimal() for label in numbers) else float
    return lambda label: None if label.lower() == "nan" else kind(label)


# Remarks and checks


def _remark(records: list[TextRecord], remarks: Remarks) -> None:
    before: dict[tuple[str, ...], Label | None] = {}
    for record in records:
        if any(not text.strip() for text in record.texts):
            remarks.add(EMPTY_TEXT, record.place)
        elif record.texts not in before:
            before[record.texts] = record.label
        else:
            is_same = before[record.texts] == record.label
            remarks.add(DUPLICATE if is_same else CONTRADICTION, record.place)


def _known(records: Sequence[TextRecord]) -> list[Label]:
    labels = [record.label for record in records if record.label is not None]
    if not labels:
        raise InputError("no example has a label; at least one must; give a file with labels")
    return labels


def _is_list(record: TextRecord) -> bool:
    return isinstance(record.label, tuple)


def _has_vectors(records: Sequence[TextRecord]) -> bool:
    return any(
        isinstance(it.label, tuple) and it.label and not isinstance(it.label[0], str) for it in records
    )


def _check_numbers(records: Sequence[TextRecord]) -> None:
    for record in records:
        items = record.label if isinstance(record.label, tuple) else (record.label,)
        if any(isinstance(item, str) for item in items):
            raise InputError(
                f"`{record.place}`: the label is {record.label!r}; for regression it must be a number; mend "
                "it, or choose classification"
            )


def _check_lists(records: Sequence[TextRecord]) -> None:
    for record in records:
        if record.label is not None and not _is_list(record):
            raise InputError(
                f"`{record.place}`: the label is {record.label!r}; for several labels it must be a list; "
                "write a list, or give what separates the labels in a string"
            )
        if _has_vectors([record]) and any(item not in (0, 1) for item in record.label or ()):  # type: ignore[union-attr]
            raise InputError(
                f"`{record.place}`: the label is {record.label!r}; to say which of several labels apply, the "
                "numbers must be 0 or 1; mend it, or choose regression"
            )


def _check_classes(records: Sequence[TextRecord]) -> None:
    for record in records:
        if _is_list(record):
            raise InputError(
                f"`{record.place}`: the label is the list {record.label!r}; where each text has one label "
                "it must be one; mend it, or choose multi-label classification"
            )


def _check_width(record: TextRecord, width: int) -> None:
    own = len(record.label) if isinstance(record.label, tuple) else 1
    if record.label is not None and own != width:
        raise InputError(
            f"`{record.place}`: the label has {own} numbers, the first to learn from has {width}; all must "
            "have as many; mend it"
        )


def _check_number(train: Sequence[TextRecord], known: list[str], fewest: int) -> None:
    if len(known) < fewest:
        what = f"have the label `{known[0]}`" if known else "have no label at all"
        raise InputError(
            f"`{train[0].place}`: this and all other examples to learn from {what}; there must be at least "
            f"{fewest} different ones; give a file with others too, or set `columns.label` to the right "
            "column"
        )


def _check_known(name: str, known: list[str], record: TextRecord) -> None:
    if name not in known:
        near = nearest(name, known)
        hint = f"; did you mean `{near}`?" if near is not None else ""
        listed = ", ".join(known[:20]) + (" …" if len(known) > 20 else "")
        raise InputError(
            f"`{record.place}`: the label `{name}` is in no example to learn from{hint}; these have: "
            f"{listed}; add examples with it there, or remove this one"
        )
