"""What a task is to a fine-tuning run: records to examples, a head, an objective, and how good a model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Generic

from modernbert.data.records import Record, Records
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
from modernbert.train.examples import Example, Objective

EVALUATED_TOKENS = 16_384
"""Of one forward pass where a model is measured."""

WHOLE, QUICK = Sampling(), Sampling(resamples=0)
"""How well figures are known: with intervals, and, while training goes on, without."""

TRAIN, VALIDATION, TEST = "train", "validation", "test"


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

    @abstractmethod
    def make_examples(self, split: str) -> list[Example]:
        """Turn a split's records into what is learned from."""

    def examples(self, split: str) -> list[Example]:
        """Return what is learned from a split; it is made once."""
        if split not in self._examples:
            self._examples[split] = self.make_examples(split)
        return self._examples[split]

    @abstractmethod
    def evaluate(self, runner: Runner, split: str, sampling: Sampling = WHOLE) -> Findings:
        """Measure a model on a split; `sampling` is that of the intervals."""


def computed(
    compute: Callable[[list[list[int]]], list[Array]], sequences: Sequence[list[int]]
) -> Iterator[Array]:
    """Yield a model's output for each sequence, in order; those of one forward pass are computed at once."""
    done = 0
    for count in cut([len(sequence) for sequence in sequences], EVALUATED_TOKENS):
        yield from compute(list(sequences[done : done + count]))
        done += count


def overlap(data: LabelledData, size: int) -> int:
    """Return how many tokens windows of a size share: the run's stride, or half a window if that is less."""
    return min(data.stride, size // 2)
