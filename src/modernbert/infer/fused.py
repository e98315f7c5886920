"""The encoder re-arranged for a CPU: the same mathematics in fewer and faster passes over memory.

Four things differ from `ModernBertModel`, none of which changes a result beyond rounding. Weights are packed
once into the form that the CPU's matrix unit reads, by oneDNN, which also adds residuals, applies the GELU
and multiplies the gate while a product is still in registers. What lies between products is done by kernels
of our own in one pass each (`ops.native`; by torch where there is no C compiler). The rows of the query and
key weights are permuted so that each rotated pair is adjacent. And in `int8` both sides of a product are
8-bit integers: weights by output channel, activations by token, so that no result depends on its neighbours.
"""

from __future__ import annotations

import copy
import logging
import platform
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from modernbert.errors import BackendError
from modernbert.infer.fused_linear import DnnGated, DnnLinear, Int8Gated, Int8Linear
from modernbert.infer.fused_passes import NativePasses, Passes, TorchPasses
from modernbert.infer.rearranged import paired
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig, LayerPlan
from modernbert.model.encoder import ModernBertModel, check_input
from modernbert.model.layers import Block
from modernbert.ops.native import kernels
from modernbert.ops.rotary import rotary_table

log = logging.getLogger(__name__)

FusedPrecision = Literal["fp32", "bf16", "int8"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}
"""Of activations."""
FINEST_STEP, STEPS_TO_DOUBLE = 8, 16
"""Sizes of batches: multiples of 8 tokens at first, then 16 of them until the number has doubled."""


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
        encoder: Whose layers are copied; embeddings and final norm are shared if they are fp32. It may be
            dropped afterwards.
        precision: `fp32` is exact to rounding; `bf16` and `int8` are faster and lossy.
        native: Whether kernels of our own do what lies between products; None: where they can be had.

    Raises:
        BackendError: This machine cannot run it.
    """

    def __init__(
        self, encoder: ModernBertModel, precision: FusedPrecision = "fp32", native: bool | None = None
    ) -> None:
        super().__init__()
        why = refusal(torch.device("cpu"), precision)
        if why is not None:
            raise BackendError(f"the `fused` backend cannot serve: {why}; choose `auto` or `portable`")
        config = encoder.config
        dtype, is_native = DTYPES[precision], _is_native(config, native)
        self.config: EncoderConfig = config
        self.precision = precision
        self.arithmetic = f"{precision}, {'native' if is_native else 'torch'}"
        """What results depend on, to their last bits."""
        kind = NativePasses if is_native else TorchPasses
        passes: Passes = kind(config.num_attention_heads, config.norm_eps, dtype)
        self.embeddings = _in_fp32(encoder.embeddings)
        self.layers = [
            _FusedBlock(cast(Block, block), plan, config.head_dim, passes, dtype)
            for block, plan in zip(encoder.layers, config.layer_plan, strict=True)
        ]
        self.final_norm = _in_fp32(encoder.final_norm)

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
        self, block: Block, plan: LayerPlan, head_dim: int, passes: Passes, dtype: torch.dtype
    ) -> None:
        linear, gated = (Int8Linear, Int8Gated) if dtype == torch.uint8 else (DnnLinear, DnnGated)
        self.window = plan.window
        self.passes = passes
        has_norm = isinstance(block.attn_norm, nn.LayerNorm)
        self.attn_norm = _copied(block.attn_norm.weight) if has_norm else None
        self.mlp_norm = _copied(block.mlp_norm.weight)
        self.Wqkv: Any = linear(paired(block.attn.Wqkv.weight.detach(), head_dim), dtype)
        self.attn_Wo: Any = linear(block.attn.Wo.weight.detach(), dtype)
        self.Wi: Any = gated(block.mlp.Wi.weight.detach(), dtype)
        self.mlp_Wo: Any = linear(block.mlp.Wo.weight.detach(), dtype)

    def __call__(self, x: Tensor, layout: SequenceLayout, turns: Tensor) -> Tensor:
        """Map `[T, D]` to `[T, D]`; `x` may be overwritten."""
        passes = self.passes
        taken = passes.stored(x) if self.attn_norm is None else passes.normed(x, self.attn_norm)
        qkv, scales = self.Wqkv(taken)
        x = self.attn_Wo.plus(passes.attended(qkv, scales, layout, turns, self.window), x)
        return cast(Tensor, self.mlp_Wo.plus(self.Wi(passes.normed(x, self.mlp_norm), passes), x))


def _is_native(config: EncoderConfig, native: bool | None) -> bool:
    """Whether native kernels are to serve; it is logged."""
    if native is False:
        return False
    why = kernels.refusal(config.head_dim, config.hidden_size, config.intermediate_size)
    if why is not None and native:
        raise BackendError(f"the native kernels cannot serve: {why}; leave `native` open")
    log.info("native kernels: %s", "used" if why is None else f"not used, torch serves: {why}")
    return why is None


def _in_fp32(part: nn.Module) -> nn.Module:
    """Return it as it is if it is fp32: to copy embeddings would take a fifth of the time to load."""
    is_fp32 = all(parameter.dtype == torch.float32 for parameter in part.parameters())
    return part if is_fp32 else copy.deepcopy(part).float()


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


def _turns(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """Return each token's rotations as complex numbers, `[T, 1, H / 2]`."""
    return torch.complex(*rotary_table(positions, head_dim, theta))
