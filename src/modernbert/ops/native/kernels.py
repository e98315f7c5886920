"""The native kernels as functions of tensors. Their plain definitions: `ops.reference` and torch's own."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from modernbert.errors import BackendError
from modernbert.layout import SequenceLayout
from modernbert.ops.native import build

MAX_HEAD_DIM, HEAD_DIM_STEP = 128, 32
MAX_WIDTH, WIDTH_STEP = 16_384, 16
TARGETS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}


class Codes(NamedTuple):
    """Rows of numbers in 8 bits: `(codes - 128) * steps`.

    Attributes:
        codes: uint8 `[T, F]`.
        steps: fp32 `[T, 1]`.
    """

    codes: Tensor
    steps: Tensor


class _Attention(ctypes.Structure):
    """`Attention` in attention.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "scales", "turns", "out", "chunks")),
        *((name, ctypes.c_int64) for name in ("num_chunks", "heads", "dim", "window")),
        *((name, ctypes.c_int64) for name in ("half_input", "half_products", "next")),
    )


class _Rows(ctypes.Structure):
    """`Rows` in rows.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "scales", "weight", "out", "steps")),
        *((name, ctypes.c_int64) for name in ("num_rows", "width", "source", "target")),
        ("eps", ctypes.c_double),
        ("next", ctypes.c_int64),
    )


def refusal(head_dim: int, *widths: int) -> str | None:
    """Say why the kernels cannot serve heads and rows of these widths on this machine, if they cannot."""
    if head_dim % HEAD_DIM_STEP or head_dim > MAX_HEAD_DIM:
        return (
            f"heads are {head_dim} wide; they must be a multiple of {HEAD_DIM_STEP}, at most {MAX_HEAD_DIM}"
        )
    for width in widths:
        if width % WIDTH_STEP or width > MAX_WIDTH:
            return f"rows are {width} wide; they must be a multiple of {WIDTH_STEP}, at most {MAX_WIDTH}"
    found = build.library()
    return str(found) if isinstance(found, build.Unavailable) else None


def attention(
    qkv: Tensor,
    turns: Tensor,
    layout: SequenceLayout,
    window: int | None,
    num_heads: int,
    *,
    scales: Tensor | None = None,
    half_products: bool = False,
) -> Tensor:
    """Rotate queries and keys, and attend (see `ops.attention.attention`).

    Args:
        qkv: fp32 or bf16 `[T, 3 * N * H]`, contiguous; the two numbers of a rotated pair are neighbours.
        turns: Each token's rotations as complex numbers, `[T, 1, H / 2]`.
        layout: Where each sequence lies.
        window: Tokens visible on each side, or None for all of the sequence.
        num_heads: `N`.
        scales: fp32 `[T, 1]`, by which the rows of `qkv` are multiplied first.
        half_products: Whether what is multiplied is bf16; sums are fp32. It always is if `qkv` is.

    Returns:
        `[T, N * H]`, of the dtype of `qkv`.

    Raises:
        BackendError: bf16 is to be multiplied, which the kernels do not do here (`build.multiplies_halves`).
    """
    is_half = qkv.dtype == torch.bfloat16
    if (is_half or half_products) and not build.multiplies_halves():
        raise BackendError("the native kernels do not multiply bf16 here; the CPU must; give fp32")
    num_tokens, width = qkv.shape[0], qkv.shape[1] // 3
    chunks = layout.derive("native chunks", _chunks)
    out = torch.empty((num_tokens, width), dtype=qkv.dtype)
    job = _Attention(
        qkv=qkv.data_ptr(),
        scales=None if scales is None else scales.data_ptr(),
        turns=turns.data_ptr(),
        out=out.data_ptr(),
        chunks=chunks.data_ptr(),
        num_chunks=len(chunks),
        heads=num_heads,
        dim=width // num_heads,
        window=-1 if window is None else window,
        half_input=is_half,
        half_products=is_half or half_products,
    )
    _library().attend(ctypes.byref(job), ctypes.c_void_p(build.parallel()), torch.get_num_threads())
    return out


def normed(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor | Codes:
    """Normalise the rows of `x` (fp32 `[T, D]`, contiguous) as a LayerNorm without bias.

    Args:
        x: What to normalise.
        weight: fp32 `[D]`.
        eps: Added to the variance.
        dtype: Of the result; `torch.uint8` for `Codes`.
    """
    return _convert(x, dtype, source=1, weight=weight, eps=eps)


def coded(x: Tensor) -> Codes:
    """Write the rows of `x` (fp32 `[T, D]`, contiguous) in 8 bits."""
    codes = _convert(x, torch.uint8, source=0)
    assert isinstance(codes, Codes)
    return codes


def gated(x: Tensor, scales: Tensor) -> Codes:
    """Compute `gelu(a) * b` in 8 bits, `[T, F]`.

    Args:
        x: `a` and `b` side by side, fp32 `[T, 2 * F]`, contiguous.
        scales: fp32 `[T, 1]`, by which the rows of `x` are multiplied first.
    """
    codes = _convert(x, torch.uint8, source=2, scales=scales)
    assert isinstance(codes, Codes)
    return codes


def _convert(
    x: Tensor,
    dtype: torch.dtype,
    *,
    source: int,
    scales: Tensor | None = None,
    weight: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor | Codes:
    num_rows, width = x.shape[0], x.shape[1] // (2 if source == 2 else 1)
    out = torch.empty((num_rows, width), dtype=dtype)
    steps = torch.empty((num_rows, 1))
    job = _Rows(
        x=x.data_ptr(),
        scales=None if scales is None else scales.data_ptr(),
        weight=None if weight is None else weight.data_ptr(),
        out=out.data_ptr(),
        steps=steps.data_ptr(),
        num_rows=num_rows,
        width=width,
        source=source,
        target=TARGETS[dtype],
        eps=eps,
    )
    _library().convert(ctypes.byref(job), ctypes.c_void_p(build.parallel()), torch.get_num_threads())
    return Codes(out, steps) if dtype == torch.uint8 else out


def _library() -> ctypes.CDLL:
    found = build.library()
    if isinstance(found, build.Unavailable):
        raise BackendError(f"the native kernels are not to be had: {found}")
    return found


def _chunks(layout: SequenceLayout) -> Tensor:
    """Cut sequences into chunks of queries: `[chunks, 3]` int32, see attention.c."""
    size = _library().queries_of_a_chunk()
    rows = [
        (start, length, first)
        for start, length in zip(layout.starts, layout.lengths)
        for first in range(0, length, size)
    ]
    return torch.tensor(rows, dtype=torch.int32)
