from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modernbert import files
from modernbert.errors import ConfigError, InputError, ModernBertError, StorageError
from modernbert.infer import stream, vector_files
from modernbert.infer.quantize import find_ranges, quantize
from modernbert.infer.stream import encode_file, parse_shard, read_ranges, shard_path

ROOT = Path(__file__).parents[2]
FORMATS = ("npy", "parquet")


class Hashes:
    """Vectors of a text and, as a model's are in their last bits, of those it was computed with."""

    fingerprint = "hashes"

    def __init__(self, dim: int = 8) -> None:
        self.dim = dim
        self.num_tokens = 0

    def encode(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
        together = list(texts)
        neighbours = hashlib.sha256("\n".join(together).encode()).digest()
        for text in together:
            self.num_tokens += len(text)
            digest = hashlib.sha256(text.encode()).digest() + neighbours
            yield np.resize(np.frombuffer(digest, np.int8).astype(np.float32) / 128, self.dim)


class Crash(BaseException):
    """What ends a run at once."""


@pytest.fixture
def source() -> Hashes:
    return Hashes()


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    lines = (json.dumps({"text": f"row {number}", "id": number * 7}) for number in range(50))
    path.write_text("\n".join(lines))
    return path


def vectors_of(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    column = table_of(path)["embedding"].combine_chunks()
    return column.values.to_numpy().reshape(len(column), -1)


def table_of(path: Path) -> Any:
    return importlib.import_module("pyarrow.parquet").read_table(path)


def expected(source: Hashes, texts: list[str], chunk_rows: int) -> np.ndarray:
    chunks = (texts[begin : begin + chunk_rows] for begin in range(0, len(texts), chunk_rows))
    return np.stack([vector for chunk in chunks for vector in source.encode(iter(chunk))])


TEXTS = [f"row {number}" for number in range(50)]


class TestOutput:
    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("precision", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
    def test_vectors(self, source: Hashes, text_file: Path, form: str, precision: Any) -> None:
        output = text_file.parent / f"out.{form}"
        report = encode_file(source, text_file, output, precision=precision, chunk_rows=16)
        wanted = expected(source, TEXTS, 16)
        ranges = find_ranges(np.stack(list(source.encode(iter(TEXTS)))))
        found = vectors_of(output)
        np.testing.assert_array_equal(found, quantize(wanted, precision, ranges))
        assert found.dtype == quantize(wanted, precision, ranges).dtype
        assert report.output == output
        assert (report.rows, report.rows_before, report.stopped_by) == (50, 0, None)
        assert report.num_tokens == sum(map(len, TEXTS)) * (2 if precision in ("int8", "uint8") else 1)
        assert sorted(path.name for path in text_file.parent.iterdir()) == [
            "in.jsonl",
            output.name,
            f"{output.name}.json",
        ]

    def test_a_numpy_file_is_as_numpy_reads_any(self, source: Hashes, text_file: Path) -> None:
        output = text_file.parent / "out.npy"
        encode_file(source, text_file, output)
        assert np.load(output).flags.c_contiguous
        assert output.stat().st_size == vector_files.HEADER_BYTES + 50 * 8 * 4
        big = vector_files.npy_header(vector_files.VectorFormat.of("float32", 10**6), 10**12)
        assert len(big) == vector_files.HEADER_BYTES

    @pytest.mark.parametrize("kind", ["integer", "string"])
    def test_parquet_has_row_numbers_and_ids(
        self, source: Hashes, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vector_files, "_GROUP_ROWS", 20)
        ids = [number * 7 if kind == "integer" else f"\n{number}Ω" for number in range(50)]
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps({"text": "a", "key": name}) + "\n" for name in ids))
        encode_file(source, path, tmp_path / "out.parquet", id_key="key", chunk_rows=16)
        table = table_of(tmp_path / "out.parquet")
        assert table.column_names == ["row", "id", "embedding"]
        assert table["row"].to_pylist() == [*range(50)]
        assert table["id"].to_pylist() == ids
        assert str(table.schema.field("embedding").type).endswith("float>[8]")
        metadata = importlib.import_module("pyarrow.parquet").read_metadata(tmp_path / "out.parquet")
        assert [metadata.row_group(group).num_rows for group in range(3)] == [20, 20, 10]

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
    def test_no_rows_give_an_empty_file(
        self, source: Hashes, tmp_path: Path, form: str, precision: Any
    ) -> None:
        (tmp_path / "in.txt").write_text("")
        report = encode_file(source, tmp_path / "in.txt", tmp_path / f"out.{form}", precision=precision)
        assert report.rows == 0
        if form == "npy":
            assert np.load(tmp_path / "out.npy").shape == (0, 1 if precision == "binary" else 8)
        else:
            assert table_of(tmp_path / "out.parquet").num_rows == 0

    def test_long_texts_end_a_chunk_early(
        self, source: Hashes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream, "CHUNK_CHARACTERS", 10)
        (tmp_path / "in.txt").write_text("a\n" * 3 + "b" * 10 + "\n" + "c" * 50 + "\nd")
        encode_file(source, tmp_path / "in.txt", tmp_path / "out.npy")
        parts = [["a"] * 3 + ["b" * 10], ["c" * 50], ["d"]]
        wanted = np.concatenate([expected(source, part, 9) for part in parts])
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)

    def test_a_wrapper_that_loses_a_vector_is_found_out(self, source: Hashes, text_file: Path) -> None:
        class Lossy(Hashes):
            def encode(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
                return iter([*super().encode(texts)][1:])

        with pytest.raises(InputError, match=r"gave vectors of shape \[49, 8\] for 50 texts; it must give"):
            encode_file(Lossy(), text_file, text_file.parent / "out.npy")


class TestShards:
    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("precision", ["float32", "int8"])
    def test_they_join_to_the_whole(self, source: Hashes, text_file: Path, form: str, precision: Any) -> None:
        output = text_file.parent / f"out.{form}"
        reports = [
            encode_file(
                source, text_file, output, precision=precision, shard=(i, 3), id_key=None, chunk_rows=1
            )
            for i in range(3)
        ]
        assert [report.output.name for report in reports] == [
            f"out-0000{i}-of-00003.{form}" for i in range(3)
        ]
        encode_file(source, text_file, output, precision=precision, chunk_rows=1)
        whole = np.zeros_like(vectors_of(output))
        for i, report in enumerate(reports):
            whole[i::3] = vectors_of(report.output)
            if form == "parquet":
                assert table_of(report.output)["row"].to_pylist() == [*range(i, 50, 3)]
        np.testing.assert_array_equal(whole, vectors_of(output))
        if precision == "int8":
            np.testing.assert_array_equal(read_ranges(reports[2].output), read_ranges(output))

    def test_names(self) -> None:
        assert parse_shard("0/8") == (0, 8)
        assert shard_path(Path("a/out.npy"), (3, 12)) == Path("a/out-00003-of-00012.npy")
        assert shard_path(Path("out.npy"), None) == Path("out.npy")
        for text in ("3", "-1/3", "1/2/3", "a/b", ""):
            with pytest.raises(ConfigError, match="it must be i/n, counted from 0: 0/8, 1/8"):
                parse_shard(text)
        with pytest.raises(ConfigError, match="the shard is `3/3`; it must be i/n, counted from 0"):
            shard_path(Path("out.npy"), (3, 3))


class TestRanges:
    def test_those_of_another_file_are_used(self, source: Hashes, text_file: Path) -> None:
        folder = text_file.parent
        (folder / "queries.txt").write_text("one\ntwo")
        encode_file(source, text_file, folder / "out.npy", precision="int8")
        ranges = read_ranges(folder / "out.npy")
        encode_file(source, folder / "queries.txt", folder / "q.npy", precision="uint8", ranges=ranges)
        wanted = quantize(expected(source, ["one", "two"], 9), "uint8", ranges)
        np.testing.assert_array_equal(np.load(folder / "q.npy"), wanted)
        np.testing.assert_array_equal(read_ranges(folder / "q.npy"), ranges)
        other = ranges + 1
        with pytest.raises(StorageError, match="exists already, and is not known to be what is asked for"):
            encode_file(source, folder / "queries.txt", folder / "q.npy", precision="uint8", ranges=other)

    def test_they_come_from_the_first_rows(
        self, source: Hashes, text_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream, "CALIBRATION_ROWS", 10)
        encode_file(source, text_file, text_file.parent / "out.npy", precision="int8")
        first = np.stack(list(source.encode(iter(TEXTS[:10]))))
        np.testing.assert_array_equal(read_ranges(text_file.parent / "out.npy"), find_ranges(first))

    def test_there_are_none_in_other_files(self, source: Hashes, text_file: Path) -> None:
        encode_file(source, text_file, text_file.parent / "out.npy")
        with pytest.raises(InputError, match="holds no ranges; its vectors must be int8 or uint8"):
            read_ranges(text_file.parent / "out.npy")


# What ends a run, and going on.


def crash_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> Callable[[], int]:
    """End the run at its `moment`-th write, sync, rename or removal; return how many moments there were."""
    passed = 0

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed == moment:
                if name == "append":  # half of it is written
                    file, data = arguments
                    original(file, data[: len(data) // 2])
                raise Crash
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, step)

    for owner, name in (
        (vector_files.AppendFile, "append"),
        (vector_files.AppendFile, "overwrite_start"),
        (files, "_sync"),
        (Path, "replace"),
        (Path, "unlink"),
    ):
        wrap(owner, name)
    return lambda: passed


@pytest.mark.parametrize(("form", "precision"), [("npy", "int8"), ("parquet", "float16")])
def test_a_crash_at_any_moment_changes_nothing(
    source: Hashes, text_file: Path, form: str, precision: Any
) -> None:
    options: dict[str, Any] = {"precision": precision, "chunk_rows": 20, "overwrite": False}
    options |= {"id_key": "id"} if form == "parquet" else {}
    undisturbed = text_file.parent / f"undisturbed.{form}"
    encode_file(source, text_file, undisturbed, **options)
    folder = text_file.parent / "crashes"
    moment = 0
    while True:
        moment += 1
        output = folder / str(moment) / f"out.{form}"
        with pytest.MonkeyPatch.context() as patch:
            moments = crash_at(patch, moment)
            with contextlib.suppress(Crash):
                encode_file(source, text_file, output, **options)
        if moments() < moment:
            break
        assert encode_file(source, text_file, output, **options).rows == 50
        assert output.read_bytes() == undisturbed.read_bytes(), moment
        record = Path(f"{output}.json").read_text()
        assert record == Path(f"{undisturbed}.json").read_text()
        assert {*output.parent.iterdir()} == {output, Path(f"{output}.json")}
    assert moment > 20


HARNESS = """
    import os, random, signal, sys, threading, time
    import pyarrow.parquet  # once, not in every process
    sys.path[:0] = [{source!r}, {tests!r}]
    from test_stream import Hashes
    from modernbert import telemetry
    from modernbert.infer import stream

    telemetry.note = lambda text: None

    class Slow(Hashes):
        killed_at = 0  # the text at which this process is killed, whatever it does by then

        def encode(self, texts):
            time.sleep({pause})
            return super().encode(self.counted(texts))

        def counted(self, texts):
            for text in texts:
                self.killed_at -= 1
                if not self.killed_at:
                    threading.Timer(random.uniform(0, 0.02), os.kill, (os.getpid(), signal.SIGKILL)).start()
                yield text

    def start(input_path, output, killed_at=0, **options):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                source = Slow({dim})
                source.killed_at = killed_at
                report = stream.encode_file(source, input_path, output, **options)
                status = 3 if report.stopped_by else 0
            finally:
                os._exit(status)
        return pid
"""


def run_harness(script: str, *, pause: float = 0.0, dim: int = 8) -> str:
    """Run a script that starts `encode_file` in processes which it may kill; return its stdout."""
    head = textwrap.dedent(HARNESS).format(
        source=str(ROOT / "src"), tests=str(Path(__file__).parent), pause=pause, dim=dim
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", head + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [("in.txt", "npy"), ("in.jsonl.gz", "parquet")])
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path, name: str, form: str) -> None:
    lines = [f"row {number}" for number in range(3_000)]
    if name == "in.txt":
        (tmp_path / name).write_text("\n".join(lines))
    else:
        records = (json.dumps({"text": text, "id": text}) + "\n" for text in lines)
        (tmp_path / name).write_bytes(gzip.compress("".join(records).encode()))
    options = {"chunk_rows": 100, "id_key": "id" if form == "parquet" else None}
    killed = run_harness(
        f"""
        random.seed(5)
        path, options = {str(tmp_path)!r}, {options!r}
        assert os.waitpid(start(f"{{path}}/{name}", f"{{path}}/quiet.{form}", **options), 0)[1] == 0
        killed = 0
        for _ in range(8):
            pid = start(f"{{path}}/{name}", f"{{path}}/out.{form}", random.randint(1, 200), **options)
            killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
        assert os.waitpid(start(f"{{path}}/{name}", f"{{path}}/out.{form}", **options), 0)[1] == 0
        print(killed)
        """,
        pause=0.02,
    )
    assert int(killed) >= 3
    assert (tmp_path / f"out.{form}").read_bytes() == (tmp_path / f"quiet.{form}").read_bytes()
    assert not (tmp_path / f".out.{form}.partial").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    sizes = (4_000, 20_000)
    for size in sizes:
        (tmp_path / f"{size}.txt").write_text("".join(f"row number {number}\n" for number in range(size)))
    printed = run_harness(
        f"""
        for size in {sizes}:
            path = f"{tmp_path}/{{size}}"
            pid = start(f"{{path}}.txt", f"{{path}}.parquet", chunk_rows=1_000)
            _, status, usage = os.wait4(pid, 0)
            assert status == 0
            print(usage.ru_maxrss // (1024 if sys.platform == "darwin" else 1))
        """,
        dim=1_024,
    )
    few, many = map(int, printed.split())  # KiB
    assert (tmp_path / "20000.parquet").stat().st_size > 80_000_000
    assert many < few + 48_000  # what an allocator keeps differs by some megabytes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_chunk(source: Hashes, text_file: Path, number: int) -> None:
    class Interrupted(Hashes):
        calls = 0

        def encode(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
            self.calls += 1
            if self.calls == 2:
                os.kill(os.getpid(), number)
            return super().encode(texts)

    output = text_file.parent / "out.npy"
    report = encode_file(Interrupted(), text_file, output, chunk_rows=20)
    name = signal.Signals(number).name
    assert (report.rows, report.rows_before, report.stopped_by) == (40, 0, name)
    assert not output.exists()
    assert report.summary() == (
        f"{output}: stopped by {name} at 40 rows, 0 of them before; the same command goes on from there"
    )
    report = encode_file(source, text_file, output, chunk_rows=20)
    assert (report.rows, report.rows_before, report.stopped_by) == (50, 40, None)
    assert report.num_tokens == sum(map(len, TEXTS[40:]))
    np.testing.assert_array_equal(np.load(output), expected(source, TEXTS, 20))
    assert report.summary().startswith(f"{output}: 50 rows, 40 of them before; ")


@pytest.fixture
def begun(source: Hashes, text_file: Path) -> Path:
    """An output of which 40 rows are done: line 45 is bad."""
    good = text_file.read_bytes()
    text_file.write_bytes(good.replace(b"row 44", b"\xff"))
    with pytest.raises(InputError, match=r"in.jsonl:45`: byte 11 of the line"):
        encode_file(source, text_file, text_file.parent / "out.npy", chunk_rows=20)
    text_file.write_bytes(good)
    return text_file.parent / "out.npy"


class TestGoingOn:
    def test_after_an_error_in_the_input_is_mended(
        self, source: Hashes, text_file: Path, begun: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        report = encode_file(source, text_file, begun, chunk_rows=20)
        assert (report.rows, report.rows_before) == (50, 40)
        assert "in.jsonl was changed after the 40 rows that are done" in caplog.text
        assert "out.npy: going on after 40 rows" in caplog.text
        np.testing.assert_array_equal(np.load(begun), expected(source, TEXTS, 20))

    def test_not_if_what_was_read_has_changed(self, source: Hashes, text_file: Path, begun: Path) -> None:
        text_file.write_bytes(text_file.read_bytes().replace(b"row 3", b"row x"))
        with pytest.raises(
            InputError, match=r"in.jsonl` has changed since 40 of its rows were done; what was"
        ):
            encode_file(source, text_file, begun, chunk_rows=20)
        report = encode_file(source, text_file, begun, chunk_rows=20, overwrite=True)
        assert (report.rows, report.rows_before) == (50, 0)

    def test_not_with_other_settings(self, source: Hashes, text_file: Path, begun: Path) -> None:
        source.fingerprint = "other"
        with pytest.raises(ConfigError) as caught:
            encode_file(source, text_file, begun, chunk_rows=10, precision="float16")
        assert str(caught.value) == (
            f"a part of `{begun}` is there, begun with other settings (`chunk_rows` is 10, was 20; `model` "
            "is other, was hashes; `precision` is float16, was float32); to go on, use the same; else choose "
            "another name, or start afresh with `overwrite`"
        )
        report = encode_file(source, text_file, begun, chunk_rows=10, precision="float16", overwrite=True)
        assert report.rows_before == 0
        assert np.load(begun).dtype == np.float16

    def test_not_with_damaged_vectors(self, source: Hashes, text_file: Path, begun: Path) -> None:
        vectors = begun.parent / ".out.npy.partial" / "vectors.npy"
        os.truncate(vectors, 500)
        with pytest.raises(
            StorageError, match=r"has 500 bytes; 1,408 were written to it; .*; remove the folder"
        ):
            encode_file(source, text_file, begun, chunk_rows=20)

    def test_overwrite_goes_on_with_the_same_work(self, source: Hashes, text_file: Path, begun: Path) -> None:
        assert encode_file(source, text_file, begun, chunk_rows=20, overwrite=True).rows_before == 40

    def test_one_process_at_a_time(self, source: Hashes, text_file: Path, begun: Path) -> None:
        fcntl = importlib.import_module("fcntl")
        with (begun.parent / ".out.npy.partial" / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(ConfigError, match="is being written by another process; one may at a time"):
                encode_file(source, text_file, begun, chunk_rows=20)

    def test_parquet_input(self, source: Hashes, tmp_path: Path) -> None:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        path, output = tmp_path / "in.parquet", tmp_path / "out.npy"
        parquet.write_table(arrow.table({"text": [*TEXTS[:44], None]}), path, row_group_size=9)
        with pytest.raises(InputError, match=r"in.parquet:45`: `text` is None"):
            encode_file(source, path, output, chunk_rows=20)
        os.utime(path, (1, 1))  # a copy is as good
        with pytest.raises(InputError, match=r"in.parquet:45`: `text` is None"):
            encode_file(source, path, output, chunk_rows=20)
        parquet.write_table(arrow.table({"text": TEXTS}), path, row_group_size=9)
        with pytest.raises(InputError, match=r"in.parquet` has changed since 40 of its rows were done"):
            encode_file(source, path, output, chunk_rows=20)
        encode_file(source, path, output, chunk_rows=20, overwrite=True)
        np.testing.assert_array_equal(np.load(output), expected(source, TEXTS, 20))


class TestAnOutputThatExists:
    def test_finished_work_is_not_done_again(
        self, source: Hashes, text_file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        output = text_file.parent / "out.npy"
        encode_file(source, text_file, output)
        caplog.set_level(logging.INFO)
        report = encode_file(source, text_file, output)
        assert (report.rows, report.rows_before, report.num_tokens) == (50, 50, 0)
        assert "out.npy is finished already" in caplog.text
        assert not (output.parent / ".out.npy.partial").exists()

    @pytest.mark.parametrize("what", ["no record", "other settings", "other input", "other file"])
    def test_anything_else_stays(self, source: Hashes, text_file: Path, what: str) -> None:
        output = text_file.parent / "out.npy"
        encode_file(source, text_file, output)
        match what:
            case "no record":
                Path(f"{output}.json").unlink()
            case "other settings":
                source.fingerprint = "other"
            case "other input":
                text_file.write_text('{"text": "a"}')
            case "other file":
                output.write_bytes(b"mine")
        before = output.read_bytes()
        with pytest.raises(
            StorageError, match=r"out.npy` exists already, and is not known to be what is asked"
        ):
            encode_file(source, text_file, output)
        assert output.read_bytes() == before
        assert encode_file(source, text_file, output, overwrite=True).rows_before == 0
        assert encode_file(source, text_file, output).rows_before == np.load(output).shape[0]


@pytest.mark.parametrize(
    ("names", "options", "kind", "message"),
    [
        (
            ("gone.txt", "out.npy"),
            {},
            InputError,
            "gone.txt` could not be opened (No such file or directory)",
        ),
        (
            ("in.csv", "out.npy"),
            {},
            InputError,
            "in.csv` is of an unknown kind; its name must end in one of .t",
        ),
        (
            ("in.jsonl", "out.csv"),
            {},
            InputError,
            "out.csv` is of an unknown kind; its name must end in .npy or",
        ),
        (
            ("in.jsonl", "out.npy"),
            {"precision": "int4"},
            InputError,
            "int4",
        ),
        (
            ("in.jsonl", "out.npy"),
            {"chunk_rows": 0},
            ConfigError,
            "`chunk_rows` is 0; a chunk must have at le",
        ),
        (
            ("in.jsonl", "out.npy"),
            {"id_key": "id"},
            ConfigError,
            "ids can be read from .jsonl and .parquet and",
        ),
        (
            ("in.txt", "out.parquet"),
            {"id_key": "id"},
            ConfigError,
            "`id_key` is `id`, with `in.txt` and `out.",
        ),
        (
            ("in.jsonl", "out.npy"),
            {"shard": (2, 2)},
            ConfigError,
            "the shard is `2/2`; it must be i/n, counte",
        ),
        (
            ("in.jsonl", "out.npy"),
            {"ranges": np.zeros((2, 8))},
            ConfigError,
            "of shape [2, 8] are given for fl",
        ),
        (
            ("in.jsonl", "out.npy"),
            {"ranges": np.zeros((2, 3)), "precision": "int8"},
            ConfigError,
            "`ranges` of shape [2, 3] are given for int8; they must be [2, 8], and serve int8 and uint8 only",
        ),
        (
            ("in.parquet", "in.parquet"),
            {},
            ConfigError,
            "in.parquet` is the input too; the output must be an",
        ),
        (("in.txt/x.txt", "out.npy"), {}, InputError, "could not be opened (Not a directory)"),
        (("in.jsonl", "in.txt/out.npy"), {}, StorageError, "a part of this path is a file, not a folder"),
    ],
)
def test_refuses_what_cannot_be(
    source: Hashes,
    text_file: Path,
    names: tuple[str, str],
    options: Any,
    kind: type[ModernBertError],
    message: str,
) -> None:
    for name in ("in.txt", "in.csv", "in.parquet"):
        (text_file.parent / name).write_text("a")
    with pytest.raises(kind) as caught:
        encode_file(source, text_file.parent / names[0], text_file.parent / names[1], **options)
    assert message in str(caught.value)
    assert source.num_tokens == 0
    assert not list(text_file.parent.glob(".*"))


def test_ids_are_all_of_one_kind(source: Hashes, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "id": 1}\n{"text": "b", "id": "2"}')
    with pytest.raises(
        InputError, match=r"in.jsonl:2`: the id '2' is of kind string, those before are of kind"
    ):
        encode_file(source, tmp_path / "in.jsonl", tmp_path / "out.parquet", id_key="id", chunk_rows=1)


def test_parquet_output_names_the_extra(
    source: Hashes, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(module: str) -> None:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"needs pyarrow to be written, which is not installed; run `pip"):
        encode_file(source, text_file, text_file.parent / "out.parquet")


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_loses_nothing(
    source: Hashes, text_file: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, left = os.fsync, 5 if form == "npy" else 8

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    output = text_file.parent / f"out.{form}"
    with pytest.raises(StorageError, match="the disk is full; free space or choose a folder on another disk"):
        encode_file(source, text_file, output, chunk_rows=20)
    monkeypatch.undo()
    assert encode_file(source, text_file, output, chunk_rows=20).rows_before >= 20
    np.testing.assert_array_equal(vectors_of(output), expected(source, TEXTS, 20))


def test_progress_says_rows_and_tokens_a_second(
    source: Hashes, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode_file(source, text_file, text_file.parent / "out.npy")
    size = text_file.stat().st_size
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"encoding in.jsonl: {size / 1000:.3g}k/{size / 1000:.3g}k bytes, ")
    assert "row 50  rows/s " in line
    assert "tokens/s " in line
