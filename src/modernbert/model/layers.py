"""The encoder's blocks: attention, GeGLU feed-forward, pre-norm residuals (paper 2.1.1, 2.1.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from modernbert.layout import SequenceLayout
from modernbert.ops.attention import attention
from modernbert.ops.rotary import RotaryTable, rotate

FUSED: Mapping[str, int] = {"attn.Wqkv.weight": 3, "mlp.Wi.weight": 2}
"""How many matrices stand on top of one another in a weight: queries, keys, values; activated half, gate."""

PRODUCTS = ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")
"""The linear layers of a block."""


def layer_norm(dim: int, eps: float) -> nn.LayerNorm:
    """The model's only kind of norm: a LayerNorm without bias."""
    return nn.LayerNorm(dim, eps=eps, bias=False)


class Embeddings(nn.Module):
    """Token embeddings and their norm; positions enter through rotation alone."""

    def __init__(self, *, vocab_size: int, dim: int, norm_eps: float) -> None:
        super().__init__()
        # Drawn uniformly: to draw normally on the meta device, torch would first import its compiler.
        drawn = torch.empty(vocab_size, dim).uniform_(-1, 1)
        self.tok_embeddings = nn.Embedding.from_pretrained(drawn, freeze=False)
        self.norm = layer_norm(dim, norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed ids `[T]` as `[T, D]`."""
        normed: Tensor = self.norm(self.tok_embeddings(input_ids))
        return normed


class Attention(nn.Module):
    """Multi-head self-attention over a window, or over the whole sequence if `window` is None."""

    def __init__(self, *, dim: int, num_heads: int, window: int | None, out_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.Wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.Wo = nn.Linear(dim, dim, bias=False)
        self.out_drop = nn.Dropout(out_dropout)

    def forward(self, x: Tensor, layout: SequenceLayout, table: RotaryTable, backend: str) -> Tensor:
        """Map `[T, D]` to `[T, D]`."""
        q, k, v = self.Wqkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # each [T, N, H]
        mixed = attention(rotate(q, table), rotate(k, table), v, layout, self.window, backend)
        out: Tensor = self.out_drop(self.Wo(mixed.flatten(1)))
        return out


class GatedFeedForward(nn.Module):
    """GeGLU: the exact (erf) GELU of the first half gates the second."""

    def __init__(self, *, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.Wi = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.Wo = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[T, D]` to `[T, D]`."""
        activated, gate = self.Wi(x).chunk(2, dim=-1)
        out: Tensor = self.Wo(functional.gelu(activated) * gate)
        return out


class Block(nn.Module):
    """One pre-norm layer. Layer 0 has no attention norm: the embeddings are normed already."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        window: int | None,
        has_attn_norm: bool,
        norm_eps: float,
        attn_out_dropout: float,
    ) -> None:
        super().__init__()
        self.attn_norm = layer_norm(dim, norm_eps) if has_attn_norm else nn.Identity()
        self.attn = Attention(dim=dim, num_heads=num_heads, window=window, out_dropout=attn_out_dropout)
        self.mlp_norm = layer_norm(dim, norm_eps)
        self.mlp = GatedFeedForward(dim=dim, hidden_dim=ffn_dim)

    def forward(self, x: Tensor, layout: SequenceLayout, table: RotaryTable, backend: str) -> Tensor:
        """Map `[T, D]` to `[T, D]`."""
        x = x + self.attn(self.attn_norm(x), layout, table, backend)
        mixed: Tensor = x + self.mlp(self.mlp_norm(x))
        return mixed
