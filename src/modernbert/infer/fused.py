"""The encoder re-arranged for a CPU: the same mathematics in fewer and faster passes over memory.

Three things differ from `ModernBertModel`, none of which changes a result beyond rounding. Weights are packed
once into the form that the CPU's matrix unit reads, by oneDNN, which also adds residuals, applies the GELU
and multiplies the gate while a product is still in registers. The rows of the query and key weights are
permuted so that each rotated pair is adjacent: a rotation is then one complex product, in place. And in
`int8` both sides of a product are 8-bit integers: weights by output channel, activations by token, so that no
result depends on its neighbours.
"""

from __future__ import annotations

import copy
import platform
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from modernbert.errors import BackendError
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig, LayerPlan
from modernbert.model.encoder import ModernBertModel, check_input
from modernbert.model.layers import Block
from modernbert.ops.attention import attention
from modernbert.ops.rotary import rotary_table

FusedPrecision = Literal["fp32", "bf16", "int8"]

ZERO = 128
"""The code of zero in unsigned activations."""
HALF_ABOVE_ZERO = torch.tensor(ZERO + 0.5)
TINY = 1e-12
"""Stands for the step of a row of zeros."""
FINEST_STEP, STEPS_TO_DOUBLE = 8, 32
"""Sizes of batches: multiples of 8 tokens at first, then 32 of them until the number has doubled."""


def refusal(device: torch.device, precision: str) -> str | None:
    """Say why the fused encoder cannot serve here, if it cannot."""
    if device.type != "cpu":
        return f"it runs on a CPU, not on {device}"
    if precision not in ("auto", *get_args(FusedPrecision)):
        return f"it has no {precision}"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"it is made for x86 CPUs, not for {platform.machine()}"
    if not torch.backends.mkldnn.is_available():
        return "this build of torch is without oneDNN"
    if precision == "bf16" and not torch.cpu._is_avx512_bf16_supported():  # oneDNN would emulate it
        return "this CPU has no bf16 products (AVX512-BF16)"
    if precision == "int8" and not torch.cpu._is_vnni_supported():
        return "this CPU has no 8-bit products (AVX512-VNNI)"
    return None


class FusedEncoder(nn.Module):
    """Takes the place of a `ModernBertModel` for inference on a CPU.

    Args:
        encoder: Whose weights are copied; it may be dropped afterwards.
        precision: `fp32` is exact to rounding; `bf16` and `int8` are faster and lossy.

    Raises:
        BackendError: This machine cannot run it.
    """

    def __init__(self, encoder: ModernBertModel, precision: FusedPrecision = "fp32") -> None:
        super().__init__()
        why = refusal(torch.device("cpu"), precision)
        if why is not None:
            raise BackendError(f"the `fused` backend cannot serve: {why}; choose `auto` or `portable`")
        self.config: EncoderConfig = encoder.config
        self.precision = precision
        self.embeddings = copy.deepcopy(encoder.embeddings).float()
        self.layers = [
            _FusedBlock(cast(Block, block), plan, encoder.config, precision)
            for block, plan in zip(encoder.layers, encoder.config.layer_plan, strict=True)
        ]
        self.final_norm = copy.deepcopy(encoder.final_norm).float()

    def forward(self, input_ids: Tensor, layout: SequenceLayout) -> Tensor:
        """Encode packed tokens `[T]` as `[T, D]`, fp32; see `ModernBertModel.forward`."""
        check_input(input_ids, layout, self.config.max_position_embeddings)
        num_tokens, plans = layout.num_tokens, self.config.layer_plan
        input_ids, layout = _with_filler(input_ids, layout)
        turns = {
            theta: _turns(layout.positions, self.config.head_dim, theta)
            for theta in dict.fromkeys(plan.rope_theta for plan in plans)
        }
        hidden = self.embeddings(input_ids)
        for block, plan in zip(self.layers, plans, strict=True):
            hidden = block(hidden, layout, turns[plan.rope_theta])
        normed: Tensor = self.final_norm(hidden[:num_tokens])
        return normed


