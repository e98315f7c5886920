"""The encoder re-arranged for a GPU: the same mathematics, and no pass over memory that a product could do.

Weights are held in bf16, once, re-arranged (`infer.rearranged`): norms folded into the products that read
them, what is added to the residual stream centred, so that a LayerNorm is one number a token, and what
belongs together side by side. A layer is then five kernels: a product that scales and rotates, attention, a
product that adds, one that scales and gates, and one that adds. Small batches are replayed as CUDA graphs.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from modernbert.errors import BackendError
from modernbert.infer.gpu.graphs import Graphs
from modernbert.infer.gpu.passes import Passes
from modernbert.infer.rearranged import centred, folded, gates_paired, paired
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig, LayerPlan
from modernbert.model.encoder import ModernBertModel, check_input
from modernbert.model.layers import Block

CAPABILITY = (9, 0)
HEAD_WIDTHS = (16, 32, 64, 128)
"""All of them multiples of 16, as the model's width must be for the copy engine: rows of whole 16 bytes."""
IS_AUTOMATIC = False
"""Whether `auto` takes this encoder: only once all of its tests have run on a GPU with the code as it is."""


def refusal(device: torch.device, precision: str, config: EncoderConfig | None = None) -> str | None:
    """Say why this encoder cannot serve here, if it cannot."""
    if device.type != "cuda":
        return f"it runs on a GPU, not on {device}"
    if precision not in ("auto", "bf16"):
        return f"on a GPU it has no {precision}"
    if torch.cuda.get_device_capability(device) != CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"its kernels are cut for Hopper GPUs, of compute capability 9.0; `{name}` is none"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, which comes with torch for CUDA"
    return None if config is None else _misfit(config)


def _misfit(config: EncoderConfig) -> str | None:
    if config.head_dim not in HEAD_WIDTHS:
        return f"heads are {config.head_dim} wide; they must be one of {HEAD_WIDTHS}"
    if config.intermediate_size % 8:
        return f"`intermediate_size` is {config.intermediate_size}; it must be a multiple of 8"
    return None


class GpuEncoder(nn.Module):
    """Takes the place of a `ModernBertModel` for inference on a GPU.

    Args:
        encoder: Whose weights are copied; it may be dropped afterwards.
        device: Where to compute.
        passes: What computes; None: our kernels.

    Raises:
        BackendError: This device cannot run it.
    """

    def __init__(self, encoder: ModernBertModel, device: torch.device, passes: Passes | None = None) -> None:
        super().__init__()
        self.config: EncoderConfig = encoder.config
        self.passes = passes or _kernels(self.config, device)
        self.embeddings = copy.deepcopy(encoder.embeddings).to(device, torch.float32)
        self.final_norm = copy.deepcopy(encoder.final_norm).to(device, torch.float32)
        self.layers = [
            _layer(cast(Block, block), plan, self.config.head_dim, device, self.passes.dtype)
            for block, plan in zip(encoder.layers, self.config.layer_plan, strict=True)
        ]
        self._graphs = Graphs(self._encoded, device) if device.type == "cuda" else None

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, layout: SequenceLayout) -> Tensor:
        """Encode packed tokens `[T]` as `[T, D]`, fp32; see `ModernBertModel.forward`."""
        check_input(input_ids, layout, self.config.max_position_embeddings)
        with torch.autocast(input_ids.device.type, enabled=False):
            if self._graphs is not None and self._graphs.serve(layout):
                return self._graphs.run(input_ids, layout)
            return self._encoded(input_ids, layout)

    def _encoded(self, input_ids: Tensor, layout: SequenceLayout) -> Tensor:
        passes = self.passes
        places = passes.placed(layout, len(input_ids))
        taken, stream = passes.embedded(input_ids, self.embeddings)
        for layer in self.layers:
            x, is_normed = (stream, False) if layer.plan.has_attn_norm else (taken, True)
            qkv = passes.projected(x, layer.Wqkv, places, layer.plan.rope_theta, is_normed)
            stream = passes.added(stream, passes.attended(qkv, places, layer.plan.window), layer.attn_Wo)
            stream = passes.added(stream, passes.gated(stream, layer.Wi), layer.mlp_Wo)
        return passes.finished(stream, self.final_norm.weight)


class _Layer(NamedTuple):
    """One layer's weights; the names are those of `modernbert.model.layers.Block`."""

    plan: LayerPlan
    Wqkv: Tensor
    attn_Wo: Tensor
    Wi: Tensor
    mlp_Wo: Tensor


def _kernels(config: EncoderConfig, device: torch.device) -> Passes:
    why = refusal(device, "bf16", config)
    if why is not None:
        raise BackendError(f"the `fused` backend cannot serve: {why}; choose `auto` or `varlen`")
    from modernbert.infer.gpu.kernel_passes import KernelPasses  # deferred: it imports Triton

    return KernelPasses(config, device)


def _layer(block: Block, plan: LayerPlan, head_dim: int, device: torch.device, dtype: torch.dtype) -> _Layer:
    def weight(of: nn.Module) -> Tensor:
        return cast(Tensor, of.weight).detach().double()

    attn_norm = weight(block.attn_norm) if plan.has_attn_norm else None
    arranged = (
        paired(folded(weight(block.attn.Wqkv), attn_norm), head_dim),
        centred(weight(block.attn.Wo)),
        gates_paired(folded(weight(block.mlp.Wi), weight(block.mlp_norm))),
        centred(weight(block.mlp.Wo)),
    )
    return _Layer(plan, *(it.to(dtype).contiguous().to(device) for it in arranged))
