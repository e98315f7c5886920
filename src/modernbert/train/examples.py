"""Labelled examples as packed micro-batches: what each optimizer step of fine-tuning consumes.

Which examples a step takes is a pure function of the seed, the epoch and the step, so that a stopped run goes
on with the same ones, and each rank finds its own share by itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modernbert.data.counter_random import key_of, permute
from modernbert.layout import SequenceLayout, pack
from modernbert.train.gradients import TuningFigures, step_gradients
from modernbert.train.objective import Objective
from modernbert.train.parallel import Spread
from modernbert.train.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Example:
    """One thing to learn from.

    Attributes:
        sequences: Token ids with special tokens: one sequence, or one for each choice.
        target: What the objective takes, see `train.objectives`.
        place: Where it stands, such as `train.csv, line 7`.
    """

    sequences: tuple[list[int], ...]
    target: Any
    place: str = ""

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.sequences))


@dataclass(frozen=True, eq=False)
class ExampleBatch:
    """Examples packed into one row.

    Attributes:
        input_ids: int64 `[T]`.
        layout: Where each sequence lies.
        targets: As the objective collated them.
        objective: What is minimised.
        weight: By what the sum of its loss counts in a mean.
        counts: Whether it adds to a loss at all; if not, it keeps a rank in step with the others.
    """

    input_ids: Tensor
    layout: SequenceLayout
    targets: Tensor
    objective: Objective
    weight: float
    counts: bool = True

    def to(self, device: torch.device | str) -> ExampleBatch:
        """Return it on a device; a GPU copies it while the host goes on."""
        target = torch.device(device)
        tensors = [self.input_ids, self.targets]
        if target.type == "cuda":
            tensors = [tensor if tensor.is_cuda else tensor.pin_memory() for tensor in tensors]
        input_ids, targets = (tensor.to(target, non_blocking=True) for tensor in tensors)
        return replace(self, input_ids=input_ids, layout=self.layout.to(target), targets=targets)

    def loss(self, model: Any) -> tuple[Tensor, Tensor]:
        """Return the summed loss, and how many targets a model gets right."""
        loss, right = self.objective.loss(model, self.input_ids, self.layout.worked_out(), self.targets)
        return (loss, right) if self.counts else (loss * 0, right * 0)


@dataclass(frozen=True)
class ExampleStep:
    """What one optimizer step consumes.

    Attributes:
        number: Steps taken once it is done.
        rows: This rank's micro-batches; as many as any other rank has.
        num_examples: Of all ranks.
        num_tokens: Of all ranks.
        identity: Which examples these are, for messages.
    """

    number: int
    rows: tuple[ExampleBatch, ...]
    num_examples: int
    num_tokens: int
    identity: str

    def gradients(self, spread: Spread[Any], seeds: Sequence[int]) -> TuningFigures:
        """Compute the step's gradients, which add to those that there are; see `step_gradients`."""
        found = step_gradients(spread, self.rows, seeds)
        return TuningFigures(found.loss, found.gradient_norm, self.num_tokens)


def steps_in(num_examples: int, batch_size: int, epochs: float) -> int:
    """Count the steps of so many epochs; the last batch of an epoch may be smaller."""
    return max(1, math.ceil(epochs * math.ceil(num_examples / batch_size)))


def examples_in(num_steps: int, num_examples: int, batch_size: int) -> int:
    """Count the examples that the first steps of a run consume."""
    epochs, steps = divmod(num_steps, math.ceil(num_examples / batch_size))
    return epochs * num_examples + min(steps * batch_size, num_examples)


def digest(examples: Iterable[Example]) -> str:
    """Return what tells examples, in this order, from others: a hash of tokens and targets."""
    found = hashlib.sha256()
    for example in examples:
        found.update(repr((example.sequences, example.target)).encode())
    return found.hexdigest()


def batch(examples: Sequence[Example], objective: Objective) -> ExampleBatch:
    """Pack examples into one row."""
    sequences = [sequence for example in examples for sequence in example.sequences]
    ids, layout = pack(sequences)
    targets = objective.collate([example.target for example in examples], layout.lengths)
    return ExampleBatch(ids, layout, targets, objective, objective.weight(targets))


def example_steps(
    examples: Sequence[Example],
    objective: Objective,
    *,
    batch_size: int,
    row_tokens: int,
    num_steps: int,
    seed: int,
    done: int = 0,
    ranks: Ranks = ALONE,
) -> Iterator[ExampleStep]:
    """Yield the steps of a run, each epoch in an order of its own.

    Args:
        examples: To learn from, the same on all ranks.
        objective: What is minimised.
        batch_size: Examples of a step, over all ranks.
        row_tokens: Most tokens of a micro-batch.
        num_steps: Of the whole run.
        seed: Another seed, another order.
        done: Steps that were taken before.
        ranks: Whose rows to make.
    """
    in_epoch = math.ceil(len(examples) / batch_size)
    for step in range(done, num_steps):
        epoch, place = divmod(step, in_epoch)
        drawn = np.arange(place * batch_size, min((place + 1) * batch_size, len(examples)))
        order = permute(drawn, len(examples), key_of("examples", seed, epoch))
        chosen = [examples[index] for index in order]
        yield ExampleStep(
            number=step + 1,
            rows=_own_rows(chosen, objective, row_tokens, ranks),
            num_examples=len(chosen),
            num_tokens=sum(example.num_tokens for example in chosen),
            identity=f"epoch {epoch + 1}, {len(chosen)} examples from {chosen[0].place}",
        )


def _own_rows(
    examples: Sequence[Example], objective: Objective, row_tokens: int, ranks: Ranks
) -> tuple[ExampleBatch, ...]:
    """Make a rank's rows, and as many beside them that count nothing as bring it to the most of any rank."""
    ends = [rank * len(examples) // ranks.size for rank in range(ranks.size + 1)]
    shares = [cut_rows(examples[begin:end], row_tokens) for begin, end in pairwise(ends)]
    own = [batch(row, objective) for row in shares[ranks.rank]]
    missing = max(map(len, shares)) - len(own)
    if not missing:
        return tuple(own)
    smallest = min(examples, key=lambda example: example.num_tokens)
    return (*own, *[replace(batch([smallest], objective), weight=0.0, counts=False)] * missing)


def cut_rows(examples: Sequence[Example], row_tokens: int) -> list[list[Example]]:
    """Cut examples, in order, into rows of at most `row_tokens`; a longer example has one to itself."""
    rows: list[list[Example]] = []
    filled = 0
    for example in examples:
        if rows and filled + example.num_tokens <= row_tokens:
            rows[-1].append(example)
            filled += example.num_tokens
        else:
            rows.append([example])
            filled = example.num_tokens
    return rows
