"""Pretraining that learns from a teacher too: what is minimised, row by row (Hinton et al. 2015).

    (1 - weight) * cross-entropy + weight * divergence + hidden_weight * distance of hidden states

The teacher is frozen. It reads the very row that the student reads, and its guesses are worked out at the
masked positions alone, chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modernbert.data.masking import MaskedBatch
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.student import Lesson
from modernbert.ops.reference import Logits
from modernbert.train.feed import StepBatch

PARTS = ("divergence", "hidden_distance")
"""Of the loss, beside the masked cross-entropy."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Distillation:
    """A teacher, and how much its lessons count.

    Attributes:
        teacher: On the device, in evaluation mode; its weights stay as they are.
        weight: Share of the divergence from the teacher's guesses; the masked cross-entropy has the rest.
        temperature: Divides the logits of both before that divergence.
        hidden_weight: Of the distance of the student's hidden states from the teacher's; 0: not learnt.
    """

    teacher: ModernBertForMaskedLM
    weight: float
    temperature: float
    hidden_weight: float

    @property
    def bridge_dim(self) -> int | None:
        """Width of the hidden states that the student learns; None if it learns none."""
        return self.teacher.config.hidden_size if self.hidden_weight else None

    def rows(self, batch: StepBatch) -> list[DistilledRow]:
        """Return a step's rows as rows to learn from. Stand-ins, which no token of counts, stay such."""
        rate = batch.setting.phase.mask_rate
        shares = [0.0 if number is None else rate for number in batch.row_numbers]
        return [DistilledRow(row, self, share) for row, share in zip(batch.rows, shares, strict=True)]

    @torch.no_grad()
    def lesson(self, row: MaskedBatch) -> Lesson:
        """Let the teacher read a row, in the dtype of its weights."""
        teacher = self.teacher
        with torch.autocast(row.input_ids.device.type, enabled=False):
            hidden = teacher.model(row.input_ids, row.layout.worked_out())
            features = teacher.head(hidden.index_select(0, row.masked_positions))
        logits = Logits(features, teacher.decoder.weight, teacher.decoder.bias)
        return Lesson(logits, hidden if self.hidden_weight else None)


@dataclass(frozen=True, eq=False)
class DistilledRow:
    """A masked row that a student learns together with its teacher.

    Attributes:
        row: What both read.
        distillation: The teacher, and how much it counts.
        token_share: What the hidden state of a token weighs where a masked token's guess weighs 1: the mask
            rate, for losses are divided by the masked tokens of the step, and this one is over all tokens.
    """

    row: MaskedBatch
    distillation: Distillation
    token_share: float

    @property
    def weight(self) -> float:
        return self.row.weight

    def to(self, device: torch.device | str) -> DistilledRow:
        return replace(self, row=self.row.to(device))

    def loss(self, model: Any) -> tuple[Tensor, ...]:
        """Let a `Student` learn: its summed loss, how many guesses are right, and what the loss is made of.

        The latter: the masked cross-entropy, and what `PARTS` names, the last only where it is learnt.
        """
        it, row = self.distillation, self.row
        lesson = it.lesson(row)
        found, distance = model.learn(
            row.input_ids,
            row.layout,
            row.masked_positions,
            row.labels,
            lesson,
            weight=it.weight,
            temperature=it.temperature,
        )
        figures = (found.correct, found.cross_entropy, found.divergence)
        if not it.hidden_weight:
            return found.loss, *figures
        distance = self.token_share * distance
        return found.loss + it.hidden_weight * distance, *figures, distance.detach()
