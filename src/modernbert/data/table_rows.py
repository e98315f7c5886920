"""Files to rows that know their place: CSV, TSV, JSON lines, JSON, Parquet and data sets of the hub.

Read strictly: what does not fit is an error that names file and line, for half a row would be a wrong
example. A file is read whole, as sets of labelled examples are small.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modernbert.data import corpus
from modernbert.data.corpus import TextFile
from modernbert.data.remote import HubPart, find_remote, is_url
from modernbert.errors import InputError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

_COMPRESSIONS = (".gz", ".zst")
_DELIMITERS = (",", ";", "\t")
_MAX_FIELD_BYTES = 64 * 1024**2


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of a table.

    Attributes:
        values: What stands in each column; those of JSON may lack some.
        place: Where it stands: `train.csv, line 7`, or `train.parquet, row 7`, counted from 1.
    """

    values: Mapping[str, Any]
    place: str

    def text(self, column: str) -> str:
        """Return the text of a column.

        Raises:
            InputError: It is missing or no string.
        """
        if column not in self.values:
            raise InputError(
                f"`{self.place}` has no `{column}`; every row must have it; add it, or remove the row"
            )
        return corpus.check_text(self.values[column], column, self.place)

    def structure(self, column: str) -> Any:
        """Return the value of a column; a string that is a JSON list or object, as CSV has it, is read.

        Raises:
            InputError: It looks like one, but is not.
        """
        value = self.values.get(column)
        if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"`{self.place}`: `{column}` is {value[:40]!r}, which is not valid JSON ({error}); it begins "
                "like a list or an object of JSON and must be one; mend it"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a file.

    Attributes:
        path: As it was named.
        columns: Names of all columns that some row has.
        rows: At least one.
        class_names: Of columns that hold ids of classes, the names by id, if the file tells.
        is_delimited: Whether it is CSV or TSV, where all values are strings and the first line is the header.
    """

    path: str
    columns: tuple[str, ...]
    rows: Sequence[TableRow]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_delimited: bool = False


def read_table(path: str | Path) -> Table:
    """Read a table.

    Args:
        path: A file of one of `TABLE_SUFFIXES`, those but `.parquet` also with `.gz` or `.zst` behind; or a
            URL, `hub://OWNER/NAME?split=…` of a data set of the hub included. CSV is separated by the one of
            comma, semicolon and tab that its header has most of. In TSV, quotes count if every line fits with
            them, as not all who write it quote. JSON is a list of objects, alone or as `data` of an object,
            or lines of objects.

    Raises:
        InputError: The file is missing, empty, damaged, not UTF-8, of an unknown kind, or a row is broken.
            The message names file and line.
    """
    parts: Sequence[TextFile] = [Path(path)]
    if is_url(path):
        parts = find_remote(str(path), _all_suffixes())
    tables = [_read_part(part) for part in parts]
    rows = [row for table in tables for row in table.rows]
    if not rows:
        raise InputError(
            f"`{path}` holds no rows; there must be at least one; check that it is the right file"
        )
    return Table(
        path=str(path),
        columns=tuple(dict.fromkeys(name for table in tables for name in table.columns)),
        rows=rows,
        class_names=tables[0].class_names,
        is_delimited=tables[0].is_delimited,
    )


def file_kind(name: str, kinds: Sequence[str]) -> str:
    """Return which of the suffixes `kinds` a file's name ends in, what compresses it left aside.

    Raises:
        InputError: None of them.
    """
    bare = name.lower()
    for compression in _COMPRESSIONS:
        bare = bare.removesuffix(compression)
    for kind in kinds:
        if bare.endswith(kind):
            return kind
    raise InputError(
        f"`{name}` is of an unknown kind; its name must end in one of {', '.join(kinds)}; convert or rename "
        "it"
    )


def read_whole(path: TextFile) -> str:
    """Return the text of a file, decompressed, without its byte-order mark.

    Raises:
        InputError: It is missing, damaged or not UTF-8.
    """
    assert not isinstance(path, HubPart)
    with corpus.opened(path) as (_, stream):
        return corpus.decode(corpus.read_bytes(stream.read, -1, str(path)), path, 1)


def lines_of(text: str) -> Iterator[str]:
    """Yield the lines of a text with their ends; a line ends in a newline and nowhere else."""
    return iter(io.StringIO(text, newline="\n"))


def _all_suffixes() -> list[str]:
    text_kinds = [kind for kind in TABLE_SUFFIXES if kind != ".parquet"]
    return [*TABLE_SUFFIXES, *(kind + compression for kind in text_kinds for compression in _COMPRESSIONS)]


def _read_part(path: TextFile) -> Table:
    if isinstance(path, HubPart):
        rows = [
            TableRow(values=row, place=f"{path}, row {number}") for number, row in enumerate(path.rows(), 1)
        ]
        return _table(path, rows, _class_names(path.features))
    kind = file_kind(path.name, TABLE_SUFFIXES)
    if kind == ".parquet":
        return _read_parquet(path)
    text = read_whole(path)
    if not text.strip():
        raise InputError(f"`{path}` is empty; it must hold examples; check that it is the right file")
    if kind in (".csv", ".tsv"):
        return _read_delimited(path, text, kind)
    return _table(path, list(_json_lines(path, text) if kind == ".jsonl" else _json_rows(path, text)))


def _table(
    path: TextFile, rows: list[TableRow], class_names: Mapping[str, tuple[str, ...]] | None = None
) -> Table:
    columns = dict.fromkeys(name for row in rows for name in row.values)
    return Table(path=str(path), columns=tuple(columns), rows=rows, class_names=class_names or {})


# CSV and TSV


def _read_delimited(path: TextFile, text: str, kind: str) -> Table:
    if kind == ".csv":
        header = next(line for line in lines_of(text) if line.strip())
        return _delimited(path, text, max(_DELIMITERS, key=header.count), quoted=True)
    try:
        return _delimited(path, text, "\t", quoted=True)
    except InputError:
        return _delimited(path, text, "\t", quoted=False)


def _delimited(path: TextFile, text: str, delimiter: str, *, quoted: bool) -> Table:
    records = _fields(path, text, delimiter, quoted)
    line, header = next(records)
    names = tuple(name.strip() for name in header)
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"`{path}, line {line}` names the column `{name}` twice; it must give each column "
                "a name of its own; add or mend it"
            )
    rows = []
    for line, fields in records:
        if len(fields) != len(names):
            raise InputError(
                f"`{path}, line {line}` has {len(fields)} fields ({_shown(fields)}); the first line names "
                f"{len(names)} ({_shown(names)}), and each line must have as many; "
                f"{_remedy(delimiter, quoted)}"
            )
        rows.append(TableRow(values=dict(zip(names, fields)), place=f"{path}, line {line}"))
    return Table(path=str(path), columns=names, rows=rows, is_delimited=True)


def _fields(path: TextFile, text: str, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row that is not blank, and the line that it begins at."""
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines_of(text), delimiter=delimiter, quoting=quoting, strict=True)
    usual, line = csv.field_size_limit(), 1
    while True:
        try:
            csv.field_size_limit(_MAX_FIELD_BYTES)
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"`{path}, line {line}` begins a row that cannot be read ({error}); a text with quotes, "
                "newlines or what separates the columns must stand in quotes, with quotes inside doubled; "
                "mend it"
            ) from None
        finally:
            csv.field_size_limit(usual)
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _shown(fields: Sequence[str]) -> str:
    return ", ".join(f"`{name if len(name) < 30 else name[:29] + '…'}`" for name in fields[:5]) + (
        " …" if len(fields) > 5 else ""
    )


