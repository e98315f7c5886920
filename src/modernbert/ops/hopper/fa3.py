"""FlashAttention-3, out of the library that a wheel of xformers or a build of flash-attn-3 brings.

Only the library file is loaded, by PyTorch's stable interface for extensions: neither package is imported.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modernbert.ops.hopper import operators

FOLDERS = (("flash_attn_3", "."), ("xformers", "flash_attn_3"))
"""Packages that bring the library, and where in them it lies."""
ABSENT = (
    "its library is not installed; `pip install --no-deps xformers==0.0.34 nvidia-cuda-runtime-cu12`, "
    "or build flash-attn-3; see docs/guides/hopper.md"
)


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Say why this backend cannot serve, or None if it can."""
    why = operators.refusal(device, dtype, head_dim)
    if why is not None:
        return why
    if torch.cuda.get_device_capability(device) != operators.HOPPER:
        name = torch.cuda.get_device_name(device)
        return f"its kernels are for compute capability 9.0 alone; `{name}` is newer; `fa4` serves it"
    return _trouble()


@cache
def _trouble() -> str | None:
    """Load the library; say what is wrong with it, or None if it works."""
    if not _is_loaded():
        path = find()
        if path is None:
            return ABSENT
        try:
            _load_cuda_runtime()
            torch.ops.load_library(path)
        except (OSError, RuntimeError) as error:
            return f"`{path}` does not load: {error}; see docs/guides/hopper.md"
    if not hasattr(torch.ops.flash_attn_3, "bwd"):
        return "the installed library has no backward pass; see docs/guides/hopper.md"
    return None


def _is_loaded() -> bool:
    """Whether somebody has loaded it already: it can be loaded only once in a process."""
    return hasattr(torch.ops.flash_attn_3, "fwd")


def find() -> Path | None:
    """Return the library that is installed, without importing what it belongs to."""
    found = (
        path
        for package, folder in FOLDERS
        for home in _homes(package)
        for path in sorted((home / folder).glob("_C*.so"))
    )
    return next(found, None)


def _load_cuda_runtime() -> None:
    """Load the runtime of CUDA 12 that xformers' library is linked with, if a wheel brought it.

    Beside a PyTorch for CUDA 13 nothing else does; elsewhere the system's is found, or PyTorch's own.
    """
    for home in _homes("nvidia"):
        for path in (home / "cuda_runtime" / "lib").glob("libcudart.so.12*"):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _homes(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    yield from map(Path, (spec.submodule_search_locations or ()) if spec is not None else ())


def _sizes(offsets: Tensor, longest: int, window: int | None, head_dim: int) -> dict[str, Any]:
    """What both ways are told of the sequences, by the library's names."""
    reach = -1 if window is None else window
    return {
        "cu_seqlens_q": offsets,
        "cu_seqlens_k": offsets,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
        "softmax_scale": head_dim**-0.5,
        "window_size_left": reach,
        "window_size_right": reach,
    }


def _forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, window: int | None
) -> tuple[Tensor, Tensor]:
    sizes = _sizes(offsets, longest, window, q.shape[-1])
    # In one pass over the keys: parts of it, added up, would make the bits depend on the batch.
    out, lse, *_ = torch.ops.flash_attn_3.fwd(*map(_dense_rows, (q, k, v)), num_splits=1, **sizes)
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
    grads = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    torch.ops.flash_attn_3.bwd(
        grad_out.contiguous(),
        *map(_dense_rows, (q, k, v)),
        out,
        lse,
        *grads,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        **_sizes(offsets, longest, window, q.shape[-1]),
    )
    return grads


def _dense_rows(x: Tensor) -> Tensor:
    """Return `x`, copied if the numbers of one head do not lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


attention = operators.register("fa3", _forward, _backward)
