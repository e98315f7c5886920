"""Cross-entropy of the tied decoder without all logits in memory at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Logits alive at one time: 64 Mi of them are 256 MiB in fp32.
LOGITS_AT_ONCE = 2**26


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `reference.linear_cross_entropy` in chunks of rows, the gradient together with the loss.

    What needs no gradient, such as a frozen decoder, costs none: nothing is computed or allocated for it.

    Args:
        hidden: `[M, D]`, one row a prediction; under autocast the products run in its dtype.
        weight: Decoder weight `[V, D]`.
        bias: Decoder bias `[V]`.
        labels: int64 `[M]`.

    Returns:
        Sum of the losses (fp32 scalar) and number of correct predictions (int64 scalar, no gradient).
    """
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        hidden = hidden.to(torch.get_autocast_dtype(device_type))
    if not torch.is_grad_enabled():  # else autograd.Function would compute gradients for nobody
        hidden, weight, bias = hidden.detach(), weight.detach(), bias.detach()
    with torch.autocast(device_type, enabled=False):
        loss, correct = _LinearCrossEntropy.apply(hidden, weight, bias, labels)  # type: ignore[no-untyped-call]
    return loss, correct


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(tensor) if is_wanted else None
            for tensor, is_wanted in zip((hidden, weight, bias), ctx.needs_input_grad)
        )
        cast_weight, cast_bias = weight.to(hidden.dtype), bias.to(hidden.dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        rows = max(1, LOGITS_AT_ONCE // len(weight))
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            logits = functional.linear(hidden[chunk], cast_weight, cast_bias).float()
            target = labels[chunk, None]
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            loss += (log_sum - logits.gather(1, target)).sum()
            correct += (logits.argmax(dim=-1, keepdim=True) == target).sum()
            if any(ctx.needs_input_grad):
                error = logits.sub_(log_sum).exp_()  # softmax, then minus one at the label: d loss / d logits
                error.scatter_add_(1, target, error.new_full(target.shape, -1.0))
                if of_bias is not None:
                    of_bias.add_(error.sum(dim=0))
                error = error.to(hidden.dtype)
                if of_hidden is not None:
                    of_hidden[chunk] = error @ cast_weight
                if of_weight is not None:
                    of_weight.add_(error.T @ hidden[chunk])
                del error
            del logits  # before the next chunk's are there
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        return (*(None if grad is None else grad * outer[0].to(grad.dtype) for grad in grads), None)
