"""Files to pairs: a query and what it should find, perhaps beside what it should not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from modernbert.data import corpus
from modernbert.data.columns import PairColumns, pair_columns, split_names
from modernbert.data.records import PairRecord, Records, Remarks
from modernbert.data.table_rows import TableRow, read_table
from modernbert.errors import InputError

EMPTY = "row without a query or without what it should find, left out"
SAME = "query that is what it should find, left out"


def read_pairs(path: str | Path, columns: PairColumns | None = None) -> Records[PairRecord]:
    """Read queries and what they should find.

    Args:
        path: See `table_rows.read_table`. Where a positive is a list, each of it makes a pair.
        columns: Those to read; the rest is guessed, see `columns.pair_columns`.

    Raises:
        InputError: The file or a row of it cannot be used. The message names file and line.
    """
    table = read_table(path)
    found = pair_columns(table.columns, columns or PairColumns(), origin=table.path)
    names = split_names(found.negatives, table.columns) if found.negatives else []
    remarks = Remarks()
    records = [record for row in table.rows for record in _records(row, found, names, remarks)]
    if not records:
        raise InputError(
            f"`{path}`: no row has something in both `{found.query}` and `{found.positive}`; there must be "
            "pairs to learn from; set `columns.query` and `columns.positive` to the right columns"
        )
    return Records(path=table.path, records=records, columns=found, remarks=remarks)


def _records(row: TableRow, columns: PairColumns, names: list[str], remarks: Remarks) -> Iterator[PairRecord]:
    assert columns.query is not None
    assert columns.positive is not None
    query, positives = row.text(columns.query), _texts(row, columns.positive)
    if not query.strip() or not positives:
        remarks.add(EMPTY, row.place)
        return
    negatives = tuple(text for name in names for text in _texts(row, name) if text not in positives)
    for positive in positives:
        if positive == query:
            remarks.add(SAME, row.place)
        else:
            yield PairRecord(query=query, positive=positive, negatives=negatives, place=row.place)


def _texts(row: TableRow, name: str) -> list[str]:
    """Return the text of a column, or those of the list that stands there; blank ones are none."""
    value = row.values.get(name)
    texts = [] if value is None else value if isinstance(value, list) else [value]
    return [text for text in (corpus.check_text(it, name, row.place) for it in texts) if text.strip()]
