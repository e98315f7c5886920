"""What the fused encoder does between its products: norms, rotations, attention, 8-bit codes.

Twice: by our native kernels, in one pass over memory each, and by torch, where those cannot be had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from modernbert.layout import SequenceLayout
from modernbert.ops.attention import attention
from modernbert.ops.native import build, kernels
from modernbert.ops.native.kernels import Codes

HALF_ABOVE_ZERO = torch.tensor(128.5)
TINY = 1e-12
"""Stands for the step of a row of zeros."""


class Passes(Protocol):
    """What lies between products. Activations are fp32, bf16 or, for `dtype` uint8, `Codes`."""

    def stored(self, x: Tensor) -> Tensor | Codes:
        """Bring fp32 `[T, D]` to the dtype of activations."""

    def normed(self, x: Tensor, weight: Tensor) -> Tensor | Codes:
        """Normalise fp32 `[T, D]`, by a LayerNorm without bias."""

    def attended(
        self, qkv: Tensor, scales: Tensor | None, layout: SequenceLayout, turns: Tensor, window: int | None
    ) -> Tensor | Codes:
        """Rotate and attend: `[T, 3 * D]`, its rows times `scales`, to `[T, D]`; `qkv` may be overwritten."""

    def gated(self, x: Tensor, scales: Tensor) -> Codes:
        """Compute `gelu(a) * b` of `a` and `b` side by side, `[T, 2 * F]`, its rows times `scales`."""


@dataclass(frozen=True)
class NativePasses:
    """By `ops.native`. In 8 bits attention multiplies in bf16 where the CPU has it: codes are coarser."""

    num_heads: int
    norm_eps: float
    dtype: torch.dtype

    def stored(self, x: Tensor) -> Tensor | Codes:
        return kernels.coded(x) if self.dtype == torch.uint8 else x.to(self.dtype)

    def normed(self, x: Tensor, weight: Tensor) -> Tensor | Codes:
        return kernels.normed(x, weight, self.norm_eps, self.dtype)

    def attended(
        self, qkv: Tensor, scales: Tensor | None, layout: SequenceLayout, turns: Tensor, window: int | None
    ) -> Tensor | Codes:
        halves = self.dtype != torch.float32 and build.multiplies_halves()
        taken = qkv if halves else qkv.float()
        return self.stored(
            kernels.attention(
                taken, turns, layout, window, self.num_heads, scales=scales, half_products=halves
            )
        )

    def gated(self, x: Tensor, scales: Tensor) -> Codes:
        return kernels.gated(x, scales)


@dataclass(frozen=True)
class TorchPasses:
    """By torch."""

    num_heads: int
    norm_eps: float
    dtype: torch.dtype

    def stored(self, x: Tensor) -> Tensor | Codes:
        return self._coded(x) if self.dtype == torch.uint8 else x.to(self.dtype)

    def normed(self, x: Tensor, weight: Tensor) -> Tensor | Codes:
        return self.stored(functional.layer_norm(x, weight.shape, weight, None, self.norm_eps))

    def attended(
        self, qkv: Tensor, scales: Tensor | None, layout: SequenceLayout, turns: Tensor, window: int | None
    ) -> Tensor | Codes:
        if scales is not None:
            qkv.mul_(scales)
        heads = qkv.float().unflatten(1, (3 * self.num_heads, -1))
        pairs = torch.view_as_complex(heads.unflatten(2, (-1, 2)))[:, : 2 * self.num_heads]
        pairs.mul_(turns)
        q, k, v = heads.unflatten(1, (3, self.num_heads)).unbind(1)
        return self.stored(attention(q, k, v, layout, window, "portable").flatten(1))

    def gated(self, x: Tensor, scales: Tensor) -> Codes:
        activated, gate = x.mul_(scales).chunk(2, dim=1)
        return self._coded(functional.gelu(activated).mul_(gate))

    def _coded(self, x: Tensor) -> Codes:
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)  # faster than `aminmax`, twenty times
        steps = torch.maximum(high, -low).clamp_min_(TINY).div_(127)
        # Unsigned, as the CPU wants the left side; the half makes the cast, which cuts off, round.
        return Codes(torch.addcmul(HALF_ABOVE_ZERO, x, steps.reciprocal()).to(torch.uint8), steps)
