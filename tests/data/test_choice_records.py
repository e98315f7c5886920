from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modernbert.data import choice_records
from modernbert.data.choice_records import read_choices
from modernbert.data.columns import Columns
from modernbert.data.records import ChoiceRecord
from tests.data.scaffold import refusal


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(label: Any, choices: Any = ("red", "green", "blue")) -> dict[str, Any]:
    return {"question": "Grass is", "choices": choices, "label": label}


@pytest.mark.parametrize(
    ("label", "choices", "index"),
    [
        (1, ("red", "green", "blue"), 1),
        (1.0, ("red", "green"), 1),
        ("1", ("red", "green"), 1),
        ("B", ("red", "green"), 1),
        ("b", ("red", "green"), 1),
        ("green", ("red", "green"), 1),
        ("b", ("a", "c", "b"), 2),
        ("12", ("10", "12"), 1),
        ("2", {"text": ["red", "green"], "label": ["1", "2"]}, 1),
        ("B", {"text": ["red", "green"], "label": ["A", "B"]}, 1),
        (1, {"text": ["red", "green"]}, 1),
        (1, '["red", "green"]', 1),
    ],
)
def test_a_label_is_an_index_a_letter_a_name_or_a_text(
    tmp_path: Path, label: Any, choices: Any, index: int
) -> None:
    path = write_rows(tmp_path / "a.jsonl", row(label, choices))
    (record,) = read_choices(path).records
    assert record.label == index
    assert record.choices[index] in ("green", "b", "12")
    assert (record.prompt, record.place) == ("Grass is", f"{path}, line 1")


def test_choices_stand_in_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "premise,question,choice1,choice2,choice3,label\nIt rains.,effect,wet,dry,,0\n,why,a,b,c,C\n"
    )
    records = read_choices(path)
    assert records.records == [
        ChoiceRecord(prompt="It rains. effect", choices=("wet", "dry"), label=0, place=f"{path}, line 2"),
        ChoiceRecord(prompt="why", choices=("a", "b", "c"), label=2, place=f"{path}, line 3"),
    ]
    assert records.columns.choices == "choice1,choice2,choice3"
    assert list(records.remarks) == []


def test_a_right_answer_among_distractors_is_moved_by_the_text_alone(tmp_path: Path) -> None:
    rows = [
        {
            "question": f"What is {number}?",
            "support": "" if number % 2 else "Numbers are.",
            "correct_answer": "right",
            **{f"distractor{other}": f"wrong {other}" for other in (1, 2, 3)},
        }
        for number in range(40)
    ]
    first = read_choices(write_rows(tmp_path / "a.jsonl", *rows)).records
    assert first[0].prompt == "Numbers are. What is 0?"
    assert first[1].prompt == "What is 1?"
    assert {record.choices[record.label or 0] for record in first} == {"right"}
    assert {record.label for record in first} == {0, 1, 2, 3}
    again = read_choices(write_rows(tmp_path / "b.jsonl", *reversed(rows))).records
    assert [(it.choices, it.label) for it in reversed(again)] == [(it.choices, it.label) for it in first]


def test_rows_without_a_label_are_left_out_unless_wanted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", row(None), row(0), row(""))
    records = read_choices(path)
    assert [record.label for record in records.records] == [0]
    assert [(it.kind, it.number, it.first) for it in records.remarks] == [
        (choice_records.NO_LABEL, 2, f"{path}, line 1")
    ]
    assert [record.label for record in read_choices(path, labelled=False).records] == [None, 0, None]
    path = write_rows(tmp_path / "b.jsonl", row(None))
    assert refusal(lambda: read_choices(path)).startswith(f"`{path}`: no row has anything in `label`;")


def test_what_is_odd_is_counted(tmp_path: Path) -> None:
    rows = [row(0), row(1), {**row(0, ["a", "a"]), "question": " "}, row(0, ["", "b"])]
    records = read_choices(write_rows(tmp_path / "a.jsonl", *rows))
    assert len(records.records) == 4
    assert {remark.kind: remark.first.rpartition(" ")[2] for remark in records.remarks} == {
        choice_records.DUPLICATE: "2",
        choice_records.EMPTY_PROMPT: "3",
        choice_records.SAME_CHOICES: "3",
        choice_records.EMPTY_CHOICE: "4",
    }


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (
            row(3),
            (
                ": the label is 3, and there are 3 choices; it must be the index of one, counted from 0, a "
                "letter from A to C, or the text of one; mend it"
            ),
        ),
        (row("D"), ": the label is 'D', and there are 3 choices"),
        (row(-1), ": the label is -1, and there are 3 choices"),
        (row(True), ": the label is True, and there are 3 choices"),
        (row(0, ["a"]), " has 1 choices in `choices`; there must be at least 2; add some, or remove the row"),
        (row(0, "a"), ": `choices` is 'a'; it must be a list of choices; mend it"),
        (row(0, [1, 2]), ": `choices` is 1; it must be a string"),
        (
            row(0, {"text": ["a", "b"], "label": ["A"]}),
            ": `choices` is {'text': ['a', 'b'], 'label': ['A']}; it",
        ),
        ({"choices": ["a", "b"], "label": 0}, " has no `question`; every row must have it"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, wrong: Any, complaint: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", row(0), wrong)
    assert refusal(lambda: read_choices(path)).startswith(f"`{path}, line 2`{complaint}")


def test_columns_may_be_given(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", {"q": "Is it?", "good": "yes", "bad": "no"})
    (record,) = read_choices(path, Columns(question="q", choices="good,bad", label="good")).records
    assert (record.prompt, record.choices[record.label or 0]) == ("Is it?", "yes")
