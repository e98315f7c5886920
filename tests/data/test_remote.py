"""Text behind URLs and in hub data sets gives the documents that the same text on disk gives."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from modernbert.data import remote, shards
from modernbert.data.corpus import find_files, read_documents, size_of
from modernbert.data.remote import HubPart, RemoteFile
from modernbert.data.shards import write_shards
from tests.data.scaffold import Bytes, refusal


@pytest.fixture
def bucket() -> Iterator[Any]:
    """An empty store that `memory://` names."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A data set as the hub has them: three files of four rows, the text in `content`."""
    folder = tmp_path / "data_set" / "data"
    folder.mkdir(parents=True)
    for part in range(3):
        rows = [{"id": row, "content": f"part {part} row {row}"} for row in range(4)]
        (folder / f"train-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    remote._hub_stream.cache_clear()
    return folder.parent


def texts(url: str, **options: Any) -> list[str]:
    return [document.text for document in read_documents(find_files(url), **options)]


def parquet(rows: list[str]) -> bytes:
    buffer = io.BytesIO()
    table = importlib.import_module("pyarrow").table({"text": rows})
    importlib.import_module("pyarrow.parquet").write_table(table, buffer)
    return buffer.getvalue()


class TestFilesBehindUrls:
    def test_reads_every_kind_as_from_the_disk(self, bucket: Any, tmp_path: Path) -> None:
        lines = "".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(300)).encode()
        zstd = bytes(importlib.import_module("pyarrow").compress(lines, codec="zstd", asbytes=True))
        kinds = {
            "a.txt": b"one\n\ntwo\n",
            "b.jsonl": lines,
            "c.jsonl.gz": gzip.compress(lines),
            "d.jsonl.zst": zstd,
            "e.parquet": parquet([f"row {n}" for n in range(10)]),
        }
        for name, content in kinds.items():
            bucket.pipe(f"/text/{name}", content)
            (tmp_path / name).write_bytes(content)
            found = list(read_documents(find_files(f"memory://text/{name}")))
            here = list(read_documents([tmp_path / name]))
            assert [document.text for document in found] == [document.text for document in here]
            assert [document.bytes_read for document in found] == [document.bytes_read for document in here]
            assert found[0].origin == f"memory:///text/{name}:1"

    def test_lists_folders_and_patterns_as_on_the_disk(self, bucket: Any) -> None:
        for name in ("b.txt", "a.jsonl.gz", "deep/c.parquet", "README.md", ".hidden/x.txt", ".partial.txt"):
            bucket.pipe(f"/text/{name}", b"x\n")
        found = find_files("memory://text")
        assert [str(file) for file in found] == [
            f"memory:///text/{name}" for name in ("a.jsonl.gz", "b.txt", "deep/c.parquet")
        ]
        assert [str(file) for file in find_files("memory://text/*.txt")] == ["memory:///text/b.txt"]
        named_twice = find_files(["memory://text/b.txt", "memory://text"])
        assert [str(file) for file in named_twice] == [str(found[number]) for number in (1, 0, 2)]
        assert isinstance(found[0], RemoteFile)
        assert size_of(found[0]) == 2

    def test_makes_the_same_shards_also_after_an_interruption(
        self, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shards, "_BATCH_DOCUMENTS", 3)
        for part in range(3):
            content = "".join(f"part {part} line {line}\n" for line in range(10)).encode()
            bucket.pipe(f"/text/{part}.txt", content)
            (tmp_path / f"{part}.txt").write_bytes(content)
        whole = write_shards(sorted(tmp_path.glob("*.txt")), Bytes(), tmp_path / "whole", shard_tokens=100)
        last = bucket.cat("/text/2.txt")
        bucket.pipe("/text/2.txt", last[:-5] + b"\xff" * 5)  # what cannot be read ends it
        write: Callable[[], Any] = lambda: write_shards(  # noqa: E731
            "memory://text", Bytes(), tmp_path / "part", shard_tokens=100
        )
        assert "`memory:///text/2.txt:10`: byte" in refusal(write)
        assert json.loads((tmp_path / "part" / "index.json").read_text())["shards"]
        bucket.rm("/text/2.txt")
        assert "these differ: " in refusal(write), "the source vanished: nothing is mixed or lost"
        bucket.pipe("/text/2.txt", last)
        index = tmp_path / "part" / "index.json"
        tree = json.loads(index.read_text())
        tree["shards"] = tree["shards"][:2]  # as if it had not begun the third file
        index.write_text(json.dumps(tree))
        again = write()
        assert again.num_tokens == whole.num_tokens
        for path in (tmp_path / "whole").glob("0*"):
            assert path.read_bytes() == (tmp_path / "part" / path.name).read_bytes()

    def test_a_changed_file_is_noticed(self, bucket: Any, tmp_path: Path) -> None:
        bucket.pipe("/text/a.txt", b"one\n")
        write_shards("memory://text", Bytes(), tmp_path / "out")
        bucket.pipe("/text/a.txt", b"two\n")
        message = refusal(lambda: write_shards("memory://text", Bytes(), tmp_path / "out"))
        assert "`inputs.0: memory:///text/a.txt`" in message

    def test_says_what_is_not_there(self, bucket: Any) -> None:
        bucket.pipe("/text/README.md", b"x")
        missing = refusal(lambda: find_files("memory://nowhere/a.txt"))
        assert missing.startswith("`memory://nowhere/a.txt` could not be read (FileNotFoundError")
        assert missing.endswith("what was read before is kept: the same command goes on once it is back")
        assert "`memory://text` names no text file; it must be" in refusal(
            lambda: find_files("memory://text")
        )
        assert "no URL that can be read (Protocol not known: s4)" in refusal(lambda: find_files("s4://x/y"))

    def test_says_what_vanishes_while_it_is_read(self, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        bucket.pipe("/text/a.txt", b"x\n" * 100)
        (file,) = find_files("memory://text/a.txt")
        bucket.rm("/text/a.txt")
        assert "`memory:///text/a.txt` could not be read (FileNotFoundError" in refusal(
            lambda: list(read_documents([file]))
        )

        class Failing(io.BytesIO):
            def readline(self, size: int | None = -1, /) -> bytes:
                if self.tell():
                    raise ConnectionResetError("gone")
                return super().readline(size)

        monkeypatch.setattr(RemoteFile, "open", lambda *_: Failing(b"x\ny\n"))
        message = refusal(lambda: list(read_documents([file])))
        assert message.startswith("`memory:///text/a.txt:2` could not be read (ConnectionResetError: gone)")

    def test_says_what_the_packages_behind_stores_say(
        self, bucket: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """None of which is an `OSError`: no credentials, a connection that is lost."""

        class BotoCoreError(Exception):
            pass

        class NoCredentialsError(BotoCoreError):
            pass

        def fail(*_: Any, **__: Any) -> Any:
            raise NoCredentialsError("Unable to locate credentials")

        library = types.SimpleNamespace(BotoCoreError=BotoCoreError)
        monkeypatch.setitem(sys.modules, "botocore.exceptions", library)  # type: ignore[arg-type]
        bucket.pipe("/text/a.txt", b"x\n" * 100)
        (file,) = find_files("memory://text/a.txt")
        said = "could not be read (ConnectionError: NoCredentialsError: Unable to locate credentials)"
        for name, origin in (("read", f"{file}:1"), ("open", str(file)), ("info", str(file))):
            where = MemoryFile if name == "read" else MemoryFileSystem
            with monkeypatch.context() as patch:
                patch.setattr(where, name, fail)
                message = refusal(lambda: find_files(str(file)) and list(read_documents([file])))
            assert message.startswith(f"`{origin}` {said}")

    def test_names_the_package_of_a_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "s3fs", None)
        message = refusal(lambda: find_files("s3://bucket/text"))
        assert message.startswith("`s3://bucket/text` needs a package that is not installed (")
        assert "pip install 'modernbert[remote]'" in message


class TestHubDataSets:
    def test_its_parts_are_read_row_by_row(self, data_set: Path) -> None:
        parts = find_files(f"hub://{data_set}")
        assert [str(part) for part in parts] == [f"hub://{data_set}#{number}" for number in range(3)]
        documents = list(read_documents(parts, text_key="content"))
        assert [it.text for it in documents] == [f"part {p} row {r}" for p in range(3) for r in range(4)]
        assert documents[5].origin == f"hub://{data_set}#1:2"
        assert size_of(parts[0]) == 0

    def test_makes_the_shards_of_its_files(self, data_set: Path, tmp_path: Path) -> None:
        one = write_shards(f"hub://{data_set}", Bytes(), tmp_path / "one", text_key="content")
        write_shards(data_set, Bytes(), tmp_path / "other", text_key="content")
        for name in ("00000.tokens", "00000.offsets.npy"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
        assert one.num_documents == 12

    def test_a_changed_data_set_is_noticed(self, data_set: Path, tmp_path: Path) -> None:
        write: Callable[[], Any] = lambda: write_shards(  # noqa: E731
            f"hub://{data_set}", Bytes(), tmp_path / "out", text_key="content"
        )
        write()
        (data_set / "data" / "train-1.jsonl").write_text('{"id": 1, "content": "new"}\n')
        remote._hub_stream.cache_clear()  # as in another process
        assert "`inputs.0: hub://" in refusal(write)

    def test_its_name_may_say_subset_split_and_revision(self) -> None:
        parse = remote._parse_hub
        assert parse("hub://own/name") == ("own/name", {})
        assert parse("hub://own/name?subset=en&split=valid&revision=v1") == (
            "own/name",
            {"subset": "en", "split": "valid", "revision": "v1"},
        )
        assert "an unknown option `sub`; did you mean `subset`" in refusal(lambda: parse("hub://a/b?sub=x"))
        assert "names no data set" in refusal(lambda: parse("hub://?split=x"))

    def test_refuses_what_it_does_not_have(self, data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        url = f"hub://{data_set}"
        assert "cannot be read as it says: Bad split: val" in refusal(lambda: find_files(f"{url}?split=val"))
        assert f"`{url}#0` has no column `text`; it must be one of: content, id; set" in refusal(
            lambda: texts(url)
        )
        assert f"`{url}#0:1`: `id` is 0; it must be a string" in refusal(lambda: texts(url, text_key="id"))
        assert "the document is 12 bytes long" in refusal(
            lambda: texts(url, text_key="content", max_document_bytes=11)
        )
        assert "could not be read (FileNotFoundError" in refusal(lambda: find_files(f"{url}/nowhere"))
        remote._hub_stream.cache_clear()
        monkeypatch.setitem(sys.modules, "datasets", None)
        assert "pip install 'modernbert[hub]'" in refusal(lambda: find_files(url))

    def test_says_where_the_hub_was_lost(self, data_set: Path) -> None:
        (part,) = find_files(f"hub://{data_set}")[1:2]
        (data_set / "data" / "train-1.jsonl").unlink()
        assert isinstance(part, HubPart)
        message = refusal(lambda: list(read_documents([part], text_key="content")))
        assert message.startswith(f"`{part}` could not be read (FileNotFoundError")
