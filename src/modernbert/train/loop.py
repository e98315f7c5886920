"""The training loop: a generator that takes a step and yields a report; its caller decides the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.optim import Optimizer

from modernbert.data.counter_random import key_of
from modernbert.data.masking import MaskedBatch
from modernbert.errors import DivergenceError, InputError
from modernbert.layout import SequenceLayout
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.runtime import Precision
from modernbert.train.distillation import PARTS, Distillation
from modernbert.train.feed import StepBatch, stand_in
from modernbert.train.gradients import step_gradients
from modernbert.train.guard import Guard, GuardSettings
from modernbert.train.optim import clip_gradients, follow_schedule
from modernbert.train.parallel import Spread
from modernbert.train.ranks import Ranks
from modernbert.train.schedule import Setting


@dataclass(frozen=True)
class StepReport:
    """What one step did, over all ranks.

    Attributes:
        batch: What it consumed; its clock and loader state are those to save now.
        loss: Mean cross-entropy over the step's masked tokens, in nats, before the update.
        accuracy: Share of the masked tokens guessed right, before the update.
        num_masked: Masked tokens of the step.
        gradient_norm: Euclidean norm of the step's gradient over all parameters, before any clipping.
        seconds: From the end of the step before, or the start: waiting for data included.
        wait_seconds: Of these, waiting for data.
        fault: Why the update was left out; None if it was not.
        parts: With a teacher, `objective`, which is what was minimised and judged, and its `PARTS`; as means.
    """

    batch: StepBatch
    loss: float
    accuracy: float
    num_masked: int
    gradient_norm: float
    seconds: float
    wait_seconds: float
    fault: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Masked-token figures over a fixed set.

    Attributes:
        loss: Mean cross-entropy, in nats.
        accuracy: Share guessed right.
        commonest_accuracy: Share guessed right by always naming the set's commonest masked token.
        num_masked: Masked tokens in the set.
    """

    loss: float
    accuracy: float
    commonest_accuracy: float
    num_masked: int


