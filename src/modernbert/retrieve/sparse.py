"""An inverted index of sparse vectors in a folder: for each column the documents that have it; exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import InputError, StorageError
from modernbert.files import hold, storage_errors
from modernbert.retrieve.exact import best
from modernbert.retrieve.sparse_files import (
    MANIFEST,
    SEGMENTS,
    Manifest,
    Segment,
    read_manifest,
    read_segment,
    scipy_sparse,
    write_manifest,
    write_segment,
)


class SparseHits(NamedTuple):
    """What was found for a query, the best first.

    Attributes:
        ids: Of the documents.
        scores: fp32 [k], their dot products with the query.
    """

    ids: list[str]
    scores: NDArray[np.float32]


class SparseVectors:
    """Documents as sparse vectors of one width, by id. `create` or `open` makes one.

    Several processes may read a folder, and one at a time write to it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest = manifest
        self._segments: dict[str, Segment] = {}
        self._load(manifest)

    @classmethod
    def create(cls, folder: str | Path, dim: int) -> SparseVectors:
        """Make an empty index of vectors with `dim` numbers.

        Raises:
            InputError: `dim` is below 1.
            StorageError: The folder holds an index already, or is not writable.
        """
        if dim < 1:
            raise InputError(f"`dim` is {dim}; it must be at least 1: the columns of the vectors")
        path = Path(folder)
        if (path / MANIFEST).exists():
            raise StorageError(
                f"`{path}` holds an index already; it must not; open it, or choose another folder"
            )
        manifest = Manifest(dim=dim)
        write_manifest(path, manifest)
        return cls(path, manifest)

    @classmethod
    def open(cls, folder: str | Path) -> SparseVectors:
        """Open an index.

        Raises:
            InputError: There is none, or a file of it is missing or damaged.
        """
        path = Path(folder)
        return cls(path, read_manifest(path))

    @property
    def dim(self) -> int:
        """Columns of the vectors."""
        return self._manifest.dim

    def __len__(self) -> int:
        return len(self._places)

    def ids(self) -> list[str]:
        """Return the ids of all documents, in the order in which they were added."""
        return list(self._places)

    def add(self, ids: Sequence[str], vectors: Any) -> None:
        """Add documents; when it returns they are safe on the disk.

        Args:
            ids: A name for each, which none has yet.
            vectors: scipy CSR matrix `[n, dim]`, none of its numbers below 0.

        Raises:
            InputError: Ids that are taken or given twice, or vectors that are not as above.
            ConfigError: Another process writes to the folder.
            StorageError: The disk is full or not writable.
        """
        names = list(ids)
        columns = _checked(vectors, self.dim)
        if columns.shape[0] != len(names):
            raise InputError(
                f"there are {len(names)} ids for {columns.shape[0]} vectors; there must be as many"
            )
        with self._writing() as manifest:
            self._check_new(names)
            if names:
                entry = write_segment(self.folder, manifest, names, columns)
                self._commit(replace(manifest, segments=(*manifest.segments, entry)))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents for good; return how many of them were there.

        Raises:
            ConfigError: Another process writes to the folder.
            StorageError: The disk is full or not writable.
        """
        with self._writing() as manifest:
            gone: dict[str, set[int]] = {}
            for name, row in (self._places[id] for id in {*ids} & self._places.keys()):
                gone.setdefault(name, set()).add(row)
            if gone:
                segments = tuple(
                    replace(entry, deleted=tuple(sorted({*entry.deleted, *gone.get(entry.name, ())})))
                    for entry in manifest.segments
                )
                self._commit(replace(manifest, segments=segments))
        return sum(map(len, gone.values()))

    def search(self, query: Any, k: int) -> SparseHits:
        """Find the documents with the largest dot products; of equal ones the earlier added is the better.

        Args:
            query: scipy CSR matrix `[1, dim]`, none of its numbers below 0.
            k: How many; fewer are found if fewer share a column with the query.

        Raises:
            InputError: `k` is below 1, or a query that is not as above.
        """
        row = _checked(query, self.dim).tocsr()
        if row.shape[0] != 1 or k < 1:
            raise InputError(
                f"the query has {row.shape[0]} rows and `k` is {k}; there must be 1 row, and `k` at least 1; "
                "search for each row on its own"
            )
        parts = [segment.scores(row.indices, row.data) for segment in self._segments.values()]
        scores = np.concatenate([np.zeros(0, np.float32), *parts])
        places, found = best(scores, k)
        names = [self._ids[place] for place in places[found > 0]]
        return SparseHits(names, found[found > 0])

    def compact(self) -> None:
        """Write all documents that are left into one segment, and remove what was deleted from the disk.

        Raises:
            ConfigError: Another process writes to the folder.
            StorageError: The disk is full or not writable.
        """
        with self._writing() as manifest:
            entries = []
            if self._places:
                kept = scipy_sparse().vstack([it.live() for it in self._segments.values()], format="csc")
                entries.append(write_segment(self.folder, manifest, self.ids(), kept))
            self._commit(replace(manifest, segments=tuple(entries)))

    def _load(self, manifest: Manifest) -> None:
        """Take up a manifest: read the segments that are new, and forget those that are gone."""
        segments = {
            entry.name: read_segment(self.folder, entry, manifest.dim, self._segments.get(entry.name))
            for entry in manifest.segments
        }
        self._manifest, self._segments = manifest, segments
        self._ids = [id for segment in segments.values() for id in segment.ids]
        self._places = {
            id: (name, row)
            for name, segment in segments.items()
            for row, id in enumerate(segment.ids)
            if segment.is_live[row]
        }

    @contextmanager
    def _writing(self) -> Iterator[Manifest]:
        """Hold the folder, with what others wrote to it since."""
        refusal = f"another process writes to `{self.folder}`; one must at a time; wait for it, or stop it"
        with hold(self.folder, refusal):
            manifest = read_manifest(self.folder)
            if manifest != self._manifest:
                self._load(manifest)
            yield manifest

    def _check_new(self, ids: list[str]) -> None:
        seen = set(self._places)
        for index, id in enumerate(ids):
            if not isinstance(id, str) or id in seen:
                what = "taken, or given twice" if isinstance(id, str) else "no string"
                raise InputError(
                    f"id {index}, {id!r}, is {what}; each must be a new string; delete the document "
                    "first, or give another id"
                )
            seen.add(id)

    def _commit(self, manifest: Manifest) -> None:
        """Make a manifest the one that counts, and remove the files that it does not name."""
        write_manifest(self.folder, manifest)
        self._load(manifest)
        with storage_errors(self.folder):
            for path in self.folder.glob(SEGMENTS):
                if path.name not in self._segments:
                    path.unlink()


def _checked(vectors: Any, dim: int) -> Any:
    """Return vectors as a scipy CSC matrix of fp32, a place for each number that is not 0."""
    if not scipy_sparse().issparse(vectors) or vectors.ndim != 2 or vectors.shape[1] != dim:
        given = list(vectors.shape) if hasattr(vectors, "shape") else vectors
        raise InputError(
            f"the vectors are {given!r} ({type(vectors).__name__}); they must be a sparse matrix of scipy "
            f"with {dim} columns; encode them with the model that the index was made for"
        )
    columns = vectors.tocsc(copy=True).astype(np.float32)
    columns.sum_duplicates()
    columns.eliminate_zeros()
    if not np.all(columns.data > 0) or not np.all(np.isfinite(columns.data)):
        raise InputError(
            "the vectors have numbers below 0, or that are not finite; they must have neither; encode them "
            "with a `SparseEncoder`"
        )
    return columns
