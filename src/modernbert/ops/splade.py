"""SPLADE pooling on packed tokens: a weight for each word of the vocabulary, without all logits in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modernbert.errors import InputError, did_you_mean
from modernbert.layout import SequenceLayout
from modernbert.ops.segments import argmax, reduce

ACTIVATIONS = ("relu", "log1p_relu")
"""`log(1 + relu(x))`; and `log(1 + log(1 + relu(x)))`, which makes vectors sparser still."""

# Logits alive at one time: 32 Mi of them are 128 MiB in fp32; to know whose they are takes three times more.
LOGITS_AT_ONCE = 2**25


def splade_pool(
    hidden: Tensor, weight: Tensor, bias: Tensor, layout: SequenceLayout, activation: str = "relu"
) -> Tensor:
    """Compute `reference.splade_pool` in chunks of the vocabulary.

    As the activation never falls, it is applied to the largest logit alone. For the gradient it is kept which
    token had that, an int32 for each number of the result. What is frozen costs nothing.

    Args:
        hidden: `[T, D]`; under autocast the products run in its dtype.
        weight: Decoder weight `[V, D]`.
        bias: Decoder bias `[V]`.
        layout: Where each sequence lies, on the same device.
        activation: One of `ACTIVATIONS`.

    Returns:
        fp32 `[B, V]`, none below 0.

    Raises:
        InputError: An unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise InputError(f"unknown activation `{activation}`{did_you_mean(activation, ACTIVATIONS)}")
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        hidden = hidden.to(torch.get_autocast_dtype(device_type))
    if not torch.is_grad_enabled():  # else it would be kept for nobody which tokens had the largest
        hidden, weight, bias = hidden.detach(), weight.detach(), bias.detach()
    with torch.autocast(device_type, enabled=False):
        largest: Tensor = _LargestLogits.apply(hidden, weight, bias, layout)  # type: ignore[no-untyped-call]
        pooled = largest.relu().log1p()
    return pooled.log1p() if activation == "log1p_relu" else pooled


class _LargestLogits(torch.autograd.Function):
    """The largest logit of each sequence and word, fp32 `[B, V]`; the first token that has it learns."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, layout: SequenceLayout) -> Tensor:
        shape = (layout.num_sequences, len(weight))
        largest = torch.empty(shape, dtype=torch.float32, device=hidden.device)
        is_wanted = any(ctx.needs_input_grad)
        places = torch.empty(shape, dtype=torch.int32, device=hidden.device) if is_wanted else None
        for chunk in _chunks(hidden, weight):
            logits = functional.linear(hidden, weight[chunk].to(hidden.dtype), bias[chunk].to(hidden.dtype))
            largest[:, chunk] = reduce(logits, layout.offsets, "max")
            if places is not None:
                places[:, chunk] = argmax(logits, layout.offsets, layout.sequence_ids)
            del logits  # before the next chunk's are there
        if places is not None:
            places.clamp_(max=len(hidden) - 1)  # where all are NaN there is none
        ctx.save_for_backward(hidden, weight, places)
        ctx.bias_dtype = bias.dtype
        return largest

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, places = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        # A sum over all chunks, which a narrow dtype would round each time.
        of_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
        of_weight = torch.empty_like(weight) if wants_weight else None
        for chunk in _chunks(hidden, weight) if wants_hidden or wants_weight else ():
            words = weight[chunk].to(hidden.dtype)
            error = hidden.new_zeros(
                len(hidden), len(words)
            )  # d loss / d logits: a token a sequence and word
            error.scatter_(0, places[:, chunk].long(), outer[:, chunk].to(hidden.dtype))
            if of_hidden is not None:
                of_hidden += error @ words
            if of_weight is not None:
                of_weight[chunk] = error.T @ hidden
            del error
        of_bias = outer.sum(dim=0).to(ctx.bias_dtype) if wants_bias else None
        return None if of_hidden is None else of_hidden.to(hidden.dtype), of_weight, of_bias, None


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Cut the vocabulary so that all tokens' logits of a part are few enough."""
    words = max(1, LOGITS_AT_ONCE // len(hidden))
    return [slice(start, start + words) for start in range(0, len(weight), words)]
