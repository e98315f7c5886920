from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, get_args

import hypothesis.strategies as st
import pytest
from hypothesis import given

from modernbert.data import text_records
from modernbert.data.columns import Columns
from modernbert.data.records import Label, Records, TextRecord
from modernbert.data.text_records import Problem, check_labels, guess_problem, label_names, read_texts
from tests.data.scaffold import refusal

SINGLE, MULTI, REGRESSION = get_args(Problem)


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def write_labels(path: Path, labels: list[Any]) -> Path:
    lines = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    return write(path, "".join(json.dumps(line) + "\n" for line in lines))


def labelled(*labels: Label | None, name: str = "train.csv") -> list[TextRecord]:
    return [
        TextRecord(texts=(f"text {line}",), label=label, place=f"{name}, line {line}")
        for line, label in enumerate(labels, 2)
    ]


def labels_of(records: Records[TextRecord]) -> list[Label | None]:
    return [record.label for record in records.records]


def remarks_of(records: Records[TextRecord]) -> dict[str, tuple[int, str]]:
    return {
        remark.kind: (remark.number, remark.first.removeprefix(f"{records.path}, "))
        for remark in records.remarks
    }


class TestReading:
    def test_a_pair_with_its_label(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "premise,hypothesis,label\nit rains,it is wet,entailment\n")
        records = read_texts(path)
        assert records.columns == Columns(text="premise", text_pair="hypothesis", label="label")
        assert records.records == [
            TextRecord(texts=("it rains", "it is wet"), label="entailment", place=f"{path}, line 2")
        ]
        assert list(records.remarks) == []

    @pytest.mark.parametrize(
        ("written", "read"),
        [
            (["a", " b ", "a"], ["a", "b", "a"]),
            ([0, 2, 1], [0, 2, 1]),
            ([0.5, 4.0], [0.5, 4.0]),
            ([True, False], ["true", "false"]),
            ([["a", "b"], [], ["b", "b"]], [("a", "b"), (), ("b",)]),
            ([[0, 3], [12]], [("0", "3"), ("12",)]),
            ([[0, 1, 0], [1, 1, 0]], [(0.0, 1.0, 0.0), (1.0, 1.0, 0.0)]),
            ([[True, False, False]], [(1.0, 0.0, 0.0)]),
            ([[0.5, 1], [2, 0.25]], [(0.5, 1.0), (2.0, 0.25)]),
        ],
    )
    def test_labels_of_json(self, tmp_path: Path, written: list[Any], read: list[Label]) -> None:
        assert labels_of(read_texts(write_labels(tmp_path / "a.jsonl", written))) == read

    @pytest.mark.parametrize(
        ("written", "read"),
        [
            ("1 0 12", [1, 0, 12]),
            ("1 2.5 -3e2", [1.0, 2.5, -300.0]),
            ("1 2 x", ["1", "2", "x"]),
            ("007 008", ["007", "008"]),
            ('"[""a"",""b""]" [] ["c"]', [("a", "b"), (), ("c",)]),
            ("[x] y", ["[x]", "y"]),
        ],
    )
    def test_labels_of_csv(self, tmp_path: Path, written: str, read: list[Label]) -> None:
        lines = "".join(f"text {number},{label}\n" for number, label in enumerate(written.split()))
        records = read_texts(write(tmp_path / "a.csv", f"text,label\n{lines}"))
        assert labels_of(records) == read
        assert [type(label) for label in labels_of(records)] == [*map(type, read)]

    def test_several_labels_may_stand_in_one_string(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\na,x| y\nb,\nc,y\n")
        assert labels_of(read_texts(path, label_separator="|")) == [("x", "y"), (), ("y",)]
        assert labels_of(read_texts(path)) == ["x| y", "y"]

    def test_rows_without_a_label_are_left_out_unless_wanted(self, tmp_path: Path) -> None:
        path = write_labels(tmp_path / "a.jsonl", ["x", None, "", float("nan"), "y"])
        records = read_texts(path)
        assert labels_of(records) == ["x", "y"]
        assert remarks_of(records) == {text_records.NO_LABEL: (3, "line 2")}
        assert labels_of(read_texts(path, labelled=False)) == ["x", None, None, None, "y"]
        assert labels_of(read_texts(write(tmp_path / "b.csv", "text\na\n"), labelled=False)) == [None]

    def test_what_is_odd_is_counted(self, tmp_path: Path) -> None:
        rows = ["a,x", " ,x", "b,x", "a,x", "b,y", "a,x"]
        records = read_texts(write(tmp_path / "a.csv", "text,label\n" + "\n".join(rows)))
        assert len(records.records) == 6
        assert remarks_of(records) == {
            text_records.EMPTY_TEXT: (1, "line 3"),
            text_records.DUPLICATE: (2, "line 5"),
            text_records.CONTRADICTION: (1, "line 6"),
        }

    @given(
        rows=st.lists(
            st.tuples(st.text(max_size=9), st.sampled_from(["a", 3, 0.5, ["a"], None])), min_size=1
        ).filter(lambda rows: any(label is not None for _, label in rows))
    )
    def test_no_row_is_lost_and_each_knows_its_line(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, Any]]
    ) -> None:
        path = tmp_path_factory.mktemp("texts") / "a.jsonl"
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        records = read_texts(path)
        numbers = [int(record.place.rpartition(" ")[2]) for record in records.records]
        assert numbers == [number for number, (_, label) in enumerate(rows, 1) if label is not None]
        assert [record.texts[0] for record in records.records] == [rows[number - 1][0] for number in numbers]

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ('{"text": 3, "label": 1}', "line 2`: `text` is 3; it must be a string"),
            (
                '{"text": "\\ud800", "label": 1}',
                "line 2`: character 1 of `text` is '\\ud800', half a surrogate",
            ),
            ('{"label": 1}', "line 2` has no `text`; every row must have it"),
            (
                '{"text": "b", "label": {"a": 1}}',
                "line 2`: the label `label` is {'a': 1}; it must be a string,",
            ),
            (
                '{"text": "b", "label": Infinity}',
                "line 2`: the label `label` is inf; it must be a string, a finite",
            ),
            (
                '{"text": "b", "label": [0.5, "x"]}',
                "line 2`: the list of labels has 'x' where others have numbers",
            ),
        ],
    )
    def test_a_row_that_cannot_be_used_is_named(self, tmp_path: Path, line: str, complaint: str) -> None:
        path = write(tmp_path / "a.jsonl", f'{{"text": "a", "label": 1}}\n{line}\n')
        assert refusal(lambda: read_texts(path)).startswith(f"`{path}, {complaint}")

    def test_ids_stay_and_their_names_are_told(self, tmp_path: Path) -> None:
        datasets = importlib.import_module("datasets")
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
        data.to_parquet(tmp_path / "a.parquet")
        records = read_texts(tmp_path / "a.parquet")
        assert labels_of(records) == [1, 0]
        assert records.class_names == ("no", "yes")
        assert records.records[1].place == f"{tmp_path / 'a.parquet'}, row 2"

    def test_a_file_without_labels_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\na,\nb,\n")
        assert refusal(lambda: read_texts(path)).startswith(f"`{path}`: no row has anything in `label`;")
        path = write(tmp_path / "b.csv", "text,mood\na,x\nb,y\n")
        assert "tells that it is `label`" in refusal(lambda: read_texts(path))
        assert labels_of(read_texts(path, Columns(label="mood"))) == ["x", "y"]


