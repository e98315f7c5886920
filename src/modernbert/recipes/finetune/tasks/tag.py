"""Tag the words of texts, such as the names in them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from modernbert.data.records import Records, TagRecord
from modernbert.data.tag_records import check_tags, read_tags
from modernbert.data.tag_schemes import OUTSIDE, tag_names
from modernbert.infer.outputs import Array, per_token
from modernbert.infer.runner import Runner
from modernbert.infer.texts import Pieces, Texts
from modernbert.infer.windows import owned, windows
from modernbert.model.config import HeadConfig
from modernbert.model.heads import ModernBertForTokenClassification
from modernbert.recipes.finetune import evaluated
from modernbert.recipes.finetune.evaluated import Sampling, Shown
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.metrics import Problem
from modernbert.recipes.finetune.settings import FinetuneRun, LabelledData
from modernbert.recipes.finetune.task import TRAIN, TuningTask, inverse_shares
from modernbert.train.examples import Example
from modernbert.train.objective import Objective
from modernbert.train.objectives import TokenClasses
from modernbert.train.targets import IGNORED


class _Window(NamedTuple):
    """A part of a record: token ids, and which token stands for which word."""

    sequence: list[int]
    words: dict[int, int]


class Tag(TuningTask[TagRecord]):
    """See `TuningTask`. A word's tag is learned, and read, at its first token, as `modernbert tag` does."""

    kind = ModernBertForTokenClassification
    problem: Problem = "tags"

    def __init__(self, run: FinetuneRun, texts: Texts, splits: Mapping[str, Records[TagRecord]]) -> None:
        super().__init__(run, texts, splits)
        train, *others = (split.records for split in splits.values())
        check_tags(train, *others)
        self.labels = tag_names(record.tags for record in train)
        self._parts: dict[str, list[list[_Window]]] = {}

    @staticmethod
    def read(path: Path, data: LabelledData) -> Records[TagRecord]:
        return read_tags(path, data.columns)

    @staticmethod
    def names(run: FinetuneRun, records: Sequence[TagRecord]) -> Sequence[Set[str]]:
        return [set(tag_names([record.tags])) for record in records]

    def head(self) -> HeadConfig:
        return HeadConfig(labels=tuple(self.labels), dropout=self.run.head.dropout)

    def objective(self) -> Objective:
        return TokenClasses(
            num_labels=len(self.labels),
            class_weights=self._class_weights(self.labels, self._balanced),
            label_smoothing=self.run.head.label_smoothing,
        )

    def _make_examples(self, split: str) -> list[Example]:
        for record, parts in zip(self.splits[split].records, self._cut(split)):
            if len(parts) > 1:
                self._remark_windows(split, record.place)
        return [
            Example((window.sequence,), self._target(window, record), record.place)
            for record, parts in zip(self.splits[split].records, self._cut(split))
            for window in _with_words(parts)
        ]

    def _compute(self, runner: Runner, sequences: list[list[int]]) -> list[Array]:
        return per_token(runner, sequences)

    def _shape(self, sequence: list[int]) -> tuple[int, ...]:
        return len(sequence), len(self.labels)

    def _judge(self, split: str, outputs: Iterator[Array], sampling: Sampling) -> Findings:
        records, predicted = self.splits[split].records, []
        for record, parts in zip(records, self._cut(split)):
            tags = [self._unread] * len(record.tags)
            for window, logits in zip(_with_words(parts), outputs):
                for word, place in window.words.items():
                    tags[word] = self.labels[int(logits[place].argmax())]
            predicted.append(tags)
        shown = [Shown(text=record.text, place=record.place) for record in records]
        gold = [record.tags for record in records]
        return evaluated.of_tags(split, gold, predicted, shown, sampling=sampling)

    @cached_property
    def _unread(self) -> str:
        """The tag of words that no token stands for."""
        return OUTSIDE if OUTSIDE in self.labels else self.labels[0]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def _cut(self, split: str) -> list[list[_Window]]:
        """Cut each record of a split, once, into as many windows as it needs."""
        if split not in self._parts:
            records = self.splits[split].records
            pieces = self.texts.pieces([record.text for record in records])
            self._parts[split] = [self._windows(record, it) for record, it in zip(records, pieces)]
        return self._parts[split]

    def _windows(self, record: TagRecord, pieces: Pieces) -> list[_Window]:
        size = self.texts.max_length - self.texts.num_special
        spans = windows(len(pieces.ids), size, min(self.run.data.stride, size // 2))
        before = self.texts.surround([-1]).index(-1)
        tokens = _first_tokens(record, pieces)
        return [
            _Window(
                self.texts.surround(pieces.ids[start:end]),
                {word: before + token - start for word, token in tokens.items() if first <= token < after},
            )
            for (start, end), (first, after) in zip(spans, owned(spans))
        ]

    def _target(self, window: _Window, record: TagRecord) -> list[int]:
        target = [IGNORED] * len(window.sequence)
        for word, place in reversed(window.words.items()):  # of words that share a token the first counts
            target[place] = self._ids[record.tags[word]]
        return target

    def _balanced(self) -> tuple[float, ...]:
        counts = Counter(tag for record in self.splits[TRAIN].records for tag in record.tags)
        return inverse_shares([counts[label] for label in self.labels])


def _with_words(parts: Sequence[_Window]) -> list[_Window]:
    """Return the windows of a record from which something is learned, or read."""
    return [window for window in parts if window.words]


def _first_tokens(record: TagRecord, pieces: Pieces) -> dict[int, int]:
    """Return for each word the first token that has a part of it; a word of unknown characters has none."""
    ends = [end for _, end in pieces.offsets]
    tokens = {}
    for word, (begin, after) in enumerate(record.words):
        token = bisect_right(ends, begin)
        while token < len(ends) and pieces.offsets[token][0] == pieces.offsets[token][1]:
            token += 1
        if token < len(ends) and pieces.offsets[token][0] < after:
            tokens[word] = token
    return tokens
