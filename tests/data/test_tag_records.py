from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from modernbert.data import tag_records
from modernbert.data.columns import Columns
from modernbert.data.records import Records, TagRecord
from modernbert.data.tag_records import check_tags, read_tags, words_of
from tests.data.scaffold import refusal

WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1), min_size=1)


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def spelled(record: TagRecord) -> list[str]:
    return [f"{record.text[start:end]}/{tag}" for (start, end), tag in zip(record.words, record.tags)]


def remarks_of(records: Records[TagRecord]) -> dict[str, tuple[int, str]]:
    return {
        remark.kind: (remark.number, remark.first.removeprefix(f"{records.path}, "))
        for remark in records.remarks
    }


class TestConll:
    def test_sentences_stand_between_blank_lines(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "a.conll",
            "\ufeff-DOCSTART- -X- -X- O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n \t\n"
            "# id 7\n# NN I-NP O\r\nNew\u00a0York\tNNP\tB-LOC\n",
        )
        records = read_tags(path)
        assert [spelled(record) for record in records.records] == [
            ["EU/B-ORG", "rejects/O"],
            ["#/O", "New\u00a0York/B-LOC"],
        ]
        assert [record.place for record in records.records] == [f"{path}, line 3", f"{path}, line 8"]
        assert records.records[0].text == "EU rejects"
        assert (records.scheme, records.columns) == ("BIO", Columns())
        assert list(records.remarks) == []

    @pytest.mark.parametrize("suffix", [".conll", ".txt", ".iob", ".bio"])
    @given(sentences=st.lists(WORDS, min_size=1, max_size=4))
    def test_reading_what_was_written_gives_the_same(
        self, tmp_path_factory: pytest.TempPathFactory, suffix: str, sentences: list[list[str]]
    ) -> None:
        lines = ["".join(f"{word} {'B-X' if word < 'a' else 'O'}\n" for word in words) for words in sentences]
        records = read_tags(write(tmp_path_factory.mktemp("tags") / f"a{suffix}", "\n".join(lines)))
        read = [[record.text[start:end] for start, end in record.words] for record in records.records]
        assert read == sentences
        assert all(len(record.tags) == len(record.words) for record in records.records)

    def test_a_word_without_a_tag_is_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.conll", "EU B-ORG\nrejects\n")
        assert refusal(lambda: read_tags(path)) == (
            f"`{path}, line 2` is 'rejects'; it must be a word and, behind a space or a tab, its tag; mend it"
        )

    def test_a_file_without_words_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.conll", "-DOCSTART- O\n\n")
        assert refusal(lambda: read_tags(path)).startswith(f"`{path}` holds no word with a tag;")

    def test_other_schemes_become_bio_and_broken_tags_are_counted(self, tmp_path: Path) -> None:
        records = read_tags(write(tmp_path / "a.conll", "a I-X\nb B-X\n\nc I-Y\n"))
        assert [record.tags for record in records.records] == [("B-X", "B-X"), ("B-Y",)]
        assert (records.scheme, remarks_of(records)) == ("IOB1", {})
        records = read_tags(write(tmp_path / "b.conll", "a B-X\nb O\nc I-X\n\nd I-X\n"))
        assert [record.tags for record in records.records] == [("B-X", "O", "B-X"), ("B-X",)]
        assert (records.scheme, remarks_of(records)) == ("BIO", {tag_records.MENDED: (2, "line 1")})


