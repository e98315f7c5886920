"""The ModernBERT encoder on packed tokens (paper 2.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modernbert.errors import InputError
from modernbert.layout import SequenceLayout
from modernbert.model.checkpoint import Pretrained
from modernbert.model.config import EncoderConfig, LayerPlan
from modernbert.model.layers import PRODUCTS, Block, Embeddings, layer_norm
from modernbert.ops.fp8 import Fp8Linear
from modernbert.ops.rotary import RotaryTable, rotary_table


class ModernBertModel(Pretrained):
    """Token ids to hidden states. Parameter names are the published ones.

    Attributes:
        config: Shape, and the RoPE bases in force.
        backend: Attention backend of all layers, see `modernbert.ops.attention.BACKENDS`.
        recomputes_layers: Whether the backward pass computes each layer again from what entered it, and so
            needs no memory for what is inside it.
        draws_in_layers: Whether layers draw random numbers in training.
    """

    def __init__(self, config: EncoderConfig, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.recomputes_layers = False
        self.draws_in_layers = config.attn_out_dropout > 0
        dim, eps = config.hidden_size, config.norm_eps
        self.embeddings = Embeddings(vocab_size=config.vocab_size, dim=dim, norm_eps=eps)
        self.layers = nn.ModuleList(self._block(plan) for plan in config.layer_plan)
        self.final_norm = layer_norm(dim, eps)

    def _block(self, plan: LayerPlan) -> Block:
        return Block(
            dim=self.config.hidden_size,
            num_heads=self.config.num_attention_heads,
            ffn_dim=self.config.intermediate_size,
            window=plan.window,
            has_attn_norm=plan.has_attn_norm,
            norm_eps=self.config.norm_eps,
            attn_out_dropout=self.config.attn_out_dropout,
        )

    def forward(self, input_ids: Tensor, layout: SequenceLayout) -> Tensor:
        """Encode packed tokens.

        Args:
            input_ids: int64 `[T]`.
            layout: Where each sequence lies, on the same device.

        Returns:
            Hidden states `[T, D]` after the final norm.

        Raises:
            InputError: Ids and layout differ in length, or a sequence is longer than the model allows.
        """
        check_input(input_ids, layout, self.config.max_position_embeddings)
        plans, width = self.config.layer_plan, self.config.head_dim
        tables = {
            theta: rotary_table(layout.positions, width, theta)
            for theta in dict.fromkeys(plan.rope_theta for plan in plans)
        }
        hidden: Tensor = self.embeddings(input_ids)
        for block, plan in zip(self.layers, plans, strict=True):
            hidden = self._layer(block, hidden, layout, tables[plan.rope_theta])
        normed: Tensor = self.final_norm(hidden)
        return normed

    def compile_layers(self) -> None:
        """Let torch.compile fuse the steps of each layer, for rows of any length.

        Layer by layer, not as a whole: layers alike share their code, and gradients are exchanged between
        processes while the next layer's are computed. Layouts must be `worked_out`.
        """
        for block in self.layers:
            block.compile(dynamic=True)

    def compute_in_fp8(self) -> None:
        """Let the layers' products run in fp8 from now on; parameters and their names stay.

        Before the layers are compiled and split.

        Raises:
            ConfigError: A width is no multiple of 16, or a layer has an adapter.
        """
        for block in self.layers:
            for name in PRODUCTS:
                block.set_submodule(name, Fp8Linear(block.get_submodule(name)))

    def _layer(self, block: nn.Module, hidden: Tensor, layout: SequenceLayout, table: RotaryTable) -> Tensor:
        given = (hidden, layout, table, self.backend)
        if not (self.recomputes_layers and torch.is_grad_enabled()):
            return cast(Tensor, block(*given))
        draws = self.draws_in_layers
        return cast(Tensor, checkpoint(block, *given, use_reentrant=False, preserve_rng_state=draws))

    def set_rope_thetas(self, *, global_rope_theta: float, local_rope_theta: float) -> None:
        """Change the RoPE bases, as the context extension does (paper 2.2.2). No weight changes."""
        config = self.config
        # The training loop says so each step: an unchanged configuration keeps its layer plan.
        if (config.global_rope_theta, config.local_rope_theta) != (global_rope_theta, local_rope_theta):
            self.config = replace(
                config, global_rope_theta=global_rope_theta, local_rope_theta=local_rope_theta
            )

    def set_attn_out_dropout(self, share: float) -> None:
        """Change the dropout on the attention's output in training. No weight changes.

        Raises:
            ConfigError: `share` is not at least 0 and below 1.
        """
        self.config = replace(self.config, attn_out_dropout=share)
        self.draws_in_layers = share > 0
        for block in self.layers:
            cast(Block, block).attn.out_drop.p = share


def check_input(input_ids: Tensor, layout: SequenceLayout, max_length: int) -> None:
    """Check that packed ids fit their layout, and the layout the model.

    Raises:
        InputError: Ids and layout differ in length, or a sequence is longer than `max_length` tokens.
    """
    if input_ids.shape != (layout.num_tokens,):
        raise InputError(
            f"`input_ids` has shape {tuple(input_ids.shape)}; it must be ({layout.num_tokens},), the "
            "packed tokens of the layout; see `modernbert.pack`"
        )
    if layout.longest > max_length:
        raise InputError(
            f"a sequence has {layout.longest} tokens; this model takes at most {max_length}; "
            "truncate or split it"
        )
