"""FlashAttention-4, out of the package flash-attn-4, which compiles each kernel at its first call."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from modernbert.errors import BackendError
from modernbert.ops.hopper import operators

ABSENT = "the package flash-attn-4 is not installed; `pip install 'modernbert[hopper]'`"
# Its kernels for batches of short sequences alone are others: claiming a longer one spares their compilation.
LEAST_LONGEST = 256
# Compute capability 12 (consumer Blackwell) adds up gradients in any order.
UNORDERED = 12


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Say why this backend cannot serve, or None if it can."""
    return operators.refusal(device, dtype, head_dim) or _trouble()


@cache
def _trouble() -> str | None:
    """Load the package; say what is wrong with it, or None if it works."""
    if not is_installed():
        return ABSENT
    try:
        interface = _interface()
    except (ImportError, OSError, RuntimeError) as error:
        return f"flash-attn-4 does not load: {error}; `pip install 'modernbert[hopper]'` takes what it needs"
    if not hasattr(interface, "_flash_attn_fwd") or not hasattr(interface, "_flash_attn_bwd"):
        return "this version of flash-attn-4 is another than `pip install 'modernbert[hopper]'` takes"
    return None


def is_installed() -> bool:
    """Whether the package is there. It is not imported, nor is flash-attn 2, which has the same name."""
    spec = importlib.util.find_spec("flash_attn")
    homes = (spec.submodule_search_locations or ()) if spec is not None else ()
    return any((Path(home) / "cute" / "interface.py").is_file() for home in homes)


@cache
def _interface() -> ModuleType:
    return importlib.import_module("flash_attn.cute.interface")


def _forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, window: int | None
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device(q.device):
        out, lse, *_ = _interface()._flash_attn_fwd(
            q, k, v, return_lse=True, **_sizes(offsets, longest, window)
        )
    return out, lse


def _backward(
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
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    if is_deterministic and torch.cuda.get_device_capability(q.device)[0] == UNORDERED:
        raise BackendError(
            "attention backend `fa4` has no deterministic backward pass on this GPU; choose `varlen`, or do "
            "without determinism"
        )
    grads = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    with torch.cuda.device(q.device):
        _interface()._flash_attn_bwd(
            q,
            k,
            v,
            out,
            grad_out.contiguous(),
            lse,
            deterministic=is_deterministic,
            **_sizes(offsets, longest, window),
            **dict(zip(("dq", "dk", "dv"), grads)),
        )
    return grads


def _sizes(offsets: Tensor, longest: int, window: int | None) -> dict[str, Tensor | int | None]:
    """What both ways are told of the sequences, by the package's names."""
    claimed = max(longest, LEAST_LONGEST)
    return {
        "cu_seqlens_q": offsets,
        "cu_seqlens_k": offsets,
        "max_seqlen_q": claimed,
        "max_seqlen_k": claimed,
        "window_size_left": window,
        "window_size_right": window,
    }


attention = operators.register("fa4", _forward, _backward)