class TestWordsWithTags:
    def test_lists_of_strings(self, tmp_path: Path) -> None:
        path = write_rows(
            tmp_path / "a.jsonl", {"tokens": ["in", "New", "York"], "tags": ["O", "B-LOC", "I-LOC"]}
        )
        (record,) = read_tags(path).records
        assert record == TagRecord(
            text="in New York",
            words=((0, 2), (3, 6), (7, 11)),
            tags=("O", "B-LOC", "I-LOC"),
            place=f"{path}, line 1",
        )

    def test_lists_in_csv_are_json(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", 'words,tags\n"[""a"", ""b""]","[""O"", ""B-X""]"\n')
        assert spelled(read_tags(path).records[0]) == ["a/O", "b/B-X"]

    def test_numbers_stand_for_names(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "a.jsonl", {"tokens": ["a", "b"], "ner_tags": [0, 2]})
        records = read_tags(path)
        assert (records.records[0].tags, records.scheme) == (("LABEL_0", "LABEL_2"), "plain")
        records = read_tags(path, names=["O", "B-X", "I-X"])
        assert (records.records[0].tags, records.scheme) == (("O", "B-X"), "IOB1")
        assert (
            f"`{path}, line 1`: `ner_tags` has 2, and there are 2 names of tags, counted from 0"
            in refusal(lambda: read_tags(path, names=["O", "B-X"]))
        )

    def test_a_file_may_tell_what_numbers_stand_for(self, tmp_path: Path) -> None:
        datasets = importlib.import_module("datasets")
        tags = datasets.List(datasets.ClassLabel(names=["O", "B-X", "I-X"]))
        features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags})
        data = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 2]]}, features=features)
        data.to_parquet(tmp_path / "a.parquet")
        assert read_tags(tmp_path / "a.parquet").records[0].tags == ("B-X", "I-X")

    def test_empty_texts_and_words_are_counted(self, tmp_path: Path) -> None:
        rows = [{"tokens": [], "tags": []}, {"tokens": ["", "a"], "tags": ["O", "O"]}]
        records = read_tags(write_rows(tmp_path / "a.jsonl", *rows))
        assert [record.words for record in records.records] == [((0, 0), (1, 2))]
        assert remarks_of(records) == {
            tag_records.NO_WORDS: (1, "line 1"),
            tag_records.BLANK_WORD: (1, "line 2"),
        }

    @pytest.mark.parametrize(
        ("row", "complaint"),
        [
            (
                {"tokens": ["a", "b"], "tags": ["O"]},
                " has 2 words (`tokens`) and 1 tags (`tags`); each word must have one tag; mend it",
            ),
            ({"tokens": "a b", "tags": ["O"]}, ": `tokens` is 'a b'; it must be a list; mend it"),
            ({"tokens": [1], "tags": ["O"]}, ": `tokens` is 1; it must be a string; mend or remove it"),
            (
                {"tokens": ["a"], "tags": [-1]},
                ": `tags` has -1; a tag must be a string or a number from 0 on",
            ),
            (
                {"tokens": ["a"], "tags": [" "]},
                ": `tags` has ' '; a tag must be a string or a number from 0 on",
            ),
            ({"tokens": ["a"]}, ": `tags` is None; it must be a list"),
        ],
    )
    def test_a_row_that_cannot_be_used_is_named(self, tmp_path: Path, row: Any, complaint: str) -> None:
        path = write_rows(tmp_path / "a.jsonl", {"tokens": ["a"], "tags": ["O"]}, row)
        assert refusal(lambda: read_tags(path)).startswith(f"`{path}, line 2`{complaint}")


