"""What a task is to a fine-tuning run: records to examples, a head, an objective, and how good a model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar, cast

import numpy as np

from modernbert.data.records import Record, Records
from modernbert.errors import ConfigError
from modernbert.infer.engine import cut
from modernbert.infer.outputs import Array
from modernbert.infer.runner import Runner
from modernbert.infer.texts import Texts
from modernbert.model.checkpoint import Pretrained
from modernbert.model.config import HeadConfig
from modernbert.recipes.finetune.evaluated import Sampling
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.metrics import PRIMARY, Problem
from modernbert.recipes.finetune.settings import FinetuneRun, LabelledData
from modernbert.train.examples import Example
from modernbert.train.objective import Objective
from modernbert.train.ranks import ALONE, Ranks

WHOLE, QUICK = Sampling(), Sampling(resamples=0)
"""How well figures are known: with intervals, and, while training goes on, without."""

TRAIN, VALIDATION, TEST = "train", "validation", "test"

Text = TypeVar("Text", contravariant=True)


class Encode(Protocol[Text]):
    """`Texts.ids` or `Texts.pair_ids`."""

    def __call__(self, texts: Sequence[Text], /, *, limit: int | None = None) -> list[list[int]]: ...


class TuningTask(ABC, Generic[Record]):
    """One task with its data.

    Args:
        run: Its settings.
        texts: The door for text.
        splits: What the files held, by the names of splits; `TRAIN` is among them.

    Raises:
        InputError: The records do not fit the task, or each other.
        ConfigError: Settings that do not fit them.
    """

    kind: ClassVar[type[Pretrained]]
    """The class of the model."""
    problem: Problem
    """Which figures there are of it."""

    def __init__(self, run: FinetuneRun, texts: Texts, splits: Mapping[str, Records[Record]]) -> None:
        self.run = run
        self.texts = texts
        self.splits: Mapping[str, Records[Record]] = splits
        self._examples: dict[str, list[Example]] = {}

    @staticmethod
    @abstractmethod
    def read(path: Path, data: LabelledData) -> Records[Record]:
        """Read a file of labelled examples."""

    @staticmethod
    def names(run: FinetuneRun, records: Sequence[Record]) -> Sequence[Set[str]]:
        """Return the labels of each record that must be learned to be predicted; none at all: there are none.

        What is held out may have no label that is not learned.
        """
        return []

    @property
    def metric(self) -> str:
        """The figure by which models are compared; more is better."""
        return PRIMARY[self.problem]

    @property
    def takes_pairs(self) -> bool:
        """Whether an example of a text task is two texts."""
        return False

    @abstractmethod
    def head(self) -> HeadConfig | None:
        """Return the head that the examples ask for; None: that of the checkpoint."""

    @abstractmethod
    def objective(self) -> Objective:
        """Return what is minimised."""

    def examples(self, split: str) -> list[Example]:
        """Return what is learned from a split. It is made once, and what was cut then is remarked."""
        if split not in self._examples:
            self._examples[split] = self._make_examples(split)
        return self._examples[split]

    @abstractmethod
    def _make_examples(self, split: str) -> list[Example]:
        """Turn a split's records into what is learned from."""

    def evaluate(
        self, runner: Runner, split: str, sampling: Sampling = WHOLE, ranks: Ranks = ALONE
    ) -> Findings:
        """Measure a model on a split, of which each rank computes a share; all get the same findings.

        Args:
            runner: Runs the model.
            split: Its name.
            sampling: Of the intervals.
            ranks: The processes of the run.
        """
        outputs = self._outputs(runner, split, ranks)
        findings = self._judge(split, iter(outputs), sampling) if ranks.is_first else None
        return cast(Findings, ranks.from_first(findings))

    def figure_names(self, split: str) -> Sequence[str]:
        """Return the figures that there are of a split, whatever a model says of it."""
        blank = (np.zeros(self._shape(ids), dtype=np.float32) for ids in self._inputs(split))
        return list(self._judge(split, blank, QUICK).figures)

    @abstractmethod
    def _compute(self, runner: Runner, sequences: list[list[int]]) -> list[Array]:
        """Return a model's output for each sequence of a micro-batch."""

    @abstractmethod
    def _shape(self, sequence: list[int]) -> tuple[int, ...]:
        """Return the shape of the output for a sequence."""

    @abstractmethod
    def _judge(self, split: str, outputs: Iterator[Array], sampling: Sampling) -> Findings:
        """Measure a model by its output for each sequence of a split's examples, in order."""

    def _inputs(self, split: str) -> list[list[int]]:
        return [ids for example in self.examples(split) for ids in example.sequences]

    def _outputs(self, runner: Runner, split: str, ranks: Ranks) -> list[Array]:
        """Return a model's output for each sequence, in order, on the first rank; nothing on the others.

        The micro-batches are those of one process, so that the figures are too.
        """
        sequences = self._inputs(split)
        counts = cut([len(ids) for ids in sequences], self.run.micro_batch_tokens)
        ends = list(accumulate(counts, initial=0))
        rows = ranks.in_turn(
            len(counts), lambda row: self._compute(runner, sequences[ends[row] : ends[row + 1]])
        )
        return [output for row in rows for output in row]

    def _encoded(
        self, split: str, encode: Encode[Text], texts: Sequence[Text], places: Sequence[str]
    ) -> list[list[int]]:
        """Return the token ids of texts or pairs, and remark the places of those that were cut."""
        most = self.texts.max_length
        sequences = encode(texts)
        full = [index for index, sequence in enumerate(sequences) if len(sequence) == most]
        longer = encode([texts[index] for index in full], limit=most + 1)
        cut_places = [places[index] for index, ids in zip(full, longer) if len(ids) > most]
        for place in dict.fromkeys(cut_places):
            self._remark_cut(split, place)
        return sequences

    def _remark_cut(self, split: str, place: str) -> None:
        self.splits[split].remarks.add(f"text cut at {self.texts.max_length:,} tokens", place)

    def _remark_windows(self, split: str, place: str) -> None:
        kind = f"text of more than {self.texts.max_length:,} tokens, read by windows"
        self.splits[split].remarks.add(kind, place)

    def _class_weights(
        self, labels: Sequence[str], balanced: Callable[[], tuple[float, ...]]
    ) -> tuple[float, ...]:
        """Return what each label counts: as given, as `balanced` says, or nothing for all alike.

        Raises:
            ConfigError: Not as many as there are labels are given.
        """
        given = self.run.head.class_weights or ()
        if given == "balanced":
            return balanced()
        if given and len(given) != len(labels):
            shown = ", ".join(labels[:20]) + (" …" if len(labels) > 20 else "")
            raise ConfigError(
                f"`head.class_weights` has {len(given)} numbers for {len(labels)} labels ({shown}); it must "
                "have one for each, in this order"
            )
        return given


def inverse_shares(counts: Sequence[int]) -> tuple[float, ...]:
    """Return the weights that let labels of so many examples count alike, 1 on the average."""
    total = sum(counts)
    return tuple(total / (len(counts) * max(count, 1)) for count in counts)