class _FusedBlock:
    """One layer; the names are those of `modernbert.model.layers.Block`. The residual stream is fp32."""

    def __init__(
        self, block: Block, plan: LayerPlan, config: EncoderConfig, precision: FusedPrecision
    ) -> None:
        self.dtype = dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        linear, gated = (Int8Linear, Int8Gated) if precision == "int8" else (DnnLinear, DnnGated)
        self.window = plan.window
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.norm_eps = config.norm_eps
        has_norm = isinstance(block.attn_norm, nn.LayerNorm)
        self.attn_norm = _copied(block.attn_norm.weight) if has_norm else None
        self.mlp_norm = _copied(block.mlp_norm.weight)
        self.Wqkv = linear(_paired(block.attn.Wqkv.weight.detach(), config.head_dim), dtype)
        self.attn_Wo = linear(block.attn.Wo.weight.detach(), dtype)
        self.Wi = gated(block.mlp.Wi.weight.detach(), dtype)
        self.mlp_Wo = linear(block.mlp.Wo.weight.detach(), dtype)

    def __call__(self, x: Tensor, layout: SequenceLayout, turns: Tensor) -> Tensor:
        """Map `[T, D]` to `[T, D]`."""
        normed = x.to(self.dtype) if self.attn_norm is None else self._norm(x, self.attn_norm)
        x = self.attn_Wo.plus(self._attend(self.Wqkv(normed), layout, turns), x)
        return self.mlp_Wo.plus(self.Wi(self._norm(x, self.mlp_norm)), x)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.layer_norm(x, weight.shape, weight, None, self.norm_eps).to(self.dtype)

    def _attend(self, qkv: Tensor, layout: SequenceLayout, turns: Tensor) -> Tensor:
        """Rotate queries and keys, and mix: `[T, 3 * D]` to `[T, D]`."""
        heads = qkv.float().unflatten(1, (3 * self.num_heads, self.head_dim))
        pairs = torch.view_as_complex(heads.unflatten(2, (-1, 2)))[:, : 2 * self.num_heads]
        pairs.mul_(turns)
        q, k, v = heads.unflatten(1, (3, self.num_heads)).unbind(1)
        return attention(q, k, v, layout, self.window, "portable").flatten(1).to(qkv.dtype)


class DnnLinear:
    """A linear layer whose weight oneDNN has packed; weight and activations in one dtype, fp32 or bf16."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous())

    def __call__(self, x: Tensor, activation: Literal["none", "gelu"] = "none") -> Tensor:
        """Map `[T, D]` to `[T, F]`."""
        # The last argument says which GELU: not that by tanh.
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, activation, [], "none")
        return product

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add the result to `residual`, fp32."""
        if x.dtype == residual.dtype:
            return self.combined(x, residual, "add")
        return self(x).float().add_(residual)

    def combined(self, x: Tensor, other: Tensor, operation: Literal["add", "mul"]) -> Tensor:
        """Add the result to `other`, or multiply them, before it is written to memory."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, None, operation)
        return product


class DnnGated:
    """The GeGLU's first half: `gelu(x A) * (x B)`."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.activated, self.gate = (DnnLinear(half, dtype) for half in weight.chunk(2))

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[T, D]` to `[T, F]`."""
        return self.gate.combined(x, self.activated(x, "gelu"), "mul")


class Int8Linear:
    """A linear layer in 8-bit integers: a step for each output channel and, as they come, for each token."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.steps = weight.float().abs().amax(1).clamp_min(TINY) / 127
        codes = (weight.float() / self.steps[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(codes, None)
        self.zeros = torch.zeros(len(codes), dtype=torch.int64)

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[T, D]` to `[T, F]`."""
        product, step = self._product(x)
        return product.mul_(step)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add the result to `residual`."""
        product, step = self._product(x)
        return torch.addcmul(residual, product, step)

    def _product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the product and the steps of the tokens, `[T, 1]`, that it is to be multiplied by."""
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)  # faster than `aminmax`, twenty times
        step = torch.maximum(high, -low).clamp_min_(TINY).div_(127)
        # Unsigned, as the CPU wants the left side; the half makes the cast, which cuts off, round.
        codes = torch.addcmul(HALF_ABOVE_ZERO, x, step.reciprocal()).to(torch.uint8)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(codes, 1.0, ZERO, self.weight, self.steps, self.zeros, None),
            *(1.0, 0, self.dtype, "none", [], ""),
        )
        return product, step


class Int8Gated:
    """The GeGLU's first half, `gelu(x A) * (x B)`, in 8-bit integers."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.linear = Int8Linear(weight, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[T, D]` to `[T, F]`."""
        activated, gate = self.linear(x).chunk(2, dim=1)
        return functional.gelu(activated).mul_(gate)


def _copied(weight: Any) -> Tensor:
    return cast(Tensor, weight).detach().to(torch.float32, copy=True)  # it may lie in a mapped file


def _with_filler(input_ids: Tensor, layout: SequenceLayout) -> tuple[Tensor, SequenceLayout]:
    """Add a sequence that brings the number of tokens to one of few sizes.

    oneDNN prepares, and keeps, code for each number of tokens that it meets.
    """
    num_tokens = layout.num_tokens
    step = max(FINEST_STEP, 2 ** (num_tokens.bit_length() - 1) // STEPS_TO_DOUBLE)
    filler = -num_tokens % step
    if not filler:
        return input_ids, layout
    return functional.pad(input_ids, (0, filler)), SequenceLayout.of((*layout.lengths, filler))


def _paired(weight: Tensor, head_dim: int) -> Tensor:
    """Permute the rows of queries and keys, so that the two halves of a rotated pair are neighbours."""
    halves = weight.unflatten(0, (3, -1, 2, head_dim // 2))  # q, k, v; heads; halves
    return torch.cat((halves[:2].transpose(2, 3).flatten(0, 3), halves[2].flatten(0, 2)))


def _turns(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """Return each token's rotations as complex numbers, `[T, 1, H / 2]`."""
    return torch.complex(*rotary_table(positions, head_dim, theta))
