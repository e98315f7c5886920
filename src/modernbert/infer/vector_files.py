"""Vectors to files: a NumPy file that grows by whole chunks, and Parquet made of it, in constant memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from modernbert.data import corpus
from modernbert.errors import StorageError
from modernbert.files import atomic_file, storage_errors
from modernbert.infer.quantize import DTYPES, stored_width

IdKind = Literal["integer", "string"]

HEADER_BYTES = 128  # of a NumPy file; the same for every number of rows

# A row group of Parquet holds at most so much; writing one takes a few times as much memory.
_GROUP_BYTES = 8 * 1024**2
_GROUP_ROWS = 65_536


class VectorFormat(NamedTuple):
    """How a vector lies in a file: its NumPy type, and how many of these it has."""

    dtype: np.dtype[Any]
    width: int

    @classmethod
    def of(cls, precision: str, dim: int) -> VectorFormat:
        """Return the format of vectors of `dim` numbers."""
        return cls(np.dtype(DTYPES[precision]), stored_width(dim, precision))

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * self.width


class AppendFile:
    """A file that only grows, and of which only what was committed counts.

    Args:
        path: Made if it is not there.
        committed: Bytes that count; what lies beyond them, half-written before a kill, is cut off.

    Raises:
        StorageError: It is shorter than that, or cannot be written.
    """

    def __init__(self, path: Path, committed: int) -> None:
        self.path = path
        with storage_errors(path):
            path.touch()
            # Unbuffered, so that closing has nothing left to write, on a full disk too.
            self._file = path.open("r+b", buffering=0)
            if (size := path.stat().st_size) < committed:
                self.close()
                raise StorageError(
                    f"`{path}` has {size:,} bytes; {committed:,} were written to it; it was damaged from "
                    f"outside; remove the folder `{path.parent}` and start again"
                )
            self._file.truncate(committed)
            self._file.seek(0, os.SEEK_END)

    def append(self, data: bytes) -> None:
        """Write `data` at the end; when this returns it is on the disk."""
        self._write(data)

    def overwrite_start(self, data: bytes) -> None:
        """Write `data` over the beginning; when this returns it is on the disk."""
        self._file.seek(0)
        self._write(data)

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        with storage_errors(self.path):
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())


def npy_header(form: VectorFormat, rows: int) -> bytes:
    """Return the head of a NumPy file (format 1.0) of `rows` vectors."""
    head = {"descr": form.dtype.str, "fortran_order": False, "shape": (rows, form.width)}
    room = HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + repr(head).ljust(room - 1).encode() + b"\n"


def write_parquet(
    path: Path,
    *,
    vectors: Path,
    form: VectorFormat,
    row_numbers: range,
    ids: Path | None,
    id_kind: IdKind | None,
) -> None:
    """Write a NumPy file's vectors as Parquet: `row`, `id` if there are any, `embedding`; atomically.

    Args:
        path: The file to write.
        vectors: A NumPy file with a head of `HEADER_BYTES`.
        form: How its vectors lie.
        row_numbers: The column `row`, one for each vector.
        ids: A file of JSON, one id a line.
        id_kind: What they are; None if there are none: the column is then one of strings.

    Raises:
        InputError: pyarrow is not installed.
        StorageError: The disk is full or not writable.
    """
    arrow = corpus.import_pyarrow("pyarrow", path, "written")
    parquet = corpus.import_pyarrow("pyarrow.parquet", path, "written")
    id_type = arrow.int64() if id_kind == "integer" else arrow.string()
    number = arrow.from_numpy_dtype(form.dtype)
    fields = [("row", arrow.int64()), ("id", id_type), ("embedding", arrow.list_(number, form.width))]
    schema = arrow.schema([field for field in fields if ids is not None or field[0] != "id"])
    names = _ids(ids) if ids is not None else None
    # Parquet has no integers of a byte: it writes four, or, with a dictionary of all 256, one.
    dictionary = ["embedding.list.element"] if form.dtype.kind in "iu" else False
    options = {
        "compression": "none",
        "use_dictionary": dictionary,
        "memory_pool": arrow.system_memory_pool(),  # pyarrow's own keeps what is freed
    }
    with (
        atomic_file(path) as temporary,
        parquet.ParquetWriter(temporary, schema, **options) as writer,
    ):
        done = 0
        for flat in _blocks(vectors, form):
            size = len(flat) // form.width
            part = row_numbers[done : done + size]
            columns = [arrow.array(np.arange(part.start, part.stop, part.step, dtype=np.int64))]
            if names is not None:
                columns.append(arrow.array(list(islice(names, size)), id_type))
            columns.append(arrow.FixedSizeListArray.from_arrays(arrow.array(flat), form.width))
            writer.write_table(arrow.table(columns, schema=schema), row_group_size=size)
            done += size


def _blocks(vectors: Path, form: VectorFormat) -> Iterator[np.ndarray[Any, Any]]:
    """Yield a NumPy file's numbers, whole vectors of at most a row group at a time."""
    group_rows = max(1, min(_GROUP_ROWS, _GROUP_BYTES // form.row_bytes))
    with vectors.open("rb") as file:
        file.seek(HEADER_BYTES)
        while data := file.read(group_rows * form.row_bytes):
            yield np.frombuffer(data, form.dtype)


def _ids(path: Path) -> Iterator[int | str]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
