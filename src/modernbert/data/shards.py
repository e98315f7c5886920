"""Token shards: a corpus, tokenised once, as flat files of which training reads pieces.

A folder holds, for each shard, `00000.tokens` (little-endian uint16 or uint32, documents end to end,
no special tokens) and `00000.offsets.npy` (uint64, where each document begins and the last ends),
and an `index.json` (see `shard_index`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from modernbert import files
from modernbert.data.corpus import Document, TextFile, TextUnit, find_files, read_documents
from modernbert.data.prefetch import prefetch
from modernbert.data.shard_files import OpenShard
from modernbert.data.shard_index import InputFile, Position, Shard, ShardIndex, damaged
from modernbert.errors import ConfigError, InputError

# Small enough that what the tokenizer makes of a batch fits anywhere, large enough for many cores.
_BATCH_CHARACTERS = 2_000_000
_BATCH_DOCUMENTS = 4096
# Shards, of two files each, that a process holds open, all corpora together: many systems allow 1,024 files.
_MOST_OPEN = 256

# A document and the position in the input after it.
_Placed = tuple[Position, Document]


class ShardTokenizer(Protocol):
    """What writing shards needs of a tokenizer."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    def encode_batch(self, texts: list[str], *, special: bool, literal: bool) -> list[list[int]]: ...


class WriteProgress(NamedTuple):
    """How far the writing is, counted from the very beginning, also when it goes on from an interruption."""

    bytes_read: int
    bytes_total: int
    documents: int
    tokens: int


_ALIVE: weakref.WeakSet[TokenShards] = weakref.WeakSet()


