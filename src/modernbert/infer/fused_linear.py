"""Linear layers whose weights oneDNN has packed: in fp32 or bf16, and in 8-bit integers.

A layer maps activations to a product and what its rows are to be multiplied by, if anything: in 8 bits each
token has a step of its own, which whoever reads the product next applies.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from modernbert.infer.fused_passes import TINY, Passes
from modernbert.ops.native.kernels import Codes

ZERO = 128
"""The code of zero in unsigned activations."""


class DnnLinear:
    """A linear layer, weight and activations in one dtype, fp32 or bf16."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous())

    def __call__(self, x: Tensor) -> tuple[Tensor, None]:
        """Map `[T, D]` to `[T, F]`."""
        return self.product(x), None

    def product(self, x: Tensor, activation: Literal["none", "gelu"] = "none") -> Tensor:
        """Map `[T, D]` to `[T, F]`, activated before it is written to memory."""
        # The last argument says which GELU: not that by tanh.
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, activation, [], "none")
        return product

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add the result to `residual`, fp32, which may be overwritten."""
        if x.dtype == residual.dtype:
            return self.combined(x, residual, "add")
        return residual.add_(self.product(x))

    def combined(self, x: Tensor, other: Tensor, operation: Literal["add", "mul"]) -> Tensor:
        """Add the result to `other`, or multiply them, before it is written to memory."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, None, operation)
        return product


class DnnGated:
    """The GeGLU's first half: `gelu(x A) * (x B)`."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.activated, self.gate = (DnnLinear(half, dtype) for half in weight.chunk(2))

    def __call__(self, x: Tensor, passes: Passes) -> Tensor:
        """Map `[T, D]` to `[T, F]`."""
        return self.gate.combined(x, self.activated.product(x, "gelu"), "mul")


class Int8Linear:
    """A linear layer in 8-bit integers: a step for each output channel and, as they come, for each token."""

    def __init__(self, weight: Tensor, dtype: torch.dtype = torch.uint8) -> None:
        self.steps = weight.float().abs().amax(1).clamp_min(TINY) / 127
        codes = (weight.float() / self.steps[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(codes, None)
        self.zeros = torch.zeros(len(codes), dtype=torch.int64)

    def __call__(self, x: Codes) -> tuple[Tensor, Tensor]:
        """Map `[T, D]` to `[T, F]`, and to `[T, 1]`, by which it is to be multiplied."""
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(x.codes, 1.0, ZERO, self.weight, self.steps, self.zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return product, x.steps

    def plus(self, x: Codes, residual: Tensor) -> Tensor:
        """Add the result to `residual`, which may be overwritten."""
        product, steps = self(x)
        return residual.addcmul_(product, steps)


class Int8Gated:
    """The GeGLU's first half, `gelu(x A) * (x B)`, in 8-bit integers."""

    def __init__(self, weight: Tensor, dtype: torch.dtype = torch.uint8) -> None:
        self.linear = Int8Linear(weight)

    def __call__(self, x: Codes, passes: Passes) -> Codes:
        """Map `[T, D]` to `[T, F]`."""
        return passes.gated(*self.linear(x))
