"""Retrieval sets as folders hold them: a corpus, queries, and which documents are relevant to which query.

Two layouts are known by their files. BEIR's: `corpus.jsonl`, `queries.jsonl` and a folder `qrels` with a
table a split (`test.tsv`). The flat one: the same with a single table `qrels.jsonl` (or `.tsv`, `.csv` …).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert.data import corpus
from modernbert.data.columns import find_column
from modernbert.data.records import Remarks
from modernbert.data.table_rows import TABLE_SUFFIXES, Table, TableRow, read_table
from modernbert.errors import InputError

EMPTY_DOCUMENT = "empty document"
EMPTY_QUERY = "empty query, left out"
NO_RELEVANT = "query without a relevant document, left out"
UNKNOWN_QUERY = "judgement of a query that is not there, left out"
UNKNOWN_DOCUMENT = "relevant document that the corpus lacks, counted as not found"
TWICE = "judgement that is there before, the last counts"

_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_TEST = "test"

# Names as `find_column` has them.
_IDS = ("_id", "id", "doc_id", "docid", "did", "pid", "query_id", "qid")
_TEXTS = ("text", "contents", "content", "body", "passage", "document", "query", "question")
_TITLE = "title"
_QUERY_IDS = ("query_id", "qid", "query", "topic")
_DOCUMENT_IDS = ("corpus_id", "doc_id", "docid", "did", "pid", "document_id", "document")
_GRADES = ("score", "rel", "relevance", "grade", "label")


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """Documents to find, and queries to find them with.

    Attributes:
        folder: As it was named.
        corpus: The file of the documents, which stay there.
        ids: Of the documents, in their order.
        queries: Text by id, in the order of their file; each has a relevant document.
        judgements: Of each query, in the same order, how relevant which documents are: 0 or less not at all.
        remarks: What should be known.
    """

    folder: Path
    corpus: Path
    ids: Sequence[str]
    queries: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, int]]
    remarks: Remarks

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def documents(self) -> Iterator[str]:
        """Read the documents: each one's title, if it has any, a space, and its text, as BEIR does."""
        return (text for _, _, text in _read_corpus(self.corpus))


def read_retrieval_set(folder: str | Path, *, split: str | None = None) -> RetrievalSet:
    """Read a retrieval set, all but the documents' texts, which are only looked through.

    Args:
        folder: In one of the two layouts.
        split: Whose judgements are read, where there are several; None: `test`, or the only one.

    Raises:
        InputError: A file is missing, damaged, or has a row that cannot be used; two documents or two queries
            have the same id; or no query has a relevant document. The message names file and line.
    """
    folder, remarks = Path(folder), Remarks()
    if not folder.is_dir():
        raise InputError(f"`{folder}` is no folder; it must be one with a corpus, queries and qrels")
    judged = read_table(_judgement_file(folder, split))
    documents = _file(folder, "corpus", _LINES)
    ids: dict[str, None] = {}
    for origin, name, text in _read_corpus(documents):
        if name in ids:
            raise _same_id(origin, name)
        ids[name] = None
        if not text:
            remarks.add(EMPTY_DOCUMENT, origin)
    queries = _read_queries(read_table(_file(folder, "queries", TABLE_SUFFIXES)))
    judgements = _read_judgements(judged, queries, ids, remarks)
    kept = {}
    for name, (text, place) in queries.items():
        if max(judgements[name].values(), default=0) <= 0:
            remarks.add(NO_RELEVANT, place)
        elif not text.strip():
            remarks.add(EMPTY_QUERY, place)
        else:
            kept[name] = text
    if not kept:
        raise InputError(
            f"`{judged.path}`: no query has a relevant document; at least one must have; check that queries "
            "and judgements belong together"
        )
    return RetrievalSet(
        folder=folder,
        corpus=documents,
        ids=tuple(ids),
        queries=kept,
        judgements={name: judgements[name] for name in kept},
        remarks=remarks,
    )