class TestSpans:
    def test_words_are_cut_where_spans_are(self, tmp_path: Path) -> None:
        spans = [
            {"start": 12, "end": 20, "label": "LOC"},
            [0, 4, "PER"],
            {"start": 22, "end": 24, "type": "ORG"},
        ]
        path = write_rows(tmp_path / "a.jsonl", {"text": "John's from New York, UNO.", "spans": spans})
        records = read_tags(path)
        assert spelled(records.records[0]) == [
            *(
                "John/B-PER",
                "'/O",
                "s/O",
                "from/O",
                "New/B-LOC",
                "York/I-LOC",
                ",/O",
                "UN/B-ORG",
                "O/O",
                "./O",
            )
        ]
        assert records.records[0].text == "John's from New York, UNO."
        assert records.scheme == "BIO"

    def test_a_text_without_spans_is_outside(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "a.jsonl", {"text": "a b", "spans": []}, {"text": " ", "spans": []})
        records = read_tags(path)
        assert [record.tags for record in records.records] == [("O", "O")]
        assert remarks_of(records) == {tag_records.NO_WORDS: (1, "line 2")}

    @given(text=st.text(max_size=40), data=st.data())
    def test_spans_are_found_again(
        self, tmp_path_factory: pytest.TempPathFactory, text: str, data: Any
    ) -> None:
        text = "".join(character for character in text if character.isprintable()) + "x"
        edges = data.draw(st.lists(st.integers(0, len(text)), max_size=8, unique=True).map(sorted))
        spans = [
            [start, end, f"K{start % 2}"]
            for start, end in zip(edges[::2], edges[1::2])
            if text[start:end].strip() == text[start:end] != ""
        ]
        path = write_rows(tmp_path_factory.mktemp("spans") / "a.jsonl", {"text": text, "spans": spans})
        (record,) = read_tags(path).records
        found: list[list[Any]] = []
        for (start, end), tag in zip(record.words, record.tags):
            if tag.startswith("B-"):
                found.append([start, end, tag[2:]])
            elif tag.startswith("I-"):
                found[-1][1] = end
        assert found == spans

    @pytest.mark.parametrize(
        ("spans", "complaint"),
        [
            ([[0, 9, "X"]], "the span 0 to 9 (`X`) is not within the text, which has 8 characters; it must"),
            ([[-1, 2, "X"]], "the span -1 to 2 (`X`) is not within the text"),
            ([[3, 2, "X"]], "the span 3 to 2 (`X`) is not within the text"),
            ([[2, 2, "X"]], "the span 2 to 2 (`X`) is empty; its end must be greater than its start"),
            ([[3, 5, "X"]], "the span 3 to 5 (`X`) holds '  '; it must hold more than space"),
            (
                [[5, 8, "Y"], [0, 6, "X"]],
                (
                    "the spans 0 to 6 (`X`) and 5 to 8 (`Y`) overlap; a character must be in one span at "
                    "most; remove one"
                ),
            ),
            ([{"start": 0, "end": 2}], "`spans` has {'start': 0, 'end': 2}; a span must be an object with"),
            ([[0, "2", "X"]], "`spans` has [0, '2', 'X']; a span must be an object with"),
            ("none", "`spans` is 'none'; it must be a list"),
        ],
    )
    def test_a_span_that_cannot_be_is_named(self, tmp_path: Path, spans: Any, complaint: str) -> None:
        path = write_rows(
            tmp_path / "a.jsonl", {"text": "a", "spans": []}, {"text": "one  two", "spans": spans}
        )
        assert refusal(lambda: read_tags(path)).startswith(f"`{path}, line 2`: {complaint}")


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", []),
            ("  ", []),
            ("one two", ["one", "two"]),
            ("(it's $5.)", ["(", "it", "'", "s", "$", "5", ".", ")"]),
            ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
            ("東京に行く。", ["東京に行く", "。"]),
        ],
    )
    def test_space_and_punctuation_part_them(self, text: str, words: list[str]) -> None:
        assert [text[start:end] for start, end in words_of(text)] == words

    def test_cuts_part_them_too(self) -> None:
        assert words_of("東京に行く", [0, 2, 5]) == [(0, 2), (2, 5)]


class TestFittingTogether:
    def records(self, name: str, *tags: str) -> list[TagRecord]:
        return [
            TagRecord(text="a", words=((0, 1),), tags=(tag,), place=f"{name}, line {line}")
            for line, tag in enumerate(tags, 1)
        ]

    def test_what_fits_passes(self) -> None:
        check_tags(self.records("train", "O", "B-PER"), self.records("dev", "I-PER", "O"))

    def test_a_tag_of_another_file_alone_is_named(self) -> None:
        message = refusal(
            lambda: check_tags(self.records("train", "O", "B-PER"), self.records("dev", "O", "B-PRE"))
        )
        assert message == (
            "`dev, line 2`: the tag `B-PRE` is in no example to learn from; did you mean `B-PER`?; these "
            "have: O, B-PER, I-PER; add examples with it there, or remove this one"
        )

    def test_one_tag_alone_is_refused(self) -> None:
        message = refusal(lambda: check_tags(self.records("train", "O", "O")))
        assert message.startswith(
            "`train, line 1`: this and all other words to learn from have the tag `O`; there"
        )
