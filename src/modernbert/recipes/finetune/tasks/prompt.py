"""Label texts by the masked-LM head: a template is completed by a word that stands for a label.

So few examples go a long way, and no new head is drawn (ModernBERT-Instruct, arXiv 2502.03793).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.data.records import Records, TextRecord
from modernbert.data.text_records import (
    check_labels,
    check_texts,
    label_name,
    label_names,
    read_texts,
    shown_names,
)
from modernbert.errors import ConfigError, did_you_mean
from modernbert.infer.outputs import Array
from modernbert.infer.runner import Runner
from modernbert.infer.texts import Texts
from modernbert.model.config import HeadConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.recipes.finetune import evaluated
from modernbert.recipes.finetune.evaluated import Sampling, Shown
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.metrics import Problem
from modernbert.recipes.finetune.settings import FinetuneRun, LabelledData
from modernbert.recipes.finetune.task import TRAIN, TuningTask
from modernbert.train.examples import Example
from modernbert.train.objective import Objective
from modernbert.train.objectives import MaskedWords

MASK, TEXT, TEXT_PAIR = "[MASK]", "{text}", "{text_pair}"

SPARE = 8
"""Tokens by which a text may become more where a template's letters touch it."""

_PLACES = re.compile(r"(\{text(?:_pair)?\})")


class Prompt(TuningTask[TextRecord]):
    """See `TuningTask`."""

    kind = ModernBertForMaskedLM
    problem: Problem = "classes"

    def __init__(self, run: FinetuneRun, texts: Texts, splits: Mapping[str, Records[TextRecord]]) -> None:
        super().__init__(run, texts, splits)
        train, *others = (split.records for split in splits.values())
        check_texts(train, *others)
        check_labels(train, *others, problem="single_label_classification")
        names = label_names(train)
        self.labels = shown_names(names, splits[TRAIN].class_names)
        self._index = {name: index for index, name in enumerate(names)}
        self._template = self._checked_template()

    @staticmethod
    def read(path: Path, data: LabelledData) -> Records[TextRecord]:
        return read_texts(path, data.columns)

    @staticmethod
    def names(run: FinetuneRun, records: Sequence[TextRecord]) -> Sequence[Set[str]]:
        return [set(label_names([record])) for record in records]

    @property
    def takes_pairs(self) -> bool:
        return len(self.splits[TRAIN].records[0].texts) == 2

    def head(self) -> HeadConfig | None:
        return None

    def objective(self) -> Objective:
        return MaskedWords(vocab_size=self.texts.tokenizer.vocab_size)

    def _make_examples(self, split: str) -> list[Example]:
        mask = self.texts.tokenizer.mask_id
        return [
            Example((ids,), [(ids.index(mask), self.words[self._label(it)])], it.place)
            for it, ids in zip(self.splits[split].records, self._sequences(split))
        ]

    def _compute(self, runner: Runner, sequences: list[list[int]]) -> list[Array]:
        starts, mask = accumulate(map(len, sequences), initial=0), self.texts.tokenizer.mask_id
        places = [start + ids.index(mask) for start, ids in zip(starts, sequences)]
        logits, _ = runner(sequences, torch.tensor(places))
        return list(logits[:, self.words].cpu().numpy())

    def _shape(self, sequence: list[int]) -> tuple[int, ...]:
        return (len(self.labels),)

    def _judge(self, split: str, outputs: Iterator[Array], sampling: Sampling) -> Findings:
        records, logits = self.splits[split].records, np.stack(list(outputs))
        gold = np.array([self._label(record) for record in records])
        shown = [Shown(text=" | ".join(record.texts), place=record.place) for record in records]
        return evaluated.of_classes(split, gold, logits, self.labels, shown, sampling=sampling)

    @cached_property
    def words(self) -> list[int]:
        """The id of the word of each label.

        Raises:
            ConfigError: A word is more than one token, two labels have one word, or a word is of no label.
        """
        given = self.run.head.words or {}
        for label in given:
            if label not in self.labels:
                raise ConfigError(f"`head.words` has `{label}`, no label{did_you_mean(label, self.labels)}")
        words = [given.get(label, label) for label in self.labels]
        encoded = self.texts.tokenizer.encode_batch([f" {word}" for word in words], special=False)
        for label, word, ids in zip(self.labels, words, encoded):
            if len(ids) != 1:
                raise ConfigError(
                    f"the word {word!r} of the label {label!r} is {len(ids)} tokens; it must be one; name "
                    f"another as `head.words.{label}`"
                )
        found = [ids[0] for ids in encoded]
        if len(set(found)) < len(found):
            raise ConfigError(f"the words {words} are not all different tokens; each label must have its own")
        return found

    def _label(self, record: TextRecord) -> int:
        label: Any = record.label
        return self._index[label_name(label)]

    def _checked_template(self) -> str:
        has_pairs, template = self.takes_pairs, self.run.head.template
        if not has_pairs:
            template = re.sub(" {2,}", " ", template.replace(TEXT_PAIR, ""))
        if TEXT not in template or template.count(MASK) != 1 or (has_pairs and TEXT_PAIR not in template):
            raise ConfigError(
                f"`head.template` is {template!r}; it must have `{TEXT}`{f', `{TEXT_PAIR}`' * has_pairs} and "
                f"`{MASK}` once"
            )
        return template

    def _sequences(self, split: str) -> list[list[int]]:
        """Return completed templates as tokens, with as much of each text as there is room for.

        Raises:
            ConfigError: There is no room for any.
        """
        mask = self.texts.tokenizer.token(self.texts.tokenizer.mask_id)
        frame = self._template.replace(MASK, mask)
        most, width = self.texts.max_length, 1 + self.takes_pairs
        size = len(self.texts.tokenizer.encode(frame)) + SPARE * width
        if most - size < width:
            raise ConfigError(
                f"`head.template` is {self.run.head.template!r}, of {size:,} tokens; it must leave room "
                f"for a text in the {most:,} of a sequence; shorten it, or raise `data.max_length`"
            )
        filled = []
        for record in self.splits[split].records:
            parts = [part.replace(mask, " ") for part in record.texts]
            kept = self._cut(parts, (most - size) // width)
            if any(part[len(text) :].strip() for part, text in zip(parts, kept)):
                self._remark_cut(split, record.place)
            filled.append(_filled(frame, kept))
        return self.texts.ids(filled)

    def _cut(self, parts: list[str], room: int) -> list[str]:
        """Cut texts after so many tokens."""
        pieces = self.texts.pieces(parts, limit=room)
        return [it.text[: it.offsets[-1][1]] if it.offsets else "" for it in pieces]


def _filled(frame: str, parts: list[str]) -> str:
    """Fill texts into a template; braces in a text stay what they are."""
    values = dict(zip((TEXT, TEXT_PAIR), parts))
    return "".join(values.get(piece, piece) for piece in _PLACES.split(frame))
