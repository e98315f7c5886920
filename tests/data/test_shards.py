from __future__ import annotations

import errno
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modernbert import files
from modernbert.data import shards as shards_module
from modernbert.data.shards import TokenShards, WriteProgress, write_shards
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, StorageError
from tests.data.scaffold import Bytes, content, refusal


class Interrupted(Bytes):
    """The same, but it breaks after so many batches."""

    def __init__(self, num_batches: int) -> None:
        super().__init__()
        self.left = num_batches

    def encode_batch(self, texts: list[str], *, special: bool, literal: bool) -> list[list[int]]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().encode_batch(texts, special=special, literal=literal)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three files of 40 documents in all, tokenised three at a time."""
    monkeypatch.setattr(shards_module, "_BATCH_DOCUMENTS", 3)
    numbers = itertools.count(1)
    paths = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.txt")]
    paths[0].write_text("".join(f"{'x' * next(numbers)}\n\n" for _ in range(10)))
    paths[1].write_text("".join(json.dumps({"text": f"ö{next(numbers)}"}) + "\n" for _ in range(20)))
    paths[2].write_text("".join(f"{'yz' * next(numbers)}\n" for _ in range(10)))
    return paths


def documents_of(paths: list[Path]) -> list[bytes]:
    lines = [line for path in paths for line in path.read_text().splitlines() if line]
    return [(json.loads(line)["text"] if line[0] == "{" else line).encode() for line in lines]


def test_writes_and_reads_back_every_document(corpus: list[Path], tmp_path: Path) -> None:
    shards = write_shards(corpus, Bytes(), tmp_path / "out", shard_tokens=100)
    expected = documents_of(corpus)
    assert shards.num_documents == len(expected) == 40
    assert [bytes(shards.read(number).astype(np.uint8)) for number in range(40)] == expected
    assert shards.lengths.tolist() == [len(text) for text in expected]
    assert shards.lengths.dtype == np.uint32
    assert shards.num_tokens == sum(map(len, expected))
    assert shards.read(9, 2, 5).tolist() == [ord("x")] * 3
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert len(index["shards"]) > 5
    assert all(100 <= shard["tokens"] < 180 for shard in index["shards"][:-1])
    assert TokenShards.open(tmp_path / "out", verify=True).num_tokens == shards.num_tokens


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "<u2"), (65_537, "<u4"), (256_000, "<u4")])
def test_the_vocabulary_decides_the_width(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    (tmp_path / "a.txt").write_text("a\nÿ\n")
    shards = write_shards(tmp_path / "a.txt", Bytes(vocab_size), tmp_path / "out")
    raw = np.fromfile(tmp_path / "out" / "00000.tokens", dtype)
    step = vocab_size // 256
    assert raw.tolist() == [97 * step, 0xC3 * step, 0xBF * step] == [*shards.read(0), *shards.read(1)]
    assert np.load(tmp_path / "out" / "00000.offsets.npy").tolist() == [0, 1, 3]


def test_ids_beyond_the_stored_width_do_not_wrap(tmp_path: Path) -> None:
    class Liar(Bytes):
        def encode_batch(self, texts: list[str], *, special: bool, literal: bool) -> list[list[int]]:
            return [[70_000] for _ in texts]

    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(OverflowError):
        write_shards(tmp_path / "a.txt", Liar(), tmp_path / "out")


def test_documents_without_tokens_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\0\ntwo\n\0\n")
    assert write_shards(tmp_path / "a.txt", Bytes(), tmp_path / "out").lengths.tolist() == [3, 3]


@pytest.mark.parametrize("num_batches", [1, 2, 5, 8, 12, 13])
def test_goes_on_after_the_last_whole_shard(corpus: list[Path], tmp_path: Path, num_batches: int) -> None:
    write_shards(corpus, Bytes(), tmp_path / "whole", shard_tokens=100)
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        write_shards(corpus, Interrupted(num_batches), part, shard_tokens=100)
    if num_batches > 5:
        assert "are not finished" in refusal(lambda: TokenShards.open(part))
    done = len(json.loads((part / "index.json").read_text())["shards"]) if num_batches > 5 else 0
    tokenizer = Bytes()
    write_shards(corpus, tokenizer, part, shard_tokens=100)
    assert content(part) == content(tmp_path / "whole")
    kept = sum(shard["documents"] for shard in json.loads((part / "index.json").read_text())["shards"][:done])
    assert [text.encode() for text in tokenizer.encoded] == documents_of(corpus)[kept:]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("num_synced", range(0, 12, 2))
def test_goes_on_after_a_full_disk(
    corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_synced: int
) -> None:
    write_shards(corpus, Bytes(), tmp_path / "whole", shard_tokens=100)
    left, sync = num_synced, files._sync

    def full(path: Path) -> None:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= 1
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", full)
        message = refusal(
            lambda: write_shards(corpus, Bytes(), tmp_path / "part", shard_tokens=100), StorageError
        )
    assert "the disk is full; free space or choose a folder on another disk" in message
    assert not list((tmp_path / "part").glob(".*")), "no half-written file stays"
    write_shards(corpus, Bytes(), tmp_path / "part", shard_tokens=100)
    assert content(tmp_path / "part") == content(tmp_path / "whole")


def test_reports_progress_also_after_an_interruption(corpus: list[Path], tmp_path: Path) -> None:
    reports: list[WriteProgress] = []
    options = {"shard_tokens": 100, "on_progress": reports.append}
    with pytest.raises(KeyboardInterrupt):
        write_shards(corpus, Interrupted(8), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert len(reports) == 8
    shards = write_shards(corpus, Bytes(), tmp_path / "out", **options)  # type: ignore[arg-type]
    total = sum(path.stat().st_size for path in corpus)
    assert reports[-1] == (total, total, 40, shards.num_tokens)
    for part in (reports[:8], reports[8:]):
        assert part == sorted(part)
    assert reports[8].documents > 3


def test_a_finished_folder_is_only_opened(corpus: list[Path], tmp_path: Path) -> None:
    write_shards(corpus, Bytes(), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    tokenizer = Bytes()
    assert write_shards(corpus, tokenizer, tmp_path / "out").num_documents == 40
    write_shards(corpus, tokenizer, tmp_path / "out", max_document_bytes=1000)  # changes no token
    assert tokenizer.encoded == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_refuses_to_mix_with_something_else(corpus: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards(corpus, Bytes(), out)
    before = content(out)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: write_shards(corpus, Bytes(fingerprint="x"), out), "`tokenizer`: 'bytes' → 'x'"),
        (lambda: write_shards(corpus, Bytes(), out, text_unit="file"), "`text_unit`: 'line' → 'file'"),
        (lambda: write_shards(corpus, Bytes(), out, shard_tokens=9), "`shard_tokens`: 10000000 → 9"),
        (lambda: write_shards(corpus[:2], Bytes(), out), f"`inputs.2: {corpus[2]}`"),
        (lambda: write_shards(corpus[::-1], Bytes(), out), f"`inputs.0: {corpus[0]}`"),
    ]
    for call, difference in cases:
        message = refusal(call)
        assert f"`{out}` holds token shards of something else; these differ: " in message
        assert difference in message
        assert message.endswith("choose another folder, or remove this one")
    corpus[1].write_text('{"text": "new"}\n')
    assert f"`inputs.1: {corpus[1]}`" in refusal(lambda: write_shards(corpus, Bytes(), out))
    assert content(out) == before


def test_a_file_not_begun_may_be_mended(corpus: list[Path], tmp_path: Path) -> None:
    whole = corpus[2].read_text()
    corpus[2].write_bytes(whole.encode() + b"\xff\n")
    message = refusal(lambda: write_shards(corpus, Bytes(), tmp_path / "out", shard_tokens=50))
    assert "is not UTF-8" in message
    index = tmp_path / "out" / "index.json"
    tree = json.loads(index.read_text())
    tree["shards"] = tree["shards"][:2]  # as if it had come no further than the second file
    assert tree["shards"][-1]["end"]["file"] == 1
    index.write_text(json.dumps(tree))
    corpus[2].write_text(whole)
    write_shards(corpus, Bytes(), tmp_path / "out", shard_tokens=50)
    write_shards(corpus, Bytes(), tmp_path / "whole", shard_tokens=50)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "\n \n\t\n", "\0\n"])
def test_refuses_an_empty_corpus(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    message = refusal(lambda: write_shards(tmp_path / "a.txt", Bytes(), tmp_path / "out"))
    assert f"the corpus is empty: there is no text in `{tmp_path / 'a.txt'}`" in message
    assert "give files with at least one document" in message


def test_a_corpus_of_one_line_is_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only")
    assert write_shards(tmp_path / "a.txt", Bytes(), tmp_path / "out").lengths.tolist() == [4]


def test_refuses_damaged_shards(corpus: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards(corpus, Bytes(), out, shard_tokens=100)
    whole = content(out)

    def damage(name: str, data: bytes, *, verify: bool = False) -> str:
        (out / name).write_bytes(data)
        message = refusal(lambda: TokenShards.open(out, verify=verify))
        assert str(out / name) in message
        (out / name).write_bytes(whole[name])
        return message

    tokens, offsets = whole["00001.tokens"], whole["00001.offsets.npy"]
    short = (
        f"has {len(tokens) - 2} bytes, must have {len(tokens)}; put it back as it was, or remove the folder"
    )
    assert f"{short} `{out}`" in damage("00001.tokens", tokens[:-2])
    assert "cannot be read" in damage("00001.offsets.npy", offsets[:-3])
    assert "cannot be read" in damage("00001.offsets.npy", b"")
    assert "does not fit the index" in damage("00001.offsets.npy", whole["00002.offsets.npy"])
    flipped = bytes([tokens[0] ^ 1]) + tokens[1:]
    assert "does not match its checksum" in damage("00001.tokens", flipped, verify=True)
    flipped = offsets[:-9] + bytes([offsets[-9] ^ 1]) + offsets[-8:]
    assert "does not match its checksum" in damage("00001.offsets.npy", flipped, verify=True)
    assert "is not valid JSON" in damage("index.json", whole["index.json"][:-20])
    assert "is not an index of token shards of format 1" in damage("index.json", b"[]")
    assert "is damaged (unknown key `more`" in damage("index.json", b'{"format": 1, "more": 2}')
    (out / "00001.tokens").unlink()
    assert "has 0 bytes" in refusal(lambda: TokenShards.open(out))
    assert "has 0 bytes" in refusal(lambda: write_shards(corpus, Bytes(), out, shard_tokens=100))


def test_refuses_a_folder_without_shards(tmp_path: Path) -> None:
    assert f"`{tmp_path}` holds no token shards (no `index.json`)" in refusal(
        lambda: TokenShards.open(tmp_path)
    )


def test_refuses_tokens_that_are_not_there(corpus: list[Path], tmp_path: Path) -> None:
    shards = write_shards(corpus, Bytes(), tmp_path / "out")
    for document in (-1, 40):
        assert f"there is no document {document} in" in refusal(lambda number=document: shards.read(number))
    assert "document 3 of" in refusal(lambda: shards.read(3, 0, 5))
    with pytest.raises(ValueError, match="read-only"):
        shards.read(3)[0] = 1


def test_refuses_another_tokenizer(corpus: list[Path], tmp_path: Path) -> None:
    shards = write_shards(corpus, Bytes(), tmp_path / "out")
    shards.check_tokenizer(Bytes())
    message = refusal(lambda: shards.check_tokenizer(Bytes(fingerprint="other")))
    assert "were made with tokenizer bytes, but this one is other; use that tokenizer" in message


def test_refuses_shards_of_no_tokens(corpus: list[Path], tmp_path: Path) -> None:
    message = refusal(lambda: write_shards(corpus, Bytes(), tmp_path / "out", shard_tokens=0), ConfigError)
    assert message == "`shard_tokens` is 0; it must be at least 1"


def test_special_tokens_that_a_text_spells_are_ordinary_text(tmp_path: Path) -> None:
    """A corpus that speaks of masks holds none."""
    (tmp_path / "a.txt").write_text("fill the [MASK] and the [SEP] here\n" * 3)
    tokenizer = Tokenizer.train(["fill the and here"], vocab_size=320)
    shards = write_shards([tmp_path / "a.txt"], tokenizer, tmp_path / "out")
    tokens = {token for document in range(3) for token in shards.read(document).tolist()}
    assert not tokens & tokenizer.special_ids
    assert tokenizer.decode(shards.read(0).tolist()) == "fill the [MASK] and the [SEP] here"


def test_stops_with_the_document_that_brings_enough(corpus: list[Path], tmp_path: Path) -> None:
    whole = write_shards(corpus, Bytes(), tmp_path / "whole", shard_tokens=100)
    for limit in (1, 60, 99, 100, 101, 350, whole.num_tokens, 10 * whole.num_tokens):
        out = tmp_path / str(limit)
        shards = write_shards(corpus, Bytes(), out, shard_tokens=100, max_tokens=limit)
        enough = int(np.searchsorted(np.cumsum(whole.lengths), limit)) + 1
        assert shards.num_documents == min(enough, 40)
        assert shards.lengths.tolist() == whole.lengths[:enough].tolist()
        before = content(out)
        write_shards(corpus, Bytes(), out, shard_tokens=100, max_tokens=limit)
        assert content(out) == before
    message = refusal(lambda: write_shards(corpus, Bytes(), tmp_path / "x", max_tokens=0), ConfigError)
    assert message == "`max_tokens` is 0; it must be at least 1"
    message = refusal(lambda: write_shards(corpus, Bytes(), tmp_path / "60", shard_tokens=100, max_tokens=61))
    assert "`max_tokens`: 60 → 61" in message


@pytest.mark.parametrize("num_batches", [4, 9])
def test_a_limit_holds_after_an_interruption(corpus: list[Path], tmp_path: Path, num_batches: int) -> None:
    write_shards(corpus, Bytes(), tmp_path / "whole", shard_tokens=100, max_tokens=620)
    with pytest.raises(KeyboardInterrupt):
        write_shards(corpus, Interrupted(num_batches), tmp_path / "part", shard_tokens=100, max_tokens=620)
    write_shards(corpus, Bytes(), tmp_path / "part", shard_tokens=100, max_tokens=620)
    assert content(tmp_path / "part") == content(tmp_path / "whole")


def test_reads_more_shards_than_it_holds_open(
    corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "_MOST_OPEN", 2)
    shards = write_shards(corpus, Bytes(), tmp_path / "out", shard_tokens=100)
    expected = documents_of(corpus)
    for number in [*range(40), *reversed(range(40))]:
        assert bytes(shards.read(number).astype(np.uint8)) == expected[number]
        assert len(shards._opened) <= 2


def test_a_file_that_is_spoilt_while_it_is_read_is_named(
    corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "_MOST_OPEN", 1)
    out = tmp_path / "out"
    shards = write_shards(corpus, Bytes(), out, shard_tokens=100)
    path = out / "00000.tokens"
    whole = path.read_bytes()
    first = shards.read(0).tolist()

    path.write_bytes(whole[:-2])  # cut short
    last = int(np.searchsorted(np.cumsum(shards.lengths), len(whole) // 2))
    assert shards.read(0).tolist() == first, "what is there is read"
    assert f"`{path}` is damaged: it ends after {len(whole) - 2} bytes; put it back" in refusal(
        lambda: shards.read(last)
    )
    path.write_bytes(b"\xff" * len(whole))  # other content
    assert "it holds token 65535, beyond the vocabulary of 300" in refusal(lambda: shards.read(0))
    shards.read(39)  # closes the first
    path.unlink()
    assert f"`{path}` is damaged: it cannot be opened (No such file or directory)" in refusal(
        lambda: shards.read(0)
    )
    path.write_bytes(whole)
    assert shards.read(0).tolist() == first, "put back, it is read again"