class TestProblem:
    @pytest.mark.parametrize(
        ("labels", "problem"),
        [
            (["a", "b"], SINGLE),
            ([0, 1, 1], SINGLE),
            ([1.0, 2.0], SINGLE),
            ([0, 1, "x"], SINGLE),
            ([*range(150)], SINGLE),
            ([*range(0, 100, 2)], REGRESSION),
            ([0, 0.5, 1], REGRESSION),
            ([("a",), ()], MULTI),
            ([(0.0, 1.0), (1.0, 1.0)], MULTI),
            ([(0.0, 1.5)], REGRESSION),
            ([None, "a"], SINGLE),
        ],
    )
    def test_labels_tell_what_it_is(self, labels: list[Label | None], problem: Problem) -> None:
        assert guess_problem(labelled(*labels)) == problem

    def test_mixed_and_missing_labels_are_refused(self) -> None:
        assert refusal(lambda: guess_problem(labelled(("a",), "b"))).startswith(
            "`train.csv, line 3`: the label is 'b', others are lists; all must be lists if some are;"
        )
        assert "no example has a label" in refusal(lambda: guess_problem(labelled(None)))

    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            (["b", "a", "b"], ["a", "b"]),
            ([10, 2, 0], ["0", "2", "10"]),
            (["10", "2"], ["2", "10"]),
            ([1.0, 0, 2.5], ["0", "1", "2.5"]),
            ([1, "x"], ["1", "x"]),
            ([("c", "a"), (), ("b",)], ["a", "b", "c"]),
            ([("10", "9")], ["9", "10"]),
            ([(0.0, 1.0, 0.0)], ["0", "1", "2"]),
        ],
    )
    def test_names_have_an_order_of_their_own(self, labels: list[Label], names: list[str]) -> None:
        assert label_names(labelled(*labels)) == names
        assert label_names(labelled(*reversed(labels))) == names


