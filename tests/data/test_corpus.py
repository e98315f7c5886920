from __future__ import annotations

import gzip
import importlib
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from modernbert.data import corpus
from modernbert.data.corpus import find_files, read_documents
from modernbert.errors import ConfigError, InputError

TEXTS = ["Alpha.", "  indented, with a trailing space ", "Ωmega — ünïcode 🙂", "last"]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(texts: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({"id": 1, key: text}) + "\n" for text in texts).encode()


def zstd(data: bytes) -> bytes:
    pyarrow = importlib.import_module("pyarrow")
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def parquet(path: Path, columns: dict[str, list[Any]], **options: Any) -> Path:
    pyarrow = importlib.import_module("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(columns), path, **options)
    return path


def texts(path: Path, **options: Any) -> list[str]:
    return [document.text for document in read_documents([path], **options)]


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(read_documents([path], **options))
    return str(caught.value)


class TestFindFiles:
    def test_lists_folders_sorted_and_keeps_the_order_given(self, tmp_path: Path) -> None:
        for name in ("b.txt", "a.jsonl.gz", "deep/c.parquet", "README.md", ".hidden/x.txt", ".partial.txt"):
            write(tmp_path / "folder" / name, "")
        single = write(tmp_path / "z.TXT", "")
        found = find_files([single, str(tmp_path / "folder"), single])
        assert [path.name for path in found] == ["z.TXT", "a.jsonl.gz", "b.txt", "c.parquet"]
        assert find_files(single) == find_files(str(single)) == [single]

    def test_refuses_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"`.*nowhere.txt` does not exist; give the path of a text file"):
            find_files([tmp_path / "nowhere.txt"])

    @pytest.mark.parametrize("name", ["a.json", "a.csv", "a.txt.gz", "text"])
    def test_refuses_an_unknown_kind(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(
            InputError, match=r"is of an unknown kind; its name must end in one of .txt, .jsonl"
        ):
            find_files([write(tmp_path / name, "")])

    def test_refuses_nothing_and_a_folder_without_text(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no text file is given"):
            find_files([])
        write(tmp_path / "README.md", "")
        with pytest.raises(InputError, match="holds no text file; it must hold some of"):
            find_files([tmp_path])


class TestPlainText:
    def test_a_line_is_a_document(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "one\n\n  \r\ntwo \r\nthree")
        documents = list(read_documents([path]))
        assert [document.text for document in documents] == ["one", "two ", "three"]
        assert [document.origin for document in documents] == [f"{path}:{line}" for line in (1, 4, 5)]
        assert [document.bytes_read for document in documents] == [4, 15, 20]

    def test_a_paragraph_is_a_document(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "\n\none\ntwo\n \n\nthree\n\n")
        documents = list(read_documents([path], text_unit="paragraph"))
        assert [document.text for document in documents] == ["one\ntwo", "three"]
        assert [document.origin for document in documents] == [f"{path}:3", f"{path}:7"]
        assert [document.bytes_read for document in documents] == [10, 19]

    def test_a_file_is_a_document(self, tmp_path: Path) -> None:
        files = [write(tmp_path / "a.txt", "one\n\ntwo\n"), write(tmp_path / "b.txt", " \n")]
        (document,) = read_documents(files, text_unit="file")
        assert document == ("one\n\ntwo\n", f"{files[0]}:1", 9, "")

    @pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
    def test_a_byte_order_mark_is_dropped(self, tmp_path: Path, unit: str) -> None:
        assert texts(write(tmp_path / "a.txt", b"\xef\xbb\xbfone"), text_unit=unit) == ["one"]

    @pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    def test_refuses_what_is_not_utf8(self, tmp_path: Path, unit: str, mark: bytes) -> None:
        path = write(tmp_path / "a.txt", mark + "good\nschön\n".encode("latin1"))
        message = refusal(path, text_unit=unit)
        assert message.startswith(f"`{path}:2`: byte 4 of the line (0xf6) is not UTF-8; text must be UTF-8;")
        assert "re-encode as UTF-8" in message

    def test_refuses_utf16(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "text\n".encode("utf-16"))
        assert f"`{path}:1`: byte 1 of the line (0xff)" in refusal(path)

    def test_refuses_an_unknown_unit(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"`text_unit` is 'lines'; did you mean `line`\?"):
            texts(write(tmp_path / "a.txt", ""), text_unit="lines")


class TestJsonLines:
    @pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
    def test_reads_plain_and_compressed(self, tmp_path: Path, suffix: str) -> None:
        compress = {".gz": gzip.compress, ".zst": zstd}.get(suffix[6:], bytes)
        half = json_lines(TEXTS[:2]) + b"\n  \n"
        path = write(tmp_path / f"a{suffix}", compress(half) + compress(json_lines(TEXTS[2:])))  # two members
        documents = list(read_documents([path]))
        assert [document.text for document in documents] == TEXTS
        assert [document.origin for document in documents] == [f"{path}:{line}" for line in (1, 2, 5, 6)]
        assert documents[-1].bytes_read == path.stat().st_size

    def test_reads_another_key_and_skips_blank_texts(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", json_lines(["one", "", " \n", "two"], key="body"))
        assert texts(path, text_key="body") == ["one", "two"]

    def test_reads_escaped_pairs_of_surrogates(self, tmp_path: Path) -> None:
        assert texts(write(tmp_path / "a.jsonl", r'{"text": "\ud83d\ude42"}')) == ["🙂"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"text": "cut', "is not valid JSON (Unterminated string"),
            ("[" * 100_000, "is not valid JSON ("),
            ('["text"]', 'holds ["text"]; each line must be a JSON object: {"text": …}'),
            ('{"texts": "x"}', "has no key `text`; did you mean `texts`?; set `text_key`"),
            ('{"body": "x", "id": 3}', "has no key `text`; it must be one of: body, id; set `text_key`"),
            ("{}", "has no key `text`; the object is empty"),
            ('{"text": null}', "`text` is None; it must be a string"),
            ('{"text": 12}', "`text` is 12; it must be a string"),
            (r'{"text": "a\ud800b"}', r"character 2 of `text` is '\ud800', half a surrogate pair;"),
        ],
    )
    def test_refuses_a_faulty_line(self, tmp_path: Path, line: str, message: str) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "good"}\n\n' + line + "\n")
        found = refusal(path)
        assert found.startswith(f"`{path}:3`")
        assert message in found

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_refuses_a_file_cut_short(self, tmp_path: Path, suffix: str) -> None:
        lines = json_lines([str(number) * 20 for number in range(5000)])
        data = gzip.compress(lines) if suffix == ".gz" else zstd(lines)
        path = write(tmp_path / f"a.jsonl{suffix}", data[: len(data) * 2 // 3])
        message = refusal(path)
        assert "it seems cut short or damaged; fetch or write it again" in message
        assert int(message.split("`")[1].rpartition(":")[2]) > 1000

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_refuses_what_is_not_compressed(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / f"a.jsonl{suffix}", json_lines(TEXTS))
        assert f"`{path}:1`: the file cannot be read on from here" in refusal(path)


class TestParquet:
    def test_reads_in_constant_batches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(corpus, "_PARQUET_BATCH_ROWS", 3)
        many = [f"text {number}" for number in range(20)]
        path = parquet(tmp_path / "a.parquet", {"id": list(range(20)), "text": many}, row_group_size=7)
        documents = list(read_documents([path]))
        assert [document.text for document in documents] == many
        assert [document.origin for document in documents] == [f"{path}:{row}" for row in range(1, 21)]
        assert documents[-1].bytes_read == path.stat().st_size

    def test_refuses_a_missing_column_and_other_types(self, tmp_path: Path) -> None:
        path = parquet(tmp_path / "a.parquet", {"texts": ["a"], "n": [1], "some": ["a"]})
        assert "has no column `text`; did you mean `texts`?; set `text_key`" in refusal(path)
        assert f"`{path}:1`: `n` is 1; it must be a string" in refusal(path, text_key="n")
        path = parquet(tmp_path / "b.parquet", {"text": ["a", None]})
        assert f"`{path}:2`: `text` is None; it must be a string" in refusal(path)

    def test_refuses_a_damaged_file(self, tmp_path: Path) -> None:
        whole = parquet(tmp_path / "a.parquet", {"text": ["text"] * 1000}).read_bytes()
        assert "it seems cut short or damaged" in refusal(write(tmp_path / "b.parquet", whole[:-50]))
        assert "it seems cut short or damaged" in refusal(write(tmp_path / "c.parquet", b"hello"))

    def test_refuses_what_is_not_utf8(self, tmp_path: Path) -> None:
        pyarrow = importlib.import_module("pyarrow")
        raw = pyarrow.array([b"good", b"sch\xf6n"], pyarrow.binary())
        strings = pyarrow.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
        path = parquet(tmp_path / "a.parquet", {"text": strings})
        assert "is not UTF-8" in refusal(path)


def test_a_record_may_name_its_source(tmp_path: Path) -> None:
    lines = ['{"text": "a", "from": "books"}', '{"text": "b"}', '{"from": 7, "text": "c"}']
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert [it.source for it in read_documents([path], source_key="from")] == ["books", "", "7"]
    assert {it.source for it in read_documents([path])} == {""}
    plain = write(tmp_path / "a.txt", "a")
    assert [it.source for it in read_documents([plain], source_key="from")] == [""]
    pytest.importorskip("pyarrow")
    columns = {"from": ["books", None], "n": [1, 2], "text": ["a", "b"]}
    table = parquet(tmp_path / "a.parquet", columns)
    found = [(it.text, it.source) for it in read_documents([table], source_key="from")]
    assert found == [("a", "books"), ("b", "")]
    assert [it.source for it in read_documents([table], source_key="else")] == ["", ""]


class TestSize:
    limit = 1_000_000

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
    def test_refuses_a_5_mb_line_without_holding_it(self, tmp_path: Path, name: str) -> None:
        line = json_lines(["x" * 5_000_000])
        compress = gzip.compress if name.endswith(".gz") else zstd if name.endswith(".zst") else bytes
        path = write(tmp_path / name, compress(json_lines(["good"]) + line + json_lines(["good"])))
        size = f"{len(line):,}"
        del line
        tracemalloc.start()
        message = refusal(path, max_document_bytes=self.limit)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert message == (
            f"`{path}:2`: the line is {size} bytes long; it must be at most 1,000,000; "
            "split it into documents or raise `max_document_bytes`"
        )
        assert peak < 4.5 * self.limit

    def test_the_default_limit_refuses_5_mb(self, tmp_path: Path) -> None:
        assert "5,000,001 bytes" in refusal(write(tmp_path / "a.txt", "x" * 5_000_000 + "\n"))

    def test_stops_counting_a_line_that_never_ends(self) -> None:
        size = corpus._line_bytes(io.BytesIO(b"x" * 5000), b"xxx", 10, "a:1")
        assert 1000 <= size <= 1010

    def test_refuses_long_paragraphs_files_and_rows(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "short\n\n" + 40 * "line\n" + "\nshort\n")
        assert f"`{path}:3`: the paragraph is 105 bytes long" in refusal(
            path, text_unit="paragraph", max_document_bytes=100
        )
        assert f"`{path}`: the file is 214 bytes long" in refusal(
            path, text_unit="file", max_document_bytes=100
        )
        path = parquet(tmp_path / "a.parquet", {"text": ["short", "ä" * 51]})
        assert f"`{path}:2`: the document is 102 bytes long" in refusal(path, max_document_bytes=100)

    @pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
    def test_accepts_exactly_the_limit(self, tmp_path: Path, ending: str) -> None:
        path = write(tmp_path / "a.txt", "x" * 100 + ending)
        for unit in ("line", "paragraph"):
            assert texts(path, text_unit=unit, max_document_bytes=100 + len(ending)) == ["x" * 100]
        assert texts(path, max_document_bytes=100) == ["x" * 100]
        longer = write(tmp_path / "b.txt", "x" * 101 + ending)
        assert f"the line is {101 + len(ending)} bytes long" in refusal(longer, max_document_bytes=100)


def test_refuses_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    assert "could not be opened (No such file or directory)" in refusal(tmp_path / "gone.txt")


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet"])
def test_names_the_extra_that_is_missing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> None:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(importlib, "import_module", absent)
    message = refusal(write(tmp_path / name, b""))
    assert "needs pyarrow to be read" in message
    assert "pip install 'modernbert[data]'" in message
