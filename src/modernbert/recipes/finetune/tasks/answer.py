"""Find the answers to questions in texts."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

from modernbert.data.answer_records import read_answers
from modernbert.data.records import AnswerRecord, Records
from modernbert.errors import InputError
from modernbert.infer.answer import Answer as Answering
from modernbert.infer.answer import Search
from modernbert.infer.outputs import Array, per_token
from modernbert.infer.runner import Runner
from modernbert.infer.task import Prepared
from modernbert.model.config import HeadConfig
from modernbert.model.heads import ModernBertForQuestionAnswering
from modernbert.recipes.finetune import evaluated
from modernbert.recipes.finetune.evaluated import Sampling, Shown
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.metrics import Problem
from modernbert.recipes.finetune.settings import LabelledData
from modernbert.recipes.finetune.task import TuningTask
from modernbert.train.examples import Example
from modernbert.train.objective import Objective
from modernbert.train.objectives import Spans

MOST_ANSWER_TOKENS = 30
TORN = "answer that no window holds whole, learned as none"


class Answer(TuningTask[AnswerRecord]):
    """See `TuningTask`. A window without the answer is learned as having none, which `[CLS]` stands for."""

    kind = ModernBertForQuestionAnswering
    problem: Problem = "answers"

    @staticmethod
    def read(path: Path, data: LabelledData) -> Records[AnswerRecord]:
        return read_answers(path, data.columns)

    def head(self) -> HeadConfig:
        return HeadConfig(dropout=self.run.head.dropout)

    def objective(self) -> Objective:
        return Spans()

    def _make_examples(self, split: str) -> list[Example]:
        return [example for record in self.splits[split].records for example in self._windows(split, record)]

    def _compute(self, runner: Runner, sequences: list[list[int]]) -> list[Array]:
        return per_token(runner, sequences)

    def _shape(self, sequence: list[int]) -> tuple[int, ...]:
        return len(sequence), 2

    def _judge(self, split: str, outputs: Iterator[Array], sampling: Sampling) -> Findings:
        records = self.splits[split].records
        return evaluated.of_answers(
            split,
            [[text for _, text in record.answers] for record in records],
            [self._answer(record, outputs) for record in records],
            [Shown(text=f"{record.question} {record.context}", place=record.place) for record in records],
            sampling=sampling,
        )

    @cached_property
    def _answering(self) -> Answering:
        """What cuts windows, and reads an answer from their outputs; it runs no model."""
        return Answering(
            cast(Runner, None),
            self.texts,
            max_answer_len=MOST_ANSWER_TOKENS,
            handle_impossible_answer=self._has_impossible,
            align_to_words=False,  # answers may be parts of words: not all languages have spaces
            doc_stride=max(1, self.run.data.stride),
        )

    @cached_property
    def _has_impossible(self) -> bool:
        return any(not record.answers for split in self.splits.values() for record in split.records)

    def _prepared(self, record: AnswerRecord) -> Prepared:
        try:
            (prepared,) = self._answering.prepare([(record.question, record.context)], 0)
        except InputError as error:
            raise InputError(f"`{record.place}`: {error}") from None
        return prepared

    def _answer(self, record: AnswerRecord, outputs: Iterator[Array]) -> str:
        """Read a record's answer from the outputs for its windows, which come next."""
        prepared = self._prepared(record)
        found = self._answering.finish(prepared, list(islice(outputs, len(prepared.sequences))))
        return str(cast(dict[str, Any], found)["answer"])

    def _windows(self, split: str, record: AnswerRecord) -> Iterator[Example]:
        prepared = self._prepared(record)
        search: Search = prepared.context
        span = _tokens(record, search)
        holding = [span is not None and start <= span[0] and span[1] < end for start, end in search.spans]
        if len(holding) > 1:
            self._remark_windows(split, record.place)
        if record.answers and not any(holding):
            self.splits[split].remarks.add(TORN, record.place)
        for sequence, (start, _), holds in zip(prepared.sequences, search.spans, holding):
            target = tuple(search.before + token - start for token in span) if span and holds else (0, 0)
            yield Example((sequence,), target, record.place)


def _tokens(record: AnswerRecord, search: Search) -> tuple[int, int] | None:
    """Return the first and the last token of the first answer."""
    if not record.answers:
        return None
    begin, text = record.answers[0]
    starts, ends = zip(*search.pieces.offsets)
    first, last = bisect_right(ends, begin), bisect_left(starts, begin + len(text)) - 1
    return (first, last) if first <= last else None
