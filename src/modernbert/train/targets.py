"""Targets of a micro-batch on their way into one tensor. What is wrong is said here: no GPU would name it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modernbert.errors import InputError

IGNORED = -100
"""In place of a label: neither loss nor judgement comes of it."""


def whole_numbers(values: Sequence[Any], owner: str) -> Tensor:
    """Return integers as int64 `[N]`.

    Args:
        values: `N` values of any integer type.
        owner: Whose they are, for messages.

    Raises:
        InputError: A value of another type.
    """
    numbers = []
    for value in values:
        try:
            numbers.append(operator.index(value))
        except TypeError:
            raise InputError(
                f"{owner} has the target {value!r}; it must be an integer; number the labels"
            ) from None
    return torch.tensor(numbers, dtype=torch.int64)


def labels(values: Sequence[Any], num_labels: int, owner: str) -> Tensor:
    """Return labels as int64 `[N]`.

    Args:
        values: `N` integers below `num_labels`, or `IGNORED`.
        num_labels: How many labels there are.
        owner: Whose they are, for messages.

    Raises:
        InputError: A label that there is not.
    """
    numbers = whole_numbers(values, owner)
    unknown = numbers[(numbers != IGNORED) & ((numbers < 0) | (numbers >= num_labels))]
    if len(unknown):
        raise InputError(
            f"{owner} has the label {unknown[0].item()}; it must be from 0 to {num_labels - 1}, or {IGNORED} "
            "to be left out; number the labels as the model does"
        )
    return numbers


def reals(targets: Sequence[Any], width: int, *, lowest: float, highest: float) -> Tensor:
    """Return a row of numbers for each example as fp32 `[B, width]`.

    Args:
        targets: A sequence of numbers for each example.
        width: How many numbers each has.
        lowest: The least that a number may be.
        highest: The most that it may be.

    Raises:
        InputError: Too few or too many numbers, or one out of range or not finite.
    """
    for example, target in enumerate(targets):
        if len(target) != width:
            raise InputError(
                f"example {example} has {len(target)} values, {list(target)!r}; it must have {width}, one "
                "for each score of the model"
            )
        for value in target:
            if not (lowest <= value <= highest and abs(value) < float("inf")):
                rule = "finite" if highest == float("inf") else f"from {lowest:g} to {highest:g}"
                raise InputError(f"example {example} has the value {value}; it must be {rule}; correct it")
    return torch.tensor([[float(value) for value in target] for target in targets])


def check_count(targets: Sequence[Any], num_sequences: int, wanted: int) -> None:
    """Check that targets are as many as the sequences are theirs.

    Args:
        targets: One an example.
        num_sequences: Sequences of the micro-batch.
        wanted: Sequences that these targets are for.

    Raises:
        InputError: They are not.
    """
    if wanted != num_sequences:
        raise InputError(
            f"{len(targets)} targets are for {wanted} sequences, but the micro-batch has {num_sequences}; "
            "give each example its target"
        )