class TokenShards:
    """A tokenised corpus on disk. Open one with `TokenShards.open`.

    Pieces are read from open files, not through memory maps: a file that is cut short, or a disk that
    fails, is then an error with a name instead of the end of the process, and waiting for a disk
    holds up no other thread.
    """

    def __init__(self, folder: Path, index: ShardIndex) -> None:
        self.folder = folder
        self.tokenizer_fingerprint = index.tokenizer
        self.vocab_size = index.vocab_size
        self.num_documents = index.num_documents
        self.num_tokens = index.num_tokens
        self._dtype = np.dtype(index.dtype)
        self._shards = index.shards
        sizes = (shard.documents for shard in index.shards)
        self._first_documents = list(itertools.accumulate(sizes, initial=0))[:-1]
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()  # the one used last, last
        self._lock = threading.Lock()  # of the open files: validation reads beside the prefetching thread
        _ALIVE.add(self)
        for shard in index.shards:
            shard.check_size(folder, index.dtype)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> TokenShards:
        """Open the shards that `write_shards` made.

        Args:
            folder: Where they are.
            verify: Compare every file with its checksum, which reads it all.

        Raises:
            InputError: There are none, they are not finished, or a file is missing, cut short or damaged.
        """
        index = ShardIndex.load(folder)
        if not index.complete:
            raise InputError(
                f"the token shards in `{folder}` are not finished: only {len(index.shards)} are there; "
                "run the command that writes them again, it goes on where it stopped"
            )
        shards = cls(folder, index)
        _ = shards.lengths  # refuses damaged files now, not after hours
        if verify:
            for shard in index.shards:
                shard.verify(folder)
        return shards

    @cached_property
    def lengths(self) -> NDArray[np.uint32]:
        """uint32 `[documents]`: tokens of each document, without special tokens."""
        lengths = np.empty(self.num_documents, dtype=np.uint32)
        for first, shard in zip(self._first_documents, self._shards):
            lengths[first : first + shard.documents] = np.diff(shard.load_offsets(self.folder))
        return lengths

    def read(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return tokens `start` up to `stop` (default: the end) of a document, read-only, as stored.

        Raises:
            InputError: There is no such document, or not so many tokens in it; its file is gone or damaged.
        """
        if not 0 <= document < self.num_documents:
            raise InputError(
                f"there is no document {document} in `{self.folder}`; it has {self.num_documents}"
            )
        number = bisect_right(self._first_documents, document) - 1
        place = document - self._first_documents[number]
        with self._lock:
            shard = self._open(number)
            begin, end = shard.bounds(place)
            stop = end - begin if stop is None else stop
            if not 0 <= start <= stop <= end - begin:
                raise InputError(
                    f"document {document} of `{self.folder}` has {end - begin} tokens, not {start}:{stop}"
                )
            tokens = shard.read(begin + start, stop - start, self._dtype)
        if len(tokens) and tokens.max() >= self.vocab_size:
            found = f"holds token {tokens.max()}, beyond the vocabulary of {self.vocab_size:,}"
            raise damaged(self._shards[number].tokens_path(self.folder), found)
        return tokens

    def _open(self, number: int) -> OpenShard:
        """Return an open shard; the one longest unused is closed if there are too many."""
        if number in self._opened:
            self._opened.move_to_end(number)
            return self._opened[number]
        while len(self._opened) >= max(1, _MOST_OPEN // len(_ALIVE)):
            self._opened.popitem(last=False)
        self._opened[number] = opened = OpenShard(self._shards[number], self.folder)
        return opened

    def check_tokenizer(self, tokenizer: ShardTokenizer) -> None:
        """Make sure that `tokenizer` is the one that these tokens came from.

        Raises:
            InputError: It is another.
        """
        ours, theirs = self.tokenizer_fingerprint, tokenizer.fingerprint
        if ours != theirs:
            raise InputError(
                f"the token shards in `{self.folder}` were made with tokenizer {ours[:12]}, but this one is "
                f"{theirs[:12]}; use that tokenizer, or write the shards anew in another folder"
            )


def write_shards(
    paths: str | Path | Iterable[str | Path],
    tokenizer: ShardTokenizer,
    folder: Path,
    *,
    shard_tokens: int = 10_000_000,
    text_key: str = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: int = 4_000_000,
    max_tokens: int | None = None,
    on_progress: Callable[[WriteProgress], None] | None = None,
) -> TokenShards:
    """Tokenise text files into `folder`, or go on with it, or, if all is done, just open it.

    Each shard is written whole or not at all; after an interruption the next call goes on after
    the last whole one, and the files come out the same, byte for byte.

    Args:
        paths: Text files and folders of them, see `corpus.find_files`.
        tokenizer: Encodes batches of texts, in parallel.
        folder: New, or from an earlier call with the same inputs, tokenizer and settings.
        shard_tokens: A shard ends with the document that brings it to so many tokens.
        text_key: See `corpus.read_documents`, as the next two.
        text_unit: What is a document in a `.txt` file.
        max_document_bytes: Longest document that is accepted.
        max_tokens: Reading ends with the document that brings it to so many tokens; None: with the text.
        on_progress: Called after each batch of documents.

    Raises:
        ConfigError: A setting that cannot be.
        InputError: The folder holds shards of something else; the text cannot be used, or there is none.
        StorageError: The disk is full or not writable. What was written stays; call again to go on.
    """
    for name, value in (("shard_tokens", shard_tokens), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ConfigError(f"`{name}` is {value}; it must be at least 1")
    inputs = find_files(paths)
    plan = ShardIndex(
        dtype="<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4",
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        text_key=text_key,
        text_unit=text_unit,
        shard_tokens=shard_tokens,
        max_tokens=max_tokens,
        inputs=tuple(InputFile.of(path) for path in inputs),
    )
    index = _resume(folder, plan)
    if not index.complete:

        def read(path: TextFile) -> Iterator[Document]:
            return read_documents(
                [path], text_key=text_key, text_unit=text_unit, max_document_bytes=max_document_bytes
            )

        documents = _place(inputs, index.position, read)
        _write_all(documents, tokenizer, _Writer(folder, index), on_progress)
    return TokenShards.open(folder)


def _write_all(
    documents: Iterator[_Placed],
    tokenizer: ShardTokenizer,
    writer: _Writer,
    on_progress: Callable[[WriteProgress], None] | None,
) -> None:
    with contextlib.closing(prefetch(_batches(documents))) as batches:
        for batch in itertools.takewhile(lambda _: not writer.is_full, batches):
            texts = [document.text for _, document in batch]
            encoded = tokenizer.encode_batch(texts, special=False, literal=True)
            for (position, _), ids in zip(batch, encoded):
                writer.add(ids, position)
            if on_progress is not None:
                on_progress(writer.progress(*batch[-1]))
    writer.finish()


class _Writer:
    """Collects documents and writes a shard, then the index, whenever there are enough."""

    def __init__(self, folder: Path, index: ShardIndex) -> None:
        self._folder = folder
        self._index = index
        self._documents: list[NDArray[Any]] = []
        self._tokens = 0
        self._end = index.position

    def add(self, ids: list[int], end: Position) -> None:
        """Add a document; one of which the tokenizer's normaliser left nothing is passed over."""
        if not ids or self.is_full:
            return
        self._documents.append(np.array(ids, dtype=self._index.dtype))
        self._tokens += len(ids)
        self._end = end
        if self._tokens >= self._index.shard_tokens:
            self._write_shard()

    @property
    def is_full(self) -> bool:
        limit = self._index.max_tokens
        return limit is not None and self._index.num_tokens + self._tokens >= limit

    def finish(self) -> None:
        if self._documents:
            self._write_shard()
        if not self._index.shards:
            raise InputError(
                f"the corpus is empty: there is no text in `{self._index.inputs[0].path}` nor in the "
                f"{len(self._index.inputs) - 1} files after it; give files with at least one document"
            )
        replace(self._index, complete=True).save(self._folder)

    def progress(self, position: Position, document: Document) -> WriteProgress:
        return WriteProgress(
            bytes_read=sum(file.bytes for file in self._index.inputs[: position.file]) + document.bytes_read,
            bytes_total=self._index.num_input_bytes,
            documents=self._index.num_documents + len(self._documents),
            tokens=self._index.num_tokens + self._tokens,
        )

    def _write_shard(self) -> None:
        name = f"{len(self._index.shards):05d}"
        buffer = io.BytesIO()
        np.save(buffer, np.cumsum([0, *(len(document) for document in self._documents)], dtype="<u8"))
        tokens = (document.data for document in self._documents)
        shard = Shard(
            name=name,
            documents=len(self._documents),
            tokens=self._tokens,
            tokens_sha256=_write(self._folder / f"{name}.tokens", tokens),
            offsets_sha256=_write(self._folder / f"{name}.offsets.npy", [buffer.getbuffer()]),
            end=self._end,
        )
        self._index = replace(self._index, shards=(*self._index.shards, shard))
        self._index.save(self._folder)
        self._documents, self._tokens = [], 0


def _write(path: Path, pieces: Iterable[memoryview]) -> str:
    """Write `pieces` atomically and return their SHA-256."""
    checksum = hashlib.sha256()
    with files.atomic_file(path) as temporary, temporary.open("wb") as file:
        for piece in pieces:
            checksum.update(piece)
            file.write(piece)
    return checksum.hexdigest()


def _resume(folder: Path, plan: ShardIndex) -> ShardIndex:
    """Return what is written in `folder` if it belongs to `plan`, else `plan` itself, with no shard yet."""
    if not (folder / "index.json").exists():
        return plan
    found = ShardIndex.load(folder)
    changes = found.changes(plan)
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise InputError(
            f"`{folder}` holds token shards of something else; these differ: {'; '.join(changes[:3])}{more}; "
            "choose another folder, or remove this one"
        )
    _ = TokenShards(folder, found).lengths  # refuses damaged files now, not after hours
    return replace(found, inputs=plan.inputs)


def _place(
    inputs: Sequence[TextFile], start: Position, read: Callable[[TextFile], Iterator[Document]]
) -> Iterator[_Placed]:
    """Read on from `start`."""
    for file in range(start.file, len(inputs)):
        used = start.documents if file == start.file else 0
        for number, document in itertools.islice(enumerate(read(inputs[file]), 1), used, None):
            yield Position(file=file, documents=number), document


def _batches(documents: Iterator[_Placed]) -> Iterator[list[_Placed]]:
    batch: list[_Placed] = []
    characters = 0
    for placed in documents:
        batch.append(placed)
        characters += len(placed[1].text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