class TestFittingTogether:
    @pytest.mark.parametrize(
        ("problem", "train", "other"),
        [
            (SINGLE, ["a", "b"], ["b", None]),
            (SINGLE, [0, 1], [1.0, "0"]),
            (MULTI, [("a", "b")], [(), ("b",)]),
            (MULTI, [(0.0, 1.0)], [(0.0, 0.0)]),
            (REGRESSION, [0.5, 1.5], [7.0]),
            (REGRESSION, [(0.5, 1.0), (0.5, 2.0)], [(3.0, 3.0)]),
        ],
    )
    def test_what_fits_passes(self, problem: Problem, train: list[Label], other: list[Label]) -> None:
        check_labels(labelled(*train), labelled(*other), problem=problem)

    @pytest.mark.parametrize(
        ("problem", "train", "other", "complaint"),
        [
            (
                SINGLE,
                ["good", "bad"],
                ["bad", "godo"],
                (
                    "`dev.csv, line 3`: the label `godo` is in no example to learn from; did you mean "
                    "`good`?; these have: bad, good; add examples with it there, or remove this one"
                ),
            ),
            (
                MULTI,
                [("a",)],
                [("a", "x")],
                "`dev.csv, line 2`: the label `x` is in no example to learn from; these",
            ),
            (
                SINGLE,
                ["a", "a"],
                ["a"],
                (
                    "`train.csv, line 2`: this and all other examples to learn from have the label `a`; "
                    "there must be at least 2 different ones"
                ),
            ),
            (
                MULTI,
                [(), ()],
                [],
                "`train.csv, line 2`: this and all other examples to learn from have no label at",
            ),
            (
                SINGLE,
                ["a", "b"],
                [("a",)],
                "`dev.csv, line 2`: the label is the list ('a',); where each text has one",
            ),
            (
                MULTI,
                [("a",)],
                ["a"],
                "`dev.csv, line 2`: the label is 'a'; for several labels it must be a list;",
            ),
            (
                MULTI,
                [(0.0, 2.0)],
                [],
                "`train.csv, line 2`: the label is (0.0, 2.0); to say which of several labels",
            ),
            (
                MULTI,
                [(0.0, 1.0)],
                [(0.0,)],
                "`dev.csv, line 2`: the label has 1 numbers, the first to learn from has 2",
            ),
            (
                REGRESSION,
                [0.5],
                ["x"],
                "`dev.csv, line 2`: the label is 'x'; for regression it must be a number;",
            ),
            (
                REGRESSION,
                [0.5],
                [(0.5, 1.0)],
                "`dev.csv, line 2`: the label has 2 numbers, the first to learn from",
            ),
            (
                REGRESSION,
                [0.5, 0.5],
                [0.7],
                "`train.csv, line 2`: this and all other examples to learn from have the label `0.5`;",
            ),
        ],
    )
    def test_what_does_not_fit_is_named(
        self, problem: Problem, train: list[Label], other: list[Label], complaint: str
    ) -> None:
        others = labelled(*other, name="dev.csv")
        message = refusal(lambda: check_labels(labelled(*train), others, problem=problem))
        assert message.startswith(complaint)
