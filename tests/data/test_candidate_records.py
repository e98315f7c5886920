"""Queries with documents to put in order: ways to write grades, and what is wrong with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modernbert.data.candidate_records import read_candidates
from modernbert.errors import InputError

ROW = {"query": "which", "docs": ["a", "b", "c"]}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "grades", [{"rel": {"0": 0, "2": 2}}, {"labels": [0, 0, 2]}, {"relevance": "[0, 0, 2.0]"}]
)
def test_ways_to_write_grades(grades: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "set" / "test.jsonl", ROW | grades)
    (record,) = read_candidates(path).records
    assert (record.query, record.documents, record.grades) == ("which", ("a", "b", "c"), (0, 0, 2))
    assert record.is_ordered
    assert read_candidates(path.parent).records == [record]


def test_positive_and_negative_documents_have_no_order(tmp_path: Path) -> None:
    rows = (
        {"query": "which", "positive": ["a"], "negative": ["b", ""]},
        {"query": "x", "positive": [], "negative": ["b"]},
    )
    found = read_candidates(write(tmp_path / "test.jsonl", *rows))
    (record,) = found.records
    assert (record.documents, record.grades, record.is_ordered) == (("a", "b", ""), (1, 0, 0), False)
    assert [remark.summary() for remark in found.remarks] == [
        f"1 × empty document (first: {tmp_path}/test.jsonl, line 1)",
        f"1 × query without a relevant document, left out (first: {tmp_path}/test.jsonl, line 2)",
    ]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too few grades": (
        {"rel": [1]},
        r"line 1`: `rel` is \[1\]; it must be a list of 3 whole numbers, one a doc",
    ),
    "one grade": ({"rel": 1}, r"`rel` is 1; it must be a list of 3 whole numbers"),
    "a place that there is not": ({"rel": {"3": 1}}, r"`rel` has the place '3'; .* the places from 0 to 2"),
    "a grade that is no number": ({"rel": [1, "b", 0]}, r"`rel` is 'b'; it must be a whole number"),
    "documents that are no list": (
        {"docs": "a", "rel": [1]},
        r"line 1`: `docs` is 'a'; it must be a list of t",
    ),
    "a document that is no text": ({"docs": [1], "rel": [1]}, r"line 1`: `docs` is 1; it must be a string"),
    "nothing relevant": (
        {"rel": [0, 0, 0]},
        r"test.jsonl`: no query has a relevant document; .* check `rel`",
    ),
    "no grades": ({}, r"test.jsonl` has nothing whose name tells that it is how relevant they are"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    content, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        read_candidates(write(tmp_path / "test.jsonl", ROW | content))