def find_split(folder: Path, split: str | None) -> Path:
    """Return the table of a split, which the file is named after.

    Args:
        folder: Holds the tables.
        split: None: `test`, or the only one.

    Raises:
        InputError: There is no such table.
    """
    splits = sorted(path.stem for path in folder.iterdir() if path.suffix in TABLE_SUFFIXES)
    wanted = split or (splits[0] if len(splits) == 1 else _TEST)
    if wanted not in splits:
        raise InputError(
            f"`{folder}` has no table of the split `{wanted}`; it has {', '.join(splits) or 'none'}; choose "
            "one, or add it"
        )
    return _file(folder, wanted, TABLE_SUFFIXES)


def _judgement_file(folder: Path, split: str | None) -> Path:
    """Return the table of the judgements, whichever layout the folder has."""
    if (below := folder / "qrels").is_dir():
        return find_split(below, split)
    if split is not None:
        raise InputError(f"`{folder}` has no folder `qrels` with splits; leave the split `{split}` out")
    return _file(folder, "qrels", TABLE_SUFFIXES)


def _file(folder: Path, name: str, suffixes: Sequence[str]) -> Path:
    for suffix in suffixes:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    known = ", ".join(f"`{name}{suffix}`" for suffix in suffixes)
    raise InputError(f"`{folder}` has no file of the {name}; it must have one of {known}; add it")


def _read_corpus(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield where each document stands, its id, and its title and text."""
    id_key = text_key = ""
    for origin, row in corpus.read_objects(path, "text"):
        if not id_key:
            id_key = find_column([*row], "the id of a document", _IDS, origin=origin)
            text_key = find_column([*row], "its text", _TEXTS, origin=origin)
        title = corpus.check_text(row.get(_TITLE) or "", _TITLE, origin)
        text = corpus.check_text(row.get(text_key), text_key, origin)
        yield origin, _name(row.get(id_key), id_key, origin), f"{title} {text}".strip()


def _read_queries(table: Table) -> dict[str, tuple[str, str]]:
    """Return each query's text and place by its id."""
    id_column = find_column(table.columns, "the id of a query", _IDS, origin=table.path)
    text_column = find_column(table.columns, "its text", _TEXTS, origin=table.path)
    queries: dict[str, tuple[str, str]] = {}
    for row in table.rows:
        name = _name(row.values.get(id_column), id_column, row.place)
        if name in queries:
            raise _same_id(row.place, name)
        queries[name] = (row.text(text_column), row.place)
    return queries


def _read_judgements(
    table: Table, queries: Mapping[str, object], ids: Mapping[str, object], remarks: Remarks
) -> dict[str, dict[str, int]]:
    query_column = find_column(table.columns, "the id of a query", _QUERY_IDS, origin=table.path)
    document_column = find_column(table.columns, "the id of a document", _DOCUMENT_IDS, origin=table.path)
    grade_column = find_column(table.columns, "how relevant it is", _GRADES, origin=table.path)
    found: dict[str, dict[str, int]] = {name: {} for name in queries}
    for row in table.rows:
        query = _name(row.values.get(query_column), query_column, row.place)
        document = _name(row.values.get(document_column), document_column, row.place)
        grade = read_grade(row.values.get(grade_column), grade_column, row)
        if query not in found:
            remarks.add(UNKNOWN_QUERY, row.place)
            continue
        if document in found[query]:
            remarks.add(TWICE, row.place)
        elif document not in ids and grade > 0:
            remarks.add(UNKNOWN_DOCUMENT, row.place)
        found[query][document] = grade
    return found


def read_grade(value: Any, column: str, row: TableRow) -> int:
    """Return how relevant a document is.

    Raises:
        InputError: That is no whole number. The message names file and line.
    """
    try:
        grade = int(value)
    except (TypeError, ValueError, OverflowError):
        grade = None
    if grade is None or (isinstance(value, float) and value != grade):
        raise InputError(
            f"`{row.place}`: `{column}` is {repr(value)[:40]}; it must be a whole number, 0 for not "
            "relevant; mend it"
        )
    return grade


def _name(value: Any, key: str, origin: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise InputError(
            f"`{origin}`: the id `{key}` is {repr(value)[:40]}; it must be a string or a whole number; "
            "mend it"
        )
    return value


def _same_id(origin: str, name: str) -> InputError:
    return InputError(
        f"`{origin}`: the id `{name}` is there before; each must be there once; remove or rename one of them"
    )
