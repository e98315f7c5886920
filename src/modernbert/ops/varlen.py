"""Packed attention on CUDA through PyTorch's own variable-length FlashAttention."""

from __future__ import annotations

import torch
from torch import Tensor

from modernbert.layout import SequenceLayout


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Say why this backend cannot serve, or None if it can."""
    if device.type != "cuda":
        return f"it runs on CUDA devices only; the tensors are on `{device}`"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bfloat16 or float16 only; the tensors are {dtype}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        return f"it needs a GPU of compute capability 8.0 or newer; `{name}` is older"
    if head_dim % 8 or head_dim > 256:
        return f"the head width must be a multiple of 8, at most 256; it is {head_dim}"
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, window: int | None) -> Tensor:
    """Compute `reference.attention`."""
    from torch.nn.attention.varlen import varlen_attn  # deferred: CPU-only users never pay for it

    reach = -1 if window is None else window
    out = varlen_attn(
        q, k, v, layout.offsets, layout.offsets, layout.longest, layout.longest, window_size=(reach, reach)
    )
    assert isinstance(out, Tensor)
    return out
