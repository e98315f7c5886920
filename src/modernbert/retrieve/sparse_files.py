"""The files of an index of sparse vectors: segments, and a manifest that says which of them count.

A segment is one file for the documents of one `add`, in numpy's `.npz`. The manifest names the segments, with
their checksums and the rows that were deleted since. All are written beside their place and renamed into it,
the manifest last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import BackendError, InputError
from modernbert.files import atomic_file, read_json, sha256, write_json

MANIFEST = "sparse.json"
SEGMENTS = "segment-*.npz"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A segment in the manifest.

    Attributes:
        name: Of its file.
        sha256: Of its content.
        deleted: Its rows that are, ascending.
    """

    name: str
    sha256: str
    deleted: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        """What tells its name from those of others."""
        return int(self.name.removeprefix("segment-").removesuffix(".npz"))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What counts in a folder.

    Attributes:
        dim: Columns of all vectors.
        segments: In the order in which they were added.
    """

    dim: int
    segments: tuple[Entry, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Documents that were added together.

    Attributes:
        ids: A name for each.
        columns: scipy CSC matrix, fp32 `[n, dim]`.
        is_live: bool `[n]`: which of them were not deleted.
        sha256: Of the file.
    """

    ids: list[str]
    columns: Any
    is_live: NDArray[np.bool_]
    sha256: str

    def scores(self, columns: NDArray[Any], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the dot product of each document with a query, fp32 `[n]`; 0 if it was deleted."""
        products = np.zeros(len(self.ids), np.float32)
        offsets, rows, values = self.columns.indptr, self.columns.indices, self.columns.data
        for column, weight in zip(columns, weights):
            postings = slice(offsets[column], offsets[column + 1])
            products[rows[postings]] += weight * values[postings]
        products[~self.is_live] = 0
        return products

    def live(self) -> Any:
        """Return the documents that were not deleted, as a scipy CSR matrix."""
        return self.columns.tocsr()[np.flatnonzero(self.is_live)]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a manifest the one that counts.

    Raises:
        StorageError: The disk is full or not writable.
    """
    tree = {"format": _FORMAT, **asdict(manifest)}
    write_json(folder / MANIFEST, {**tree, "sha256": _digest(tree)})


def read_manifest(folder: Path) -> Manifest:
    """Read what counts in a folder.

    Raises:
        InputError: There is no manifest, it is damaged, or of another version.
    """
    path = folder / MANIFEST
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.pop("sha256", None) != _digest(tree):
        raise InputError(_damaged(path))
    if tree["format"] != _FORMAT:
        raise InputError(
            f"`{path}` has the format {tree['format']}; it must be {_FORMAT}; open it with the version of "
            "this package that wrote it, or make the index again"
        )
    entries = (Entry(**{**entry, "deleted": tuple(entry["deleted"])}) for entry in tree["segments"])
    return Manifest(dim=tree["dim"], segments=tuple(entries))


def write_segment(folder: Path, manifest: Manifest, ids: list[str], columns: Any) -> Entry:
    """Write a segment, which counts as soon as a manifest has the entry that is returned.

    Args:
        folder: Where it goes.
        manifest: What counts so far.
        ids: A name for each document.
        columns: scipy CSC matrix, fp32 `[n, dim]`.

    Raises:
        StorageError: The disk is full or not writable.
    """
    number = 1 + max((entry.number for entry in manifest.segments), default=0)
    path = folder / SEGMENTS.replace("*", f"{number:06d}")
    parts = {"weights": columns.data, "rows": columns.indices, "offsets": columns.indptr}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, ids=np.frombuffer(json.dumps(ids).encode(), np.uint8), **parts)
    return Entry(name=path.name, sha256=sha256(path))


def read_segment(folder: Path, entry: Entry, dim: int, before: Segment | None) -> Segment:
    """Read a segment, or of one that was read before only what was deleted since.

    Raises:
        InputError: The file is missing or damaged.
        BackendError: scipy is not installed.
    """
    if before is None or before.sha256 != entry.sha256:
        ids, columns = _read_columns(folder / entry.name, entry.sha256, dim)
    else:
        ids, columns = before.ids, before.columns
    is_live = np.ones(len(ids), np.bool_)
    is_live[list(entry.deleted)] = False
    return Segment(ids=ids, columns=columns, is_live=is_live, sha256=entry.sha256)


def scipy_sparse() -> Any:
    """Import scipy's matrices.

    Raises:
        BackendError: scipy is not installed.
    """
    try:
        from scipy import sparse
    except ImportError:
        raise BackendError(
            "an index of sparse vectors needs scipy, which is not installed; run `pip install "
            "'modernbert[retrieval]'`"
        ) from None
    return sparse


def _read_columns(path: Path, expected: str, dim: int) -> tuple[list[str], Any]:
    """Return the ids in a segment's file, and its vectors."""
    sparse = scipy_sparse()
    if not path.is_file():
        raise InputError(
            f"`{path}` is missing from the index; it must be there; restore it, or make the index again"
        )
    if sha256(path) != expected:
        raise InputError(_damaged(path))
    with np.load(path) as parts:
        ids = json.loads(parts["ids"].tobytes())
        columns = (parts["weights"], parts["rows"], parts["offsets"])
    return ids, sparse.csc_matrix(columns, shape=(len(ids), dim))


def _digest(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path) -> str:
    return (
        f"`{path}` is damaged: it is not what was written; restore it from a copy, or make the index again "
        "from its documents"
    )
