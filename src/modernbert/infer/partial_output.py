"""A vector file in the making: what is committed of it, and its way to its place, whatever kills come.

It lies in the folder `.NAME.partial` beside the output. A chunk's vectors and ids are appended and forced to
the disk; then the state, replaced in one rename, says that they count. The finished file takes its place in
one rename too, and then `NAME.json` beside it says what it holds. Every step can be repeated.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modernbert import files
from modernbert.errors import ConfigError, InputError, StorageError
from modernbert.infer.rows import START, Position, Row, checksum, row_suffix
from modernbert.infer.vector_files import (
    HEADER_BYTES,
    AppendFile,
    IdKind,
    VectorFormat,
    npy_header,
    write_parquet,
)

log = logging.getLogger(__name__)

Job = dict[str, Any]

_AFRESH = "or start afresh with `overwrite`"


@dataclass
class State:
    """What is committed.

    Attributes:
        job: The settings that the file's content depends on. They stay the same.
        input: Facts of the input file by which a change is noticed.
        position: The place in the input up to which rows are done.
        bytes_read: How much of the input, as it lies on disk, that is.
        rows: How many are done.
        id_bytes: Bytes of their ids.
        id_kind: What all ids are; None before the first.
        ranges: Smallest and largest value of each dimension, for int8 and uint8.
        complete: The file is whole and waits for its place.
    """

    job: Job
    input: dict[str, int]
    position: Position = START
    bytes_read: int = 0
    rows: int = 0
    id_bytes: int = 0
    id_kind: IdKind | None = None
    ranges: list[list[float]] | None = None
    complete: bool = False


class PartialOutput:
    """The folder of a file in the making.

    Args:
        output: The file, `.npy` or `.parquet`, that is to come.
        form: How its vectors lie.
    """

    def __init__(self, output: Path, form: VectorFormat) -> None:
        self.output = output
        self.form = form
        self.folder = output.with_name(f".{output.name}.partial")
        self._state_path = self.folder / "state.json"
        self._vectors_path = self.folder / "vectors.npy"
        self._ids_path = self.folder / "ids.jsonl"
        self._whole = self._vectors_path if output.suffix == ".npy" else self.folder / "vectors.parquet"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder while the block runs, so that no second process writes to it.

        Raises:
            ConfigError: Another process holds it.
        """
        refusal = (
            f"`{self.output}` is being written by another process; one may at a time; wait for it, or choose "
            "another name"
        )
        with files.hold(self.folder, refusal):
            try:
                yield
            finally:
                if not self._state_path.exists():
                    self._discard()

    def begin(self, job: Job, input_path: Path, facts: dict[str, int], overwrite: bool) -> State:
        """Return the state to go on from; `complete` if there is nothing left to do.

        Raises:
            ConfigError: A part of the file is there, of other settings.
            InputError: A part of the file is there, and the input has changed since.
            StorageError: The output is there, of other work.
        """
        state = self._saved()
        if state is not None and state.complete:  # killed on the last few steps
            self._put_in_place(state)
            state = None
        if self.output.exists() and not overwrite:
            return self._finished(job, facts)
        if state is not None:
            try:
                _check_job(state.job, job, self.output)
                _check_input(state, facts, input_path)
            except (ConfigError, InputError):
                if not overwrite:
                    raise
                state = None
        if state is None:
            self._discard(keep=".lock")
            return State(job, facts)
        log.info("%s: going on after %s rows", self.output, f"{state.rows:,}")
        return state

    @contextlib.contextmanager
    def opened(self, state: State) -> Iterator[Writer]:
        """Open the files at what is committed; what lies beyond is cut off."""
        begun = HEADER_BYTES + state.rows * self.form.row_bytes if state.rows else 0
        vectors = AppendFile(self._vectors_path, begun)
        with (
            contextlib.closing(vectors),
            contextlib.closing(AppendFile(self._ids_path, state.id_bytes)) as ids,
        ):
            if not begun:
                vectors.append(npy_header(self.form, 0))
            yield Writer(state, self._state_path, vectors, ids)

    def finish(self, state: State) -> None:
        """Make the file whole and put it in its place."""
        with contextlib.closing(AppendFile(self._vectors_path, self._vectors_path.stat().st_size)) as vectors:
            vectors.overwrite_start(npy_header(self.form, state.rows))
        if self._whole != self._vectors_path:
            first, step = state.job["shard"]
            write_parquet(
                self._whole,
                vectors=self._vectors_path,
                form=self.form,
                row_numbers=range(first, first + state.rows * step, step),
                ids=self._ids_path if state.job["id_key"] is not None else None,
                id_kind=state.id_kind,
            )
        state.complete = True
        files.write_json(self._state_path, asdict(state))
        self._put_in_place(state)

    def _saved(self) -> State | None:
        if not self._state_path.exists():
            return None
        tree = files.read_json(self._state_path)
        return State(**{**tree, "position": Position(*tree["position"])})

    def _put_in_place(self, state: State) -> None:
        if self._whole.exists():
            files.move_into_place(self._whole, self.output)
        if self.output.exists():
            record = {"rows": state.rows, "bytes": self.output.stat().st_size, "job": state.job}
            files.write_json(
                record_path(self.output), {**record, "input": state.input, "ranges": state.ranges}
            )
        self._discard(keep=".lock")

    def _finished(self, job: Job, facts: dict[str, int]) -> State:
        """Return the state of a finished file of the same work."""
        path = record_path(self.output)
        record = files.read_json(path) if path.exists() else {}
        same = {"bytes": self.output.stat().st_size, "job": job, "input": facts}
        if same != {key: record.get(key) for key in same}:
            raise StorageError(
                f"`{self.output}` exists already, and is not known to be what is asked for; it must be new; "
                "remove it, choose another name, or give `overwrite`"
            )
        log.info("%s is finished already", self.output)
        return State(job, facts, rows=record["rows"], ranges=record["ranges"], complete=True)

    def _discard(self, keep: str | None = None) -> None:
        self._state_path.unlink(missing_ok=True)  # first: without it, nothing else counts
        for file in self.folder.iterdir():
            if file.name != keep:
                file.unlink()
        if keep is None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Writer:
    """Appends chunks to the files of a `PartialOutput`."""

    def __init__(self, state: State, state_path: Path, vectors: AppendFile, ids: AppendFile) -> None:
        self._state = state
        self._path = state_path
        self._vectors = vectors
        self._ids = ids

    def commit(self, vectors: np.ndarray[Any, Any], rows: Sequence[Row]) -> None:
        """Append the vectors of a chunk of rows; when this returns they count."""
        state = self._state
        self._vectors.append(vectors.tobytes())
        if state.job["id_key"] is not None:
            lines = "".join(json.dumps(row.id) + "\n" for row in rows).encode("ascii")
            self._ids.append(lines)
            state.id_bytes += len(lines)
        state.rows += len(rows)
        state.position, state.bytes_read = rows[-1].end, rows[-1].bytes_read
        self.save()

    def save(self) -> None:
        """Commit the state as it is."""
        files.write_json(self._path, asdict(self._state))


def record_path(output: Path) -> Path:
    """Return the name of the file that says what `output` holds."""
    return output.with_name(f"{output.name}.json")


def _check_job(before: Job, now: Job, output: Path) -> None:
    keys = sorted({*before, *now})
    changed = [
        f"`{key}` is {now.get(key)}, was {before.get(key)}" for key in keys if now.get(key) != before.get(key)
    ]
    if changed:
        raise ConfigError(
            f"a part of `{output}` is there, begun with other settings ({'; '.join(changed)}); to go on, use "
            f"the same; else choose another name, {_AFRESH}"
        )


def _check_input(state: State, facts: dict[str, int], path: Path) -> None:
    """Make sure that what was read is unchanged; what comes after it may have been mended or added."""
    if facts == state.input:
        return
    if row_suffix(path) == ".parquet" or checksum(path, state.position.offset) != state.position.checksum:
        raise InputError(
            f"`{path}` has changed since {state.rows:,} of its rows were done; what was read must stay as it "
            f"was; put the old file back, choose another output, {_AFRESH}"
        )
    log.info("%s was changed after the %s rows that are done", path, f"{state.rows:,}")
    state.input = facts
