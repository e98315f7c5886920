"""The pairs of a run: those of files once, those of a corpus anew in each epoch, and what is held out."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from modernbert import telemetry
from modernbert.data.corpus import Document, find_files, read_documents, size_of
from modernbert.data.counter_random import key_of
from modernbert.data.pair_records import read_pairs
from modernbert.data.records import PairRecord
from modernbert.data.text_pairs import document_pairs
from modernbert.errors import InputError
from modernbert.recipes.retriever.settings import PairData

log = logging.getLogger(__name__)


class Pairs:
    """What a run learns from, and what it is validated by.

    The same settings hold out the same texts, whatever the seed: a query or a document is held out by what it
    says, so that neither is learned in another row or epoch.

    Args:
        data: Which pairs.
        seed: Fixes what is drawn of the corpus.
        batch_size: Of which there must be enough for one batch.

    Attributes:
        validation: Held out, or of the file for it.
        digest: What tells these pairs from others.

    Raises:
        InputError: A file is missing or damaged, or holds too little.
    """

    def __init__(self, data: PairData, seed: int, batch_size: int) -> None:
        self._data, self._seed = data, seed
        self._share = 0.0 if data.validation is not None else data.held_out
        self.validation = [] if data.validation is None else _read(data.validation, data)
        self._of_files: list[PairRecord] = []
        for pair in (pair for name in data.pairs for pair in _read(name, data)):
            (self.validation if self._is_held_out(pair.query) else self._of_files).append(pair)
        self._opened, self._pairs = 0, [*self._of_files, *self._first_of_corpus()]
        if len(self._pairs) < batch_size:
            raise InputError(
                f"there are {len(self._pairs)} pairs to learn from; there must be at least one batch, "
                f"`tuning.batch_size`, {batch_size}; lower that, or give more"
            )
        if data.has_validation and len(self.validation) < 2:
            raise InputError(
                f"{len(self.validation)} pairs are held out; there must be at least 2, to be compared; raise "
                "`data.held_out`, name a file as `data.validation`, or set `data.held_out` to 0"
            )
        self.digest = _digest([*self._pairs, *self.validation])

    def epoch(self, number: int) -> Sequence[PairRecord]:
        """Return the pairs of an epoch, as many in each."""
        if self._data.corpus and number != self._opened:
            self._pairs = [*self._of_files, *self._of_corpus(number, self._documents(), [])]
            self._opened = number
        return self._pairs

    def _is_held_out(self, text: str) -> bool:
        return key_of("held out", text) < self._share * 2**64

    def _first_of_corpus(self) -> list[PairRecord]:
        """Read the corpus for the first time, with progress; take what is held out of it."""
        if not self._data.corpus:
            return []
        size = sum(map(size_of, find_files(self._data.corpus)))
        with telemetry.progress("read corpus", size or None, "bytes") as meter:
            return self._of_corpus(0, self._documents(meter.advance), self.validation)

    def _of_corpus(
        self, epoch: int, documents: Iterable[Document], held_out: list[PairRecord]
    ) -> list[PairRecord]:
        """Return what is learned of documents in an epoch: at most so many pairs, each as likely as another.

        Args:
            epoch: Counted from 0.
            documents: All of the corpus.
            held_out: Gets the pairs of the documents that are held out.
        """
        drawn = (
            (key_of("sample", self._seed, epoch, number), number, pair)
            for number, pair in enumerate(self._draw(epoch, documents, held_out))
        )
        return [pair for *_, pair in heapq.nsmallest(self._data.max_corpus_pairs, drawn)]

    def _draw(
        self, epoch: int, documents: Iterable[Document], held_out: list[PairRecord]
    ) -> Iterator[PairRecord]:
        settings = self._data.drawn
        for document in documents:
            if self._is_held_out(document.text):
                held_out += document_pairs(document, settings, key_of("held out", document.text))
            else:
                yield from document_pairs(
                    document, settings, key_of("pairs", self._seed, epoch, document.text)
                )

    def _documents(self, on_progress: Callable[[float], None] | None = None) -> Iterator[Document]:
        data = self._data
        for file in find_files(data.corpus):
            read = 0
            for document in read_documents([file], text_key=data.text_key, text_unit=data.text_unit):
                yield document
                if on_progress is not None:
                    on_progress(document.bytes_read - read)
                    read = document.bytes_read


def _read(name: str, data: PairData) -> list[PairRecord]:
    """Read a file of pairs, and say what should be known of it."""
    found = read_pairs(name, data.columns)
    log.info("%s: %d pairs; %s", name, len(found.records), found.columns.summary())
    for remark in found.remarks:
        log.warning("%s: %s", found.path, remark.summary())
    return found.records


def _digest(pairs: Iterable[PairRecord]) -> str:
    """Return what tells pairs, in this order, from others: a hash of their texts."""
    found = hashlib.sha256()
    for pair in pairs:
        found.update(repr((pair.query, pair.positive, pair.negatives)).encode())
    return found.hexdigest()
