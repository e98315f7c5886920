"""Pairs from the files that people have: columns guessed, lists, what cannot be used named with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modernbert.data.columns import PairColumns
from modernbert.data.pair_records import EMPTY, SAME, read_pairs
from modernbert.errors import InputError


def written(folder: Path, *rows: dict[str, Any], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "names",
    [("anchor", "positive"), ("Query", "passage"), ("question", "answer"), ("sentence1", "sentence2")],
)
def test_columns_are_guessed(names: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f"{names[0]},{names[1]}\n[1] a,[2] b\nc,d\n")
    found = read_pairs(path)
    assert [(it.query, it.positive, it.negatives) for it in found.records] == [
        ("[1] a", "[2] b", ()),
        ("c", "d", ()),
    ]
    assert found.columns.summary() == f"query: {names[0]}, positive: {names[1]}"
    assert found.records[1].place.endswith("pairs.csv, line 3")


@pytest.mark.parametrize(
    "wrong",
    [
        {"negatives": ["x", "y"]},
        {"neg": ["x", "y", "b"]},  # what is right is not wrong too
        {"negative_1": "x", "negative_2": "y"},
        {"negative": "x", "neg_2": "y"},
    ],
)
def test_negatives_are_lists_or_columns(wrong: dict[str, Any], tmp_path: Path) -> None:
    found = read_pairs(written(tmp_path, {"query": "a", "pos": ["b", "c"], **wrong}))
    negatives = ("x",) if "negative" in wrong else ("x", "y")
    assert [(it.query, it.positive, it.negatives) for it in found.records] == [
        ("a", "b", negatives),
        ("a", "c", negatives),
    ]


def test_given_columns_go_before_guesses(tmp_path: Path) -> None:
    path = written(tmp_path, {"query": "a", "positive": "b", "head": "h", "label": 1, "bad": "n"})
    found = read_pairs(path, PairColumns(query="head", positive="positive", negatives="bad"))
    assert [(it.query, it.positive, it.negatives) for it in found.records] == [("h", "b", ("n",))]


def test_what_is_odd_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [("a", "b"), (" ", "b"), ("a", ""), ("a", "a"), ("a", None)]
    found = read_pairs(written(tmp_path, *({"query": a, "positive": b} for a, b in rows)))
    assert [it.query for it in found.records] == ["a"]
    assert [(it.kind, it.number) for it in found.remarks] == [(EMPTY, 3), (SAME, 1)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": "x", "b": "y"}, r"no column whose name tells that it is `query`.*it has `a`, `b`"),
        ({"query": "x", "positive": "y", "score": 0.1}, r"has a column `score`, which may say that"),
        ({"query": 3, "positive": "y"}, r"pairs.jsonl, line 1`: `query` is 3; it must be a string"),
        ({"query": "x", "positive": ["y", 3]}, r"line 1`: `positive` is 3; it must be a string"),
        ({"query": "x", "positive": " "}, r"no row has something in both `query` and `positive`"),
    ],
)
def test_what_cannot_be_used_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_pairs(written(tmp_path, row))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"query": "a", "positive": "b"})
    with pytest.raises(InputError, match=r"no column `querry`; did you mean `query`.*`columns.query`"):
        read_pairs(path, PairColumns(query="querry"))
