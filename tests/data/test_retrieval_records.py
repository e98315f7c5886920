"""Retrieval sets: two layouts give the same set, what is odd is counted, errors name file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from modernbert.data.retrieval_records import read_retrieval_set
from modernbert.errors import InputError

CORPUS = [
    {"_id": "d1", "title": "Wings", "text": "of planes"},
    {"_id": "d2", "text": "nothing else"},
    {"_id": "3", "title": "", "text": "the third"},
]
QUERIES = [{"_id": "q1", "text": "which wings"}, {"_id": "q2", "text": "which third"}]
QRELS = [("q1", "d1", 2), ("q1", "d2", 0), ("q2", "3", 1)]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_beir(folder: Path, corpus: Any = CORPUS, queries: Any = QUERIES, qrels: Any = QRELS) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(lines(corpus))
    (folder / "queries.jsonl").write_text(lines(queries))
    rows = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    return folder


def write_flat(folder: Path) -> Path:
    folder.mkdir()
    documents = [{**row, "id": row["_id"]} for row in CORPUS]
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as file:
        file.write(lines([{key: row[key] for key in row if key != "_id"} for row in documents]))
    (folder / "queries.jsonl").write_text(lines([{"id": it["_id"], "text": it["text"]} for it in QUERIES]))
    (folder / "qrels.jsonl").write_text(lines([{"qid": q, "did": d, "rel": rel} for q, d, rel in QRELS]))
    return folder


@pytest.mark.parametrize("write", [write_beir, write_flat])
def test_both_layouts(write: Any, tmp_path: Path) -> None:
    found = read_retrieval_set(write(tmp_path / "wings"))
    assert found.name == "wings"
    assert found.ids == ("d1", "d2", "3")
    assert [*found.documents()] == ["Wings of planes", "nothing else", "the third"]
    assert found.queries == {"q1": "which wings", "q2": "which third"}
    assert found.judgements == {"q1": {"d1": 2, "d2": 0}, "q2": {"3": 1}}
    assert [*found.remarks] == []


def test_a_split_is_chosen(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "set")
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td2\t1\n")
    assert [*read_retrieval_set(folder).queries] == ["q1", "q2"]
    assert read_retrieval_set(folder, split="dev").judgements == {"q2": {"d2": 1}}
    with pytest.raises(
        InputError, match=r"qrels` has no table of the split `train`; it has dev, test; choose"
    ):
        read_retrieval_set(folder, split="train")
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "other.tsv")
    with pytest.raises(InputError, match="no table of the split `test`; it has dev, other"):
        read_retrieval_set(folder)


def test_what_is_odd_is_counted_with_its_first_place(tmp_path: Path) -> None:
    corpus = [*CORPUS, {"_id": "d4", "title": " ", "text": ""}, {"_id": "d5", "text": " "}]
    queries = [*QUERIES, {"_id": "q3", "text": "nothing"}, {"_id": "q4", "text": " "}]
    qrels = [*QRELS, ("q1", "gone", 1), ("q1", "too", 0), ("q9", "d1", 1), ("q1", "d1", 3), ("q4", "d1", 1)]
    found = read_retrieval_set(write_beir(tmp_path / "set", corpus, queries, [*qrels, ("q3", "d1", 0)]))
    at, judged = f"{tmp_path}/set", f"{tmp_path}/set/qrels/test.tsv"
    assert [remark.summary() for remark in found.remarks] == [
        f"2 × empty document (first: {at}/corpus.jsonl:4)",
        f"1 × relevant document that the corpus lacks, counted as not found (first: {judged}, line 5)",
        f"1 × judgement of a query that is not there, left out (first: {judged}, line 7)",
        f"1 × judgement that is there before, the last counts (first: {judged}, line 8)",
        f"1 × query without a relevant document, left out (first: {at}/queries.jsonl, line 3)",
        f"1 × empty query, left out (first: {at}/queries.jsonl, line 4)",
    ]
    assert [*found.documents()][3:] == ["", ""]
    assert found.judgements == {"q1": {"d1": 3, "d2": 0, "gone": 1, "too": 0}, "q2": {"3": 1}}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "two documents of one id": (
        {"corpus": [*CORPUS, {"_id": "d1", "text": "again"}]},
        r"corpus.jsonl:4`: the id `d1` is there before; .* remove or rename",
    ),
    "two queries of one id": ({"queries": [*QUERIES, QUERIES[0]]}, r"queries.jsonl, line 3`: the id `q1` is"),
    "a document without an id": (
        {"corpus": [*CORPUS, {"text": "again"}]},
        r"corpus.jsonl:4`: the id `_id` is None; it must be a string or a whole number",
    ),
    "a document without a text": (
        {"corpus": [*CORPUS, {"_id": "d4"}]},
        r"corpus.jsonl:4`: `text` is None; it must be a string",
    ),
    "a title that is no text": (
        {"corpus": [{"_id": "d4", "title": ["x"], "text": "x"}]},
        r"corpus.jsonl:1`: `title` is \['x'\]; it must be a string",
    ),
    "no column of ids": (
        {"corpus": [{"name": "d1", "text": "x"}]},
        r"corpus.jsonl:1` has nothing whose name tells that it is the id of a document; .* it has name, text",
    ),
    "a grade that is no number": (
        {"qrels": [("q1", "d1", "high")]},
        r"test.tsv, line 2`: `score` is 'high'; it must be a whole number",
    ),
    "nothing relevant": ({"qrels": [("q1", "d1", 0)]}, r"test.tsv`: no query has a relevant document"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    content, message = WRONG[name]
    folder = write_beir(tmp_path / "set", **content)
    with pytest.raises(InputError, match=message):
        read_retrieval_set(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="none` is no folder; it must be one with a corpus, queries and qrels"
    ):
        read_retrieval_set(tmp_path / "none")
    folder = write_flat(tmp_path / "set")
    with pytest.raises(InputError, match="has no folder `qrels` with splits; leave the split `dev` out"):
        read_retrieval_set(folder, split="dev")
    (folder / "corpus.jsonl.gz").unlink()
    with pytest.raises(
        InputError, match=r"set` has no file of the corpus; it must have one of `corpus.jsonl`"
    ):
        read_retrieval_set(folder)


def test_a_line_that_is_no_object(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "set")
    (folder / "corpus.jsonl").write_text('{"_id": "1", "text": "x"}\n\n{"_id": \n')
    with pytest.raises(InputError, match=r"corpus.jsonl:3` is not valid JSON"):
        read_retrieval_set(folder)


@pytest.mark.parametrize("grade", ["1.5", "null", "[1]"])
def test_grades_are_whole_numbers(grade: str, tmp_path: Path) -> None:
    folder = write_flat(tmp_path / "set")
    (folder / "qrels.jsonl").write_text(f'{{"qid": "q1", "did": "d1", "rel": {grade}}}\n')
    with pytest.raises(InputError, match=r"qrels.jsonl, line 1`: `rel` is .*; it must be a whole number"):
        read_retrieval_set(folder)
