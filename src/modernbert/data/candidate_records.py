"""Files to queries with documents to put in order: a table with a row a query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modernbert.data import corpus
from modernbert.data.columns import Columns, find_column
from modernbert.data.records import CandidateRecord, Records, Remarks
from modernbert.data.retrieval_records import EMPTY_DOCUMENT, NO_RELEVANT, find_split, read_grade
from modernbert.data.table_rows import TableRow, read_table
from modernbert.errors import InputError

_QUERIES = ("query", "question", "text", "anchor")
_DOCUMENTS = ("docs", "documents", "passages", "candidates", "texts")
_GRADES = ("rel", "labels", "label", "relevance", "relevances", "grades", "scores")
POSITIVE, NEGATIVE = "positive", "negative"


def read_candidates(path: str | Path, *, split: str | None = None) -> Records[CandidateRecord]:
    """Read queries with their documents.

    Args:
        path: A table, see `table_rows.read_table`, or a folder with one a split. A row is a query: `query`, a
            list `docs`, and `rel`, how relevant each is: a list of whole numbers, or an object from the
            document's place, from 0 on, to one. Or `query` and two lists of documents, `positive` and
            `negative`, as MTEB has them; these have no order of their own.
        split: Of a folder; None: `test`, or the only one.

    Raises:
        InputError: The file or a row of it cannot be used, or no query has a relevant document. The message
            names file and line.
    """
    if Path(path).is_dir():
        path = find_split(Path(path), split)
    table, remarks, records = read_table(path), Remarks(), []
    query_column = find_column(table.columns, "the query", _QUERIES, origin=table.path)
    is_ordered = not {POSITIVE, NEGATIVE} <= {*table.columns}
    documents_column, grades_column = POSITIVE, NEGATIVE
    if is_ordered:
        documents_column = find_column(table.columns, "its documents", _DOCUMENTS, origin=table.path)
        grades_column = find_column(table.columns, "how relevant they are", _GRADES, origin=table.path)
    for row in table.rows:
        documents = _texts(row, documents_column)
        if is_ordered:
            grades = _grades(row, grades_column, len(documents))
        else:
            negative = _texts(row, NEGATIVE)
            grades = [1] * len(documents) + [0] * len(negative)
            documents += negative
        if max(grades, default=0) <= 0:
            remarks.add(NO_RELEVANT, row.place)
            continue
        for _ in range(sum(not text.strip() for text in documents)):
            remarks.add(EMPTY_DOCUMENT, row.place)
        records.append(
            CandidateRecord(
                query=row.text(query_column),
                documents=tuple(documents),
                grades=tuple(grades),
                is_ordered=is_ordered,
                place=row.place,
            )
        )
    if not records:
        raise InputError(
            f"`{path}`: no query has a relevant document; at least one must have; check `{grades_column}`"
        )
    return Records(path=table.path, records=records, columns=Columns(), remarks=remarks)


def _texts(row: TableRow, column: str) -> list[str]:
    value = row.structure(column)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InputError(
            f"`{row.place}`: `{column}` is {repr(value)[:40]}; it must be a list of texts; mend it"
        )
    return [corpus.check_text(text, column, row.place) for text in value]


def _grades(row: TableRow, column: str, count: int) -> list[int]:
    """Return as many grades as there are documents; of an object, those that it lacks are 0."""
    value: Any = row.structure(column)
    if isinstance(value, dict):
        places = {str(place) for place in range(count)}
        if strange := sorted(value.keys() - places):
            raise InputError(
                f"`{row.place}`: `{column}` has the place {strange[0]!r}; its {count} documents have the "
                f"places from 0 to {count - 1}; mend it"
            )
        value = [value.get(str(place), 0) for place in range(count)]
    if not isinstance(value, list | tuple) or len(value) != count:
        raise InputError(
            f"`{row.place}`: `{column}` is {repr(value)[:40]}; it must be a list of {count} whole numbers, "
            "one a document; mend it"
        )
    return [read_grade(grade, column, row) for grade in value]
