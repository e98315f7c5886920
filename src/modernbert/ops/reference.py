"""The plain definition of each operation: slow, obvious, and the judge of every faster way."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from modernbert.layout import SequenceLayout


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
