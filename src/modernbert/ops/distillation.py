"""Distillation through two linear decoders without all logits of either in memory at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modernbert.ops import loss
from modernbert.ops.reference import Distilled, Logits


def linear_distillation(
    student: Logits, teacher: Logits, labels: Tensor, *, weight: float, temperature: float
) -> Distilled:
    """Compute `reference.linear_distillation` in chunks of rows, the gradient together with the loss.

    The student's products run in autocast's dtype, the teacher's in that of its weights. Only the student
    gets a gradient.
    """
    hidden, decoder, bias = student
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        hidden = hidden.to(torch.get_autocast_dtype(device_type))
    if not torch.is_grad_enabled():  # else autograd.Function would compute gradients for nobody
        hidden, decoder, bias = hidden.detach(), decoder.detach(), bias.detach()
    with torch.autocast(device_type, enabled=False):
        found = _LinearDistillation.apply(  # type: ignore[no-untyped-call]
            hidden, decoder, bias, Logits(*teacher), labels, weight, temperature
        )
    return Distilled(*found)


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        decoder: Tensor,
        bias: Tensor,
        teacher: Logits,
        labels: Tensor,
        weight: float,
        temperature: float,
    ) -> tuple[Tensor, ...]:
        wanted = any(ctx.needs_input_grad[:3])
        cast_decoder, cast_bias = decoder.to(hidden.dtype), bias.to(hidden.dtype)
        losses = torch.zeros(2, dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grads = (
            [torch.empty_like(hidden), torch.zeros_like(decoder), torch.zeros_like(bias)] if wanted else []
        )
        rows = max(1, loss.LOGITS_AT_ONCE // (2 * len(decoder)))  # the student's and the teacher's
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            taught = functional.linear(teacher.hidden[chunk], teacher.weight, teacher.bias).float()
            taught = taught.div_(temperature).log_softmax(dim=-1)
            logits = functional.linear(hidden[chunk], cast_decoder, cast_bias).float()
            target = labels[chunk, None]
            correct += (logits.argmax(dim=-1, keepdim=True) == target).sum()
            losses += _losses_(logits, taught, target, weight, temperature, wanted)
            del taught
            if wanted:
                grads[2].add_(logits.sum(dim=0))
                error = logits.to(hidden.dtype)
                grads[0][chunk] = error @ cast_decoder
                grads[1].add_(error.T @ hidden[chunk])
                del error
            del logits  # before the next chunk's are there
        cross_entropy, divergence = losses.unbind()
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(cross_entropy, divergence, correct)
        return (1 - weight) * cross_entropy + weight * divergence, cross_entropy, divergence, correct

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        return (*(grad * outer[0].to(grad.dtype) for grad in grads), None, None, None, None)


def _losses_(
    logits: Tensor, taught: Tensor, target: Tensor, weight: float, temperature: float, wanted: bool
) -> Tensor:
    """Return cross-entropy and divergence, summed; if wanted, leave d loss / d logits in the logits' place.

    Args:
        logits: The student's, `[M, V]`.
        taught: The logarithm of the teacher's softened distribution `[M, V]`; its memory is used up.
        target: Labels `[M, 1]`.
        weight: See `reference.linear_distillation`.
        temperature: See there.
        wanted: Whether the gradient is.
    """
    learnt = (logits / temperature).log_softmax(dim=-1)
    log_sum = logits.logsumexp(dim=-1, keepdim=True)
    cross_entropy = (log_sum - logits.gather(1, target)).sum()
    wished = taught.exp()
    divergence = temperature**2 * taught.sub_(learnt).mul_(wished).sum()
    if wanted:  # softmax, minus one at the label; and softened softmax minus the teacher's
        logits.sub_(log_sum).exp_().mul_(1 - weight)
        logits.scatter_add_(1, target, logits.new_full(target.shape, weight - 1))
        logits.add_(learnt.exp_().sub_(wished), alpha=weight * temperature)
    return torch.stack([cross_entropy, divergence])
