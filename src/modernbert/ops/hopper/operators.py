"""Foreign attention kernels as operators of PyTorch, so that a whole model compiles without a graph break.

A kernel is a pair of functions on packed tensors. What the compiler must know of it without running it, the
shapes of the results and the way back, is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modernbert.layout import SequenceLayout

Forward = Callable[[Tensor, Tensor, Tensor, Tensor, int, int | None], tuple[Tensor, Tensor]]
"""Queries, keys, values `[T, N, H]`, offsets, longest, window → output `[T, N, H]` and fp32 `[N, T]`, the
logarithms of the softmax's sums."""
Backward = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, int | None], tuple[Tensor, Tensor, Tensor]
]
"""Gradient of the output, queries, keys, values, output, logarithms, offsets, longest, window → gradients of
queries, keys and values."""
Attention = Callable[[Tensor, Tensor, Tensor, SequenceLayout, int | None], Tensor]

_FORWARD = (
    "(Tensor q, Tensor k, Tensor v, Tensor offsets, SymInt longest, int? window) -> (Tensor out, Tensor lse)"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor offsets, "
    "SymInt longest, int? window) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)"
)
HOPPER = (9, 0)
HEAD_WIDTHS = (64, 128)


def register(name: str, forward: Forward, backward: Backward, device_type: str = "cuda") -> Attention:
    """Make operators `modernbert::NAME` and `modernbert::NAME_backward` of a kernel's two functions.

    Returns:
        Computes `reference.attention` through them.
    """
    op = torch.library.custom_op(
        f"modernbert::{name}", forward, mutates_args=(), device_types=device_type, schema=_FORWARD
    )
    op_back = torch.library.custom_op(
        f"modernbert::{name}_backward", backward, mutates_args=(), device_types=device_type, schema=_BACKWARD
    )
    op.register_fake(_fake_forward)
    op_back.register_fake(_fake_backward)
    run = getattr(torch.ops.modernbert, name).default
    run_back = getattr(torch.ops.modernbert, f"{name}_backward").default

    def differentiate(
        context: torch.autograd.function.FunctionCtx, grad_out: Tensor, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grads = run_back(grad_out, *context.saved_tensors, *context.sizes)  # type: ignore[attr-defined]
        return (*grads, None, None, None)

    op.register_autograd(differentiate, setup_context=_keep)

    def attention(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, window: int | None) -> Tensor:
        """Compute `reference.attention`."""
        out: Tensor = run(q, k, v, layout.offsets, layout.longest, window)[0]
        return out

    return attention


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Say why no kernel of this room can serve, or None if one may."""
    if device.type != "cuda":
        return f"it runs on CUDA devices only; the tensors are on `{device}`"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bfloat16 or float16 only; the tensors are {dtype}"
    if torch.cuda.get_device_capability(device) < HOPPER:
        name = torch.cuda.get_device_name(device)
        return f"it needs a Hopper GPU (H100, H200), compute capability 9.0; `{name}` is older"
    if head_dim not in HEAD_WIDTHS:
        return f"the head width must be 64 or 128; it is {head_dim}"
    return None


def _fake_forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, window: int | None
) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((heads, tokens), dtype=torch.float32)


def _fake_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    longest: int,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, int, int | None],
    output: tuple[Tensor, Tensor],
) -> None:
    """Keep for the way back what it needs. Nobody differentiates the logarithms: they get no zeros."""
    q, k, v, offsets, longest, window = inputs
    ctx.save_for_backward(q, k, v, *output, offsets)
    ctx.sizes = (longest, window)  # type: ignore[attr-defined]
    ctx.set_materialize_grads(False)
