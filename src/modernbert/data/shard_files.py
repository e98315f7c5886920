"""A shard that is open: pieces of its files, read one at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert.data.shard_index import Shard, damaged


class OpenShard:
    """A shard's two files, closed with it.

    Raises:
        InputError: One is gone.
    """

    def __init__(self, shard: Shard, folder: Path) -> None:
        self._num_documents = shard.documents
        self._files = [_RawFile(path) for path in (shard.offsets_path(folder), shard.tokens_path(folder))]

    def bounds(self, place: int) -> tuple[int, int]:
        """Return where a document, counted within the shard, begins and ends."""
        file = self._files[0]
        from_end = 8 * (self._num_documents + 1 - place)  # the header is before, whatever its size
        begin, end = np.frombuffer(file.read(file.size - from_end, 16), "<u8").tolist()
        return begin, end

    def read(self, begin: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return tokens from a place on."""
        return np.frombuffer(self._files[1].read(begin * dtype.itemsize, count * dtype.itemsize), dtype)


class _RawFile:
    """A file of which pieces are read, closed with it. What fails is an `InputError` that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise damaged(path, f"cannot be opened ({error.strerror})") from error
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, position: int, size: int) -> bytes:
        try:
            self._file.seek(position)
            data = self._file.read(size)
        except OSError as error:
            raise damaged(self._path, f"cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise damaged(self._path, f"ends after {position + len(data):,} bytes")
        return data

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
