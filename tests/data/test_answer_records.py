from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from modernbert.data import answer_records
from modernbert.data.answer_records import MOST_CHARACTERS_OFF, read_answers
from modernbert.data.columns import Columns
from modernbert.data.records import AnswerRecord, Records
from tests.data.scaffold import refusal

CONTEXT = "Ada wrote to Bob. Bob wrote to Cyd."


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(answers: Any, **more: Any) -> dict[str, Any]:
    return {"id": "q", "question": "Who?", "context": CONTEXT, "answers": answers, **more}


def answers_of(records: Records[AnswerRecord]) -> list[tuple[tuple[int, str], ...]]:
    return [record.answers for record in records.records]


def remarks_of(records: Records[AnswerRecord]) -> dict[str, int]:
    return {remark.kind: remark.number for remark in records.remarks}


class TestSquad:
    def squad(self, path: Path, *questions: dict[str, Any]) -> Path:
        article = {"title": "Letters", "paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}
        path.write_text(json.dumps({"version": "v2.0", "data": [article]}))
        return path

    def test_questions_are_read_with_and_without_answers(self, tmp_path: Path) -> None:
        path = self.squad(
            tmp_path / "train.json",
            {"id": "a1", "question": "Who wrote?", "answers": [{"text": "Ada", "answer_start": 0}]},
            {
                "id": "a2",
                "question": "Who read?",
                "answers": [],
                "plausible_answers": [{"text": "Bob", "answer_start": 13}],
                "is_impossible": True,
            },
        )
        records = read_answers(path)
        assert records.records == [
            AnswerRecord(
                id="a1",
                question="Who wrote?",
                context=CONTEXT,
                answers=((0, "Ada"),),
                place=f"{path}, question a1",
            ),
            AnswerRecord(
                id="a2", question="Who read?", context=CONTEXT, answers=(), place=f"{path}, question a2"
            ),
        ]
        assert records.columns == Columns()

    def test_a_question_that_cannot_be_used_is_named(self, tmp_path: Path) -> None:
        wrong = {"id": "a7", "question": "Who?", "answers": [{"text": "Dan", "answer_start": 3}]}
        path = self.squad(tmp_path / "train.json", wrong)
        assert refusal(lambda: read_answers(path)).startswith(
            f"`{path}, question a7`: the answer 'Dan' must stand"
        )
        path = self.squad(tmp_path / "b.json", {"id": "a8", "answers": []})
        assert refusal(lambda: read_answers(path)).startswith(f"`{path}, question a8` has no `question`;")

    def test_other_shapes_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text('{"data": [{"paragraphs": [{"context": "a", "qas": 3}]}]}')
        assert refusal(lambda: read_answers(path)).startswith(
            f"`{path}, row 1`: `qas` is 3; it must be a list of"
        )
        path.write_text('{"data": [{"paragraphs": []}]}')
        assert refusal(lambda: read_answers(path)).startswith(f"`{path}` holds no question;")


class TestRows:
    @pytest.mark.parametrize(
        ("answers", "read"),
        [
            ({"text": ["Ada", "Cyd"], "answer_start": [0, 31]}, ((0, "Ada"), (31, "Cyd"))),
            ([{"text": "Bob", "answer_start": 18}], ((18, "Bob"),)),
            ('{"text": ["Bob"], "answer_start": [13]}', ((13, "Bob"),)),
            ({"text": [], "answer_start": []}, ()),
            ([], ()),
            (None, ()),
            ("", ()),
            ("Cyd", ((31, "Cyd"),)),
            (["Ada"], ((0, "Ada"),)),
        ],
    )
    def test_answers_come_in_several_forms(self, tmp_path: Path, answers: Any, read: Any) -> None:
        records = read_answers(write_rows(tmp_path / "a.jsonl", row(answers)))
        assert answers_of(records) == [read]
        assert records.columns == Columns(question="question", context="context", answers="answers", id="id")
        assert remarks_of(records) == {}

    def test_csv_may_have_the_place_in_a_column(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text(f"question,context,answer,answer_start\nWho?,{CONTEXT},Bob,18\nWhom?,{CONTEXT},,\n")
        records = read_answers(path)
        assert answers_of(records) == [((18, "Bob"),), ()]
        assert [record.id for record in records.records] == ["1", "2"]

    def test_an_impossible_question_has_no_answer(self, tmp_path: Path) -> None:
        answers = [{"text": "Ada", "answer_start": 0}]
        path = write_rows(
            tmp_path / "a.jsonl", row(answers, is_impossible=True), row(answers, is_impossible=False)
        )
        assert answers_of(read_answers(path)) == [(), ((0, "Ada"),)]

    def test_answers_may_be_missing_where_none_are_wanted(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "a.jsonl", {"question": "Who?", "context": CONTEXT})
        assert answers_of(read_answers(path, labelled=False)) == [()]
        assert "tells that it is `answers`" in refusal(lambda: read_answers(path))

    def test_what_is_odd_is_counted(self, tmp_path: Path) -> None:
        path = write_rows(
            tmp_path / "a.jsonl",
            row("Bob"),
            row([{"text": "Bob", "answer_start": 12}]),
            {"question": " ", "context": "", "answers": []},
        )
        records = read_answers(path)
        assert answers_of(records) == [((13, "Bob"),), ((13, "Bob"),), ()]
        assert remarks_of(records) == {
            answer_records.SEARCHED: 1,
            answer_records.MOVED: 1,
            answer_records.DUPLICATE: 1,
            answer_records.EMPTY_QUESTION: 1,
            answer_records.EMPTY_CONTEXT: 1,
        }

    @given(
        text=st.text("ab ", min_size=1, max_size=30),
        place=st.integers(0, 29),
        length=st.integers(1, 5),
        off=st.integers(-40, 40),
    )
    def test_the_nearest_place_is_taken(
        self, tmp_path_factory: pytest.TempPathFactory, text: str, place: int, length: int, off: int
    ) -> None:
        answer = text[place % len(text) :][:length]
        if not answer.strip():
            return
        start = place % len(text) + off
        path = tmp_path_factory.mktemp("answers") / "a.jsonl"
        write_rows(path, row([{"text": answer, "answer_start": start}], context=text))
        ((found, _),) = answers_of(read_answers(path))[0]
        assert text.startswith(answer, found)
        others = [other for other in range(len(text)) if text.startswith(answer, other)]
        assert abs(found - start) == min(abs(other - start) for other in others)

    @pytest.mark.parametrize(
        ("answers", "complaint"),
        [
            (
                [{"text": "Dan", "answer_start": 3}],
                (
                    "the answer 'Dan' must stand in its text at 3, and is nowhere in the text; it must be "
                    "there letter by letter; mend it"
                ),
            ),
            ("Dan", "the answer 'Dan' must stand in its text, and is nowhere in the text"),
            (
                [{"text": "Cyd", "answer_start": 32 + MOST_CHARACTERS_OFF}],
                "the answer 'Cyd' must stand in its text at 132, and is at 31;",
            ),
            (
                {"text": ["Ada"], "answer_start": []},
                "`answers` is {'text': ['Ada'], 'answer_start': []}; it must",
            ),
            (
                [{"text": " ", "answer_start": 3}],
                "an answer in `answers` is ' '; it must be a string that is not",
            ),
            ([{"answer_start": 3}], "an answer in `answers` is None; it must be a string"),
            ([{"text": "Ada", "answer_start": 0.5}], "an `answer_start` is 0.5; it must be a whole number"),
            (7, "an answer in `answers` is 7; it must be a string"),
        ],
    )
    def test_an_answer_that_cannot_be_is_named(self, tmp_path: Path, answers: Any, complaint: str) -> None:
        path = write_rows(tmp_path / "a.jsonl", row([]), row(answers))
        assert refusal(lambda: read_answers(path)).startswith(f"`{path}, line 2`: {complaint}")
