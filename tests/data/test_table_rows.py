from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from modernbert.data import remote
from modernbert.data.table_rows import TableRow, read_table
from tests.data.scaffold import refusal

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)
NAMES = st.lists(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=5),
    min_size=2,
    max_size=4,
    unique=True,
)
TABLES = NAMES.flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, CELLS)), min_size=1, max_size=6)
)


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = bytes(importlib.import_module("pyarrow").compress(data, codec="zstd", asbytes=True))
    path.write_bytes(data)
    return path


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    table = importlib.import_module("pyarrow").table(columns)
    importlib.import_module("pyarrow.parquet").write_table(table, path)
    return path


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows as the kind of file that the name says."""
    if path.suffix == ".parquet":
        return write_parquet(path, {name: [row[name] for row in rows] for name in rows[0]})
    if ".json" in path.name:
        is_list = ".jsonl" not in path.name
        return write(path, json.dumps(rows, indent=1) if is_list else "\n".join(map(json.dumps, rows)))
    buffer = io.StringIO()
    delimiter = "\t" if ".tsv" in path.name else ","
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return write(path, buffer.getvalue())


def rows_of(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(row.place.removeprefix(f"{path}, "), dict(row.values)) for row in read_table(path).rows]


@pytest.mark.parametrize(
    "name",
    ["a.csv", "a.csv.gz", "a.csv.zst", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.json", "a.json.zst", "a.parquet"],
)
@given(rows=TABLES)
def test_reading_what_was_written_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory, name: str, rows: list[dict[str, str]]
) -> None:
    path = write_rows(tmp_path_factory.mktemp("rows") / name, rows)
    table = read_table(path)
    assert [row.values for row in table.rows] == rows
    assert list(table.columns) == list(rows[0])
    assert table.is_delimited == (".csv" in name or ".tsv" in name)


class TestDelimited:
    def test_a_row_knows_the_line_that_it_begins_at(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", '\ufefftext,label\r\n"two\nlines, one ""text""",x\r\n\r\nlast,y')
        assert rows_of(path) == [
            ("line 2", {"text": 'two\nlines, one "text"', "label": "x"}),
            ("line 5", {"text": "last", "label": "y"}),
        ]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_the_header_tells_what_separates(self, tmp_path: Path, delimiter: str) -> None:
        path = write(tmp_path / "a.csv", f'text{delimiter}label\n"a, b; c\td"{delimiter}x\n')
        assert rows_of(path) == [("line 2", {"text": "a, b; c\td", "label": "x"})]

    def test_quotes_in_tsv_count_only_if_all_lines_fit_so(self, tmp_path: Path) -> None:
        quoted = write(tmp_path / "a.tsv", 'text\tlabel\n"say ""a\tb"""\tx\n')
        assert rows_of(quoted) == [("line 2", {"text": 'say "a\tb"', "label": "x"})]
        bare = write(tmp_path / "b.tsv", 'text\tlabel\n"No", he said\tx\n" open\ty\n')
        assert [row["text"] for _, row in rows_of(bare)] == ['"No", he said', '" open']

    def test_a_long_text_is_read(self, tmp_path: Path) -> None:
        text = "word " * 100_000
        usual = csv.field_size_limit()
        assert rows_of(write(tmp_path / "a.csv", f"text,label\n{text},1\n"))[0][1]["text"] == text
        assert csv.field_size_limit() == usual

    def test_a_broken_line_is_named(self, tmp_path: Path) -> None:
        lines = ["text,label", *(f"text {number},x" for number in range(2, 10))]
        for line, complaint in {
            "one, two,x": "has 3 fields (`one`, ` two`, `x`); the first line names 2 (`text`, `label`)",
            "alone": "has 1 fields (`alone`); the first line names 2",
            '"quote" goes on,x': "begins a row that cannot be read (',' expected after '\"')",
            '"open,x': "begins a row that cannot be read (unexpected end of data)",
        }.items():
            path = write(tmp_path / "train.csv", "\n".join([*lines[:6], line, *lines[7:]]))
            message = refusal(lambda path=path: read_table(path))  # type: ignore[misc]
            assert message.startswith(f"`{path}, line 7` {complaint}")
            assert message.endswith(("; mend the line", "; mend it"))

    def test_a_broken_line_of_tsv_is_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tsv", 'text\tlabel\n"one\tx\nb\tc\td\n')
        assert refusal(lambda: read_table(path)) == (
            f"`{path}, line 3` has 3 fields (`b`, `c`, `d`); the first line names 2 (`text`, `label`), and "
            "each line must have as many; a text must not have tabs or newlines; mend the line"
        )

    def test_what_is_no_header_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "x,x\na,b\n")
        assert f"`{path}, line 1` names the column `x` twice; it must give" in refusal(
            lambda: read_table(path)
        )