def train(
    model: ModernBertForMaskedLM,
    optimizer: Optimizer,
    batches: Iterable[StepBatch],
    *,
    device: torch.device,
    precision: Precision = "auto",
    spread: Spread[ModernBertForMaskedLM] | None = None,
    guard: Guard | None = None,
    distillation: Distillation | None = None,
    seed: int | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Iterator[StepReport]:
    """Take one optimizer step a batch.

    The loss is normalised by the masked tokens of the whole step, so that every masked token weighs
    the same however the rows are cut and whichever rank computes them.

    Args:
        model: Is trained.
        optimizer: Over its parameters.
        batches: One a step.
        device: Where to compute.
        precision: Of forward and backward.
        spread: The model among other processes; None: this one is alone.
        guard: Leaves out updates; the caller asks it when to stop. None: the first fault is an error.
        distillation: From which the model, then a `Student`, learns besides; None: from the text alone.
        seed: Fixes the dropout of each row by its step and number, whichever rank computes it; None: torch's
            random state does.
        on_stage: Is told what begins now, such as `takes step 7`.

    Raises:
        DivergenceError: The loss or the gradient is not finite, and there is no guard; the weights are as
            they were before that step.
        InputError: Text cannot be read; all processes stop before the same step.
    """
    spread = spread or Spread(model, device=device, precision=precision)
    judge = guard or Guard(GuardSettings(skips=0))
    arrivals, step = iter(batches), None
    while True:
        began = time.perf_counter()
        on_stage("waits for its first data" if step is None else f"waits for the data after step {step}")
        batch = _next(arrivals, spread.ranks, on_stage)
        if batch is None:
            return
        step, arrived = batch.clock.step, time.perf_counter()
        on_stage(f"takes step {step}")
        _apply(batch.setting, model, optimizer)
        rows = batch.rows if distillation is None else distillation.rows(batch)
        found = step_gradients(spread, rows, _dropout_seeds(batch, seed))
        fault = judge.judge(found.loss, found.gradient_norm, batch.setting.phase_index)
        if fault is None:
            clip_gradients(optimizer, found.gradient_norm)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if fault is not None and guard is None:
            raise DivergenceError(f"step {step} is bad: {fault}; the batch is {batch.identity}")
        masked_loss, *others = found.parts or (found.loss,)
        ended = time.perf_counter()
        yield StepReport(
            batch=batch,
            loss=masked_loss,
            accuracy=found.num_right / max(found.weight, 1),
            num_masked=int(found.weight),
            gradient_norm=found.gradient_norm,
            seconds=ended - began,
            wait_seconds=arrived - began,
            fault=fault,
            parts={"objective": found.loss, **dict(zip(PARTS, others))} if others else {},
        )


@torch.no_grad()
def evaluate(
    model: ModernBertForMaskedLM,
    batches: Sequence[MaskedBatch],
    *,
    device: torch.device,
    precision: Precision = "auto",
    spread: Spread[ModernBertForMaskedLM] | None = None,
) -> Evaluation:
    """Measure masked loss and accuracy on fixed batches; the model's mode is left as it was.

    Args:
        model: Is measured.
        batches: The same on all ranks.
        device: Where to compute.
        precision: Of the forward pass.
        spread: The model among other processes, each of which then measures its share; None: all is measured
            here.

    Raises:
        InputError: No token is masked, so that there is nothing to measure.
    """
    num_masked = sum(batch.num_masked for batch in batches)
    if not num_masked:
        raise InputError(
            f"the evaluation set of {len(batches)} batches has no masked token; it must have at least one; "
            "give it more text or a higher mask rate"
        )
    spread = spread or Spread(model, device=device, precision=precision)
    ranks, was_training = spread.ranks, model.training
    model.eval()
    own = [batches[i] for i in ranks.share_of(len(batches))]
    total = torch.zeros(2, device=device, dtype=torch.float64 if device.type == "cpu" else torch.float32)
    for batch in [*own, *[stand_in()] * (ranks.turns(len(batches)) - len(own))]:
        # A layout of its own, lest the kept batches collect what backends derive from theirs.
        row = replace(batch, layout=SequenceLayout(batch.layout.lengths, device))
        loss, correct = spread.loss(row)
        total += torch.stack([loss, correct.to(loss.dtype)])
    model.train(was_training)
    spread.settle()
    loss_sum, num_correct = ranks.add(total).tolist()
    labels = torch.cat([batch.labels for batch in batches])
    return Evaluation(
        loss=loss_sum / num_masked,
        accuracy=num_correct / num_masked,
        commonest_accuracy=labels.bincount().max().item() / num_masked,
        num_masked=num_masked,
    )


def _next(arrivals: Iterator[StepBatch], ranks: Ranks, on_stage: Callable[[str], None]) -> StepBatch | None:
    """Take the next batch. If a process cannot have its own, none begins the step, lest they wait for it."""
    batch, failure = None, None
    try:
        batch = next(arrivals, None)
    except InputError as error:
        failure = error
    on_stage("has its data, and waits for the others to have theirs")
    if ranks.any(failure is not None):
        raise failure or InputError(
            "another process cannot read its text; all must have theirs; it says which, mend that"
        )
    return batch


def _apply(setting: Setting, model: ModernBertForMaskedLM, optimizer: Optimizer) -> None:
    """Bring model and optimizer to what the schedule says of this step."""
    phase = setting.phase
    model.model.set_rope_thetas(
        global_rope_theta=phase.global_rope_theta, local_rope_theta=phase.local_rope_theta
    )
    follow_schedule(optimizer, setting)


def _dropout_seeds(batch: StepBatch, seed: int | None) -> list[int | None]:
    """Fix the dropout of each row by its step and number, whichever rank computes it."""
    if seed is None:
        return [None] * len(batch.rows)
    return [key_of("dropout", seed, batch.clock.step, number or 0) for number in batch.row_numbers]
