"""The plain definition of each operation: slow, obvious, and the judge of every faster way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from modernbert.layout import SequenceLayout


class Logits(NamedTuple):
    """Logits `hidden @ weight.T + bias` that are not worked out, as they may be too many.

    Attributes:
        hidden: `[M, D]`, one row a prediction.
        weight: Decoder weight `[V, D]`.
        bias: Decoder bias `[V]`.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor


class Distilled(NamedTuple):
    """A student's loss, and what it is made of. Scalars, the losses fp32 and summed over predictions.

    Attributes:
        loss: The weighted mean of the next two. It alone has a gradient.
        cross_entropy: Against the labels.
        divergence: From the teacher's distribution, times the square of the temperature.
        correct: How many labels the student ranks first, int64.
    """

    loss: Tensor
    cross_entropy: Tensor
    divergence: Tensor
    correct: Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, window: int | None) -> Tensor:
    """Bidirectional softmax attention inside each sequence (paper 2.1.2).

    Args:
        q: Queries `[T, N, H]`.
        k: Keys `[T, N, H]`.
        v: Values `[T, N, H]`.
        layout: Where each sequence lies; no token sees another sequence.
        window: Tokens visible on each side (64 for the published model, so 129 with the token
            itself), or None for all of the sequence.

    Returns:
        `[T, N, H]`.
    """
    outputs = []
    for query, key, value in zip(layout.split(q), layout.split(k), layout.split(v), strict=True):
        scores = torch.einsum("inh,jnh->nij", query, key) / query.shape[-1] ** 0.5
        if window is not None:
            place = torch.arange(len(query), device=query.device)
            far = (place[:, None] - place[None, :]).abs() > window
            scores = scores.masked_fill(far, float("-inf"))
        outputs.append(torch.einsum("nij,jnh->inh", scores.softmax(dim=-1), value))
    return torch.cat(outputs)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a linear decoder, summed, and how many labels it ranks first.

    Args:
        hidden: `[M, D]`, one row a prediction.
        weight: Decoder weight `[V, D]`.
        bias: Decoder bias `[V]`.
        labels: int64 `[M]`.

    Returns:
        Sum of the losses (fp32 scalar, natural logarithm) and number of correct predictions (int64 scalar).
    """
    logits = functional.linear(hidden, weight, bias).float()
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    return loss, (logits.argmax(dim=-1) == labels).sum()


def linear_distillation(
    student: Logits, teacher: Logits, labels: Tensor, *, weight: float, temperature: float
) -> Distilled:
    """Cross-entropy, and KL divergence of a student from its teacher (Hinton et al. 2015).

    With both distributions softened by a temperature, gradients shrink by its square, which is put back.

    Args:
        student: Of the model that learns.
        teacher: As many predictions over the same vocabulary; perhaps of another width.
        labels: int64 `[M]`.
        weight: Share of the divergence in the loss; the cross-entropy has the rest.
        temperature: Divides the logits of both before the divergence.
    """
    logits = functional.linear(*student).float()
    taught = functional.linear(*teacher).float().detach()
    cross_entropy = functional.cross_entropy(logits, labels, reduction="sum")
    divergence = temperature**2 * functional.kl_div(
        (logits / temperature).log_softmax(dim=-1),
        (taught / temperature).log_softmax(dim=-1),
        reduction="sum",
        log_target=True,
    )
    loss = (1 - weight) * cross_entropy + weight * divergence
    correct = (logits.argmax(dim=-1) == labels).sum()
    return Distilled(loss, cross_entropy.detach(), divergence.detach(), correct)


def splade_pool(
    hidden: Tensor, weight: Tensor, bias: Tensor, layout: SequenceLayout, activation: str = "relu"
) -> Tensor:
    """The weight of each word in each sequence: the largest over its tokens (SPLADE; Formal et al. 2021).

    Args:
        hidden: `[T, D]`.
        weight: Decoder weight `[V, D]`.
        bias: Decoder bias `[V]`.
        layout: Where each sequence lies.
        activation: `relu`: `log(1 + relu(logits))`; `log1p_relu`: the same once more (Geng et al. 2025).

    Returns:
        fp32 `[B, V]`.
    """
    words = functional.linear(hidden, weight, bias).float().relu().log1p()
    if activation == "log1p_relu":
        words = words.log1p()
    return torch.stack([tokens.amax(dim=0) for tokens in layout.split(words)])