def _remedy(delimiter: str, quoted: bool) -> str:
    if not quoted:
        return "a text must not have tabs or newlines; mend the line"
    return f"a text with a `{delimiter}` must stand in quotes; mend the line".replace("\t", "tab")


# JSON


def _json_lines(path: TextFile, text: str) -> Iterator[TableRow]:
    for number, line in enumerate(lines_of(text), 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield TableRow(values=corpus.parse_object(line, "text", place), place=place)


def _json_rows(path: TextFile, text: str) -> Iterator[TableRow]:
    """Yield the objects of a list, of the list `data` of an object, or of lines, whichever it is."""
    begin = len(text) - len(text.lstrip())
    if text[begin] == "[":
        return _elements(path, text, begin + 1)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return _json_lines(path, text)
    rows = whole.get("data") if isinstance(whole, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return _json_lines(path, text)
    return (TableRow(values=row, place=f"{path}, row {number}") for number, row in enumerate(rows, 1))


def _elements(path: TextFile, text: str, begin: int) -> Iterator[TableRow]:
    """Yield the objects of a JSON list whose first element begins at or after `begin`."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    begin = _next_mark(text, begin)
    while text[begin : begin + 1] != "]":
        line, counted = line + text.count("\n", counted, begin), begin
        place = f"{path}, line {line}"
        try:
            value, end = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"`{place}` begins what is not valid JSON ({error}); the file must be a list of JSON "
                "objects; mend it"
            ) from None
        if not isinstance(value, dict):
            raise InputError(
                f"`{place}` holds {text[begin:end][:40]}; each element of the list must be a JSON object; "
                "mend it"
            )
        yield TableRow(values=value, place=place)
        begin = _next_mark(text, end)
        if text[begin : begin + 1] == ",":
            begin = _next_mark(text, begin + 1)
        elif text[begin : begin + 1] != "]":
            raise InputError(
                f"`{place}`: after this object the list neither goes on nor ends; a `,` or `]` must stand "
                "there; the file may be cut short, write it again"
            )


def _next_mark(text: str, begin: int) -> int:
    """Return the place of the next character that is no space."""
    while text[begin : begin + 1].isspace():
        begin += 1
    return begin


# Parquet


def _read_parquet(path: TextFile) -> Table:
    assert not isinstance(path, HubPart)
    parquet = corpus.import_pyarrow("pyarrow.parquet", path)
    try:
        with corpus.opened(path) as (stream, _), parquet.ParquetFile(stream) as file:
            metadata = file.schema_arrow.metadata or {}
            values = file.read().to_pylist()
            names = tuple(file.schema_arrow.names)
    except InputError:
        raise
    except UnicodeDecodeError:
        raise InputError(f"`{path}` holds a text that is not UTF-8; write the file again as UTF-8") from None
    except corpus.PARQUET_DAMAGE as error:
        raise corpus.damaged(str(path), error) from error
    rows = [TableRow(values=row, place=f"{path}, row {number}") for number, row in enumerate(values, 1)]
    known = json.loads(metadata.get(b"huggingface", b"{}"))
    class_names = _class_names(known.get("info", {}).get("features", {}))
    return Table(path=str(path), columns=names, rows=rows, class_names=class_names)


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes of columns that hold ids, from how `datasets` describes columns."""
    found = {}
    for column, feature in features.items():
        while isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            found[column] = tuple(feature["names"])
    return found
