"""What every objective of fine-tuning has: targets as a tensor, their weight, and the loss on a micro-batch.

Losses are sums, in fp32 whatever the model computes in, to be divided by the weight of the whole optimizer
step: so each example counts the same however a step is cut into micro-batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from modernbert.errors import ConfigError
from modernbert.layout import SequenceLayout


class Objective(ABC):
    """What is minimised: how targets become a tensor, what they weigh, and the loss on a micro-batch."""

    @abstractmethod
    def collate(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        """Make one tensor of a micro-batch's targets, on the host.

        Args:
            targets: One an example, as the class says.
            lengths: Tokens of each sequence of the micro-batch, in packed order.

        Raises:
            InputError: A target that is out of range or does not fit the sequences.
        """

    @abstractmethod
    def weight(self, targets: Tensor) -> float:
        """Return what targets from `collate` add to the divisor of the step's summed loss."""

    @abstractmethod
    def loss(
        self, model: nn.Module, input_ids: Tensor, layout: SequenceLayout, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum the loss over a micro-batch, and count the right predictions.

        Args:
            model: With the head that this objective is for.
            input_ids: int64 `[T]`.
            layout: Where each sequence lies.
            targets: From `collate`, on the same device.

        Returns:
            Loss (fp32 scalar) and number of right predictions (int64 scalar, without a gradient).

        Raises:
            ConfigError: The model's scores are not as many as the labels.
        """


def scores(model: nn.Module, input_ids: Tensor, layout: SequenceLayout, width: int) -> Tensor:
    """Return a model's scores in fp32, `[B, width]` or `[T, width]`.

    Raises:
        ConfigError: There are not `width` of them.
    """
    logits: Tensor = model(input_ids, layout)
    if logits.shape[-1] != width:
        raise ConfigError(
            f"the model has {logits.shape[-1]} scores where the objective has {width}; they must be as many; "
            "give the model's head the labels of the targets"
        )
    return logits.float()


@lru_cache(maxsize=16)
def placed(weights: tuple[float, ...], device: torch.device) -> Tensor | None:
    """Copy weights to a device once, as copying makes the host wait; None if there are none."""
    with torch.inference_mode(False):  # else what an evaluation kept could not be trained with
        return torch.tensor(weights, device=device) if weights else None


def check_at_least(name: str, count: int, least: int) -> None:
    """Check a setting that counts.

    Raises:
        ConfigError: It is below `least`.
    """
    if count < least:
        raise ConfigError(f"`{name}` is {count}; it must be at least {least}")


def check_weights(name: str, weights: tuple[float, ...], num_labels: int) -> None:
    """Check a setting that weighs labels.

    Raises:
        ConfigError: It has not one number for each label, if any, or one is not above 0 and finite.
    """
    if weights and len(weights) != num_labels:
        raise ConfigError(
            f"`{name}` has {len(weights)} numbers for {num_labels} labels; it must have one for each, or none"
        )
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise ConfigError(f"`{name}` has {weight}; each must be above 0 and finite")
