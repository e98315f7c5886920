"""The training loop: a generator that takes a step and yields a report; its caller decides the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.optim import Optimizer

from modernbert.data.masking import MaskedBatch
from modernbert.errors import DivergenceError, InputError
from modernbert.layout import SequenceLayout
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.runtime import Precision, autocast
from modernbert.train.feed import StepBatch
from modernbert.train.schedule import Setting


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        batch: What it consumed; its clock and loader state are those to save now.
        loss: Mean cross-entropy over the step's masked tokens, in nats, before the update.
        accuracy: Share of the masked tokens guessed right, before the update.
        num_masked: Masked tokens of the step.
        gradient_norm: Euclidean norm of the step's gradient over all parameters; nothing is clipped by it.
        seconds: From the end of the step before, or the start: waiting for data included.
        wait_seconds: Of these, waiting for data.
    """

    batch: StepBatch
    loss: float
    accuracy: float
    num_masked: int
    gradient_norm: float
    seconds: float
    wait_seconds: float


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
) -> Iterator[StepReport]:
    """Take one optimizer step a batch.

    The loss is normalised by the masked tokens of the whole step, so that every masked token weighs
    the same however the rows are cut.

    Raises:
        DivergenceError: The loss or the gradient is not finite. The weights are spoiled by then: go back to
            a checkpoint.
    """
    began = time.perf_counter()
    for batch in batches:
        arrived = time.perf_counter()
        _apply(batch.setting, model, optimizer)
        loss, correct, gradient_norm = _step(model, optimizer, batch.rows, device, precision)
        if not math.isfinite(loss + gradient_norm):
            raise DivergenceError(
                f"the loss of step {batch.clock.step} is {loss}, its gradient's norm {gradient_norm}; "
                f"both must be finite; the batch is {batch.identity}"
            )
        num_masked = sum(row.num_masked for row in batch.rows)
        ended = time.perf_counter()
        yield StepReport(
            batch=batch,
            loss=loss,
            accuracy=correct / max(num_masked, 1),
            num_masked=num_masked,
            gradient_norm=gradient_norm,
            seconds=ended - began,
            wait_seconds=arrived - began,
        )
        began = time.perf_counter()


@torch.no_grad()
def evaluate(
    model: ModernBertForMaskedLM,
    batches: Sequence[MaskedBatch],
    *,
    device: torch.device,
    precision: Precision = "auto",
) -> Evaluation:
    """Measure masked loss and accuracy on fixed batches; the model's mode is left as it was.

    Raises:
        InputError: No token is masked, so that there is nothing to measure.
    """
    num_masked = sum(batch.num_masked for batch in batches)
    if not num_masked:
        raise InputError(
            f"the evaluation set of {len(batches)} batches has no masked token; it must have at least one; "
            "give it more text or a higher mask rate"
        )
    was_training = model.training
    model.eval()
    loss, correct = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64)
    for batch in batches:
        # A layout of its own, lest the kept batches collect what backends derive from theirs.
        row = replace(batch.to(device), layout=SequenceLayout(batch.layout.lengths, device))
        row_loss, row_correct = _loss(model, row, device, precision)
        loss, correct = loss + row_loss, correct + row_correct
    model.train(was_training)
    labels = torch.cat([batch.labels for batch in batches])
    return Evaluation(
        loss=loss.item() / num_masked,
        accuracy=correct.item() / num_masked,
        commonest_accuracy=labels.bincount().max().item() / num_masked,
        num_masked=num_masked,
    )


def _apply(setting: Setting, model: ModernBertForMaskedLM, optimizer: Optimizer) -> None:
    """Bring model and optimizer to what the schedule says of this step.

    `max_lr`, by which the weight decay is relative, is the phase's own peak. The authors' code seems to keep
    that of the first phase; it would make the later phases' decay 3/8 of what their rows say.
    """
    phase = setting.phase
    model.model.set_rope_thetas(
        global_rope_theta=phase.global_rope_theta, local_rope_theta=phase.local_rope_theta
    )
    for group in optimizer.param_groups:
        group["lr"] = setting.learning_rate
        group["max_lr"] = phase.learning_rate
        if group.get("name") == "decay":
            group["weight_decay"] = phase.weight_decay


def _step(
    model: ModernBertForMaskedLM,
    optimizer: Optimizer,
    rows: Sequence[MaskedBatch],
    device: torch.device,
    precision: Precision,
) -> tuple[float, int, float]:
    """Take one step; return its mean loss, its right guesses and its gradient's norm."""
    model.train()
    num_masked = sum(row.num_masked for row in rows)
    total, correct = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64)
    for row in rows:
        row_loss, row_correct = _loss(model, row.to(device), device, precision)
        share = row_loss / max(num_masked, 1)
        share.backward()
        total, correct = total + share.detach(), correct + row_correct
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    figures = torch.stack([total, correct.float(), norm.float()])
    loss, num_correct, gradient_norm = figures.tolist()  # the step's only wait for the device
    return loss, int(num_correct), gradient_norm


def _loss(
    model: ModernBertForMaskedLM, row: MaskedBatch, device: torch.device, precision: Precision
) -> tuple[torch.Tensor, torch.Tensor]:
    with autocast(device, precision):
        return model.loss(row.input_ids, row.layout, row.masked_positions, row.labels)