class TestJson:
    def test_blank_lines_are_none_and_keys_may_differ(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '\n{"a": 1}\n \r\n{"b": [2]}')
        assert rows_of(path) == [("line 2", {"a": 1}), ("line 4", {"b": [2]})]
        assert read_table(path).columns == ("a", "b")

    def test_a_list_tells_the_lines_of_its_objects(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.json", ' [\n {"a":\n 1},\n\n {"a": 2}, {"a": "]"}\n]\n')
        assert rows_of(path) == [("line 2", {"a": 1}), ("line 5", {"a": 2}), ("line 5", {"a": "]"})]

    def test_json_may_be_lines_or_hold_its_rows_as_data(self, tmp_path: Path) -> None:
        lines = write(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\n')
        assert rows_of(lines) == [("line 1", {"a": 1}), ("line 2", {"a": 2})]
        data = write(tmp_path / "b.json", '{"version": 1,\n "data": [{"a": 1}, {"a": 2}]}')
        assert rows_of(data) == [("row 1", {"a": 1}), ("row 2", {"a": 2})]

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("a.jsonl", '{"a": 1}\n{"a": 1', ", line 2` is not valid JSON (Expecting ',' delimiter"),
            ("a.jsonl", '{"a": 1}\n[1]\n', ", line 2` holds [1]; each line must be a JSON object"),
            ("a.json", '[{"a": 1},\n{"a" 1}]', ", line 2` begins what is not valid JSON (Expecting ':'"),
            ("a.json", '[{"a": 1},\n3]', ", line 2` holds 3; each element of the list must be a JSON object"),
            ("a.json", '[{"a": 1},\n{"a": 1}', ", line 2`: after this object the list neither goes on nor"),
            ("a.json", '[{"a": 1},\n', ", line 2` begins what is not valid JSON (Expecting value"),
            ("a.json", "[]", "` holds no rows; there must be at least one"),
            ("a.json", '{"a": 1}\n{"a": ', ", line 2` is not valid JSON"),
        ],
    )
    def test_what_is_broken_is_named(self, tmp_path: Path, name: str, content: str, complaint: str) -> None:
        path = write(tmp_path / name, content)
        assert refusal(lambda: read_table(path)).startswith(f"`{path}{complaint}")


class TestParquet:
    def test_rows_are_counted_and_lists_are_lists(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", {"words": [["a", "b"], ["c"]], "label": [0, None]})
        assert rows_of(path) == [
            ("row 1", {"words": ["a", "b"], "label": 0}),
            ("row 2", {"words": ["c"], "label": None}),
        ]
        assert read_table(path).class_names == {}

    def test_names_of_classes_are_read_as_datasets_writes_them(self, tmp_path: Path) -> None:
        datasets = importlib.import_module("datasets")
        names = ["O", "B-X", "I-X"]
        features = datasets.Features(
            {
                "tags": datasets.List(datasets.ClassLabel(names=names)),
                "words": datasets.List(datasets.Value("string")),
            }
        )
        path = tmp_path / "a.parquet"
        datasets.Dataset.from_dict({"tags": [[1, 2]], "words": [["a", "b"]]}, features=features).to_parquet(
            path
        )
        assert read_table(path).class_names == {"tags": tuple(names)}

    def test_a_damaged_file_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.parquet", b"PAR1 but no more")
        assert "it seems cut short or damaged" in refusal(lambda: read_table(path))


def test_a_data_set_of_the_hub_is_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "data_set" / "data"
    folder.mkdir(parents=True)
    for part in range(2):
        (folder / f"train-{part}.jsonl").write_text(f'{{"text": "a {part}", "label": {part}}}\n')
    remote._hub_stream.cache_clear()
    table = read_table(f"hub://{folder.parent}?split=train")
    assert [(row.place, row.values) for row in table.rows] == [
        (f"hub://{folder.parent}?split=train#{part}, row 1", {"text": f"a {part}", "label": part})
        for part in (0, 1)
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, " \n\n")
    assert refusal(lambda: read_table(path)).startswith(f"`{path}` is empty; it must hold examples;")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    header = write(tmp_path / "a.csv", "text,label\n")
    assert refusal(lambda: read_table(header)).startswith(
        f"`{header}` holds no rows; there must be at least one"
    )
    missing = tmp_path / "b.csv"
    assert f"`{missing}` could not be opened (No such file" in refusal(lambda: read_table(missing))
    assert "`a.xlsx` is of an unknown kind; its name must end in one of .csv, .tsv," in refusal(
        lambda: read_table(tmp_path / "a.xlsx")
    )
    latin = write(tmp_path / "c.csv", "text,label\nok,1\ncaf\xe9,2\n".encode("latin1"))
    assert f"`{latin}:3`: byte 4 of the line (0xe9) is not UTF-8" in refusal(lambda: read_table(latin))
    cut = tmp_path / "d.csv.gz"
    cut.write_bytes(gzip.compress(b"text,label\n" * 100)[:-12])
    assert "it seems cut short or damaged" in refusal(lambda: read_table(cut))


class TestRow:
    row = TableRow(values={"n": 3, "list": ' ["a", 1]', "half": "[1", "text": "[x] y"}, place="a.csv, line 2")

    def test_a_text_must_be_one(self) -> None:
        assert refusal(lambda: self.row.text("n")).startswith(
            "`a.csv, line 2`: `n` is 3; it must be a string;"
        )
        assert refusal(lambda: self.row.text("m")).startswith(
            "`a.csv, line 2` has no `m`; every row must have it;"
        )

    def test_json_in_a_string_is_read(self) -> None:
        assert self.row.structure("list") == ["a", 1]
        assert self.row.structure("n") == 3
        assert self.row.structure("nothing") is None
        assert "`a.csv, line 2`: `half` is '[1', which is not valid JSON" in refusal(
            lambda: self.row.structure("half")
        )
