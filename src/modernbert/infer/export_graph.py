"""The model as a graph of padded tensors, for export: ids and mask `[B, S]` in, a head's outputs out.

It borrows the parameters of a packed model and states the same computation with a batch axis. It is traced,
never run in torch: its global attention is an operator of onnxruntime. Letters beyond the legend: `S` places
of a padded row, `C` blocks of a row, `W` places of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modernbert.infer.embedding_head import EmbeddingHead
from modernbert.model.checkpoint import Pretrained
from modernbert.model.encoder import ModernBertModel
from modernbert.model.heads import (
    EncoderWithClassifier,
    EncoderWithHead,
    ModernBertForMaskedLM,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    encoder_of,
)
from modernbert.model.layers import Block
from modernbert.ops.portable import SMALLEST_BLOCK
from modernbert.ops.rotary import RotaryTable, rotary_table, rotate

# Added to a score it leaves a weight of exactly 0; being finite, it leaves numbers in rows that see nothing.
HIDDEN = -1e4

TOKENS = "token_embeddings"
SENTENCE = "sentence_embedding"

_POOLED = (ModernBertForSequenceClassification, ModernBertForMultipleChoice)


class Graph(nn.Module):
    """A model with the inputs and outputs that the field's ONNX files have.

    Args:
        model: In fp32; its parameters are shared.
        embedding_head: How a bare encoder also makes a vector of each row; None: it does not.

    Attributes:
        output_names: Of the outputs, in order.
    """

    def __init__(self, model: Pretrained, embedding_head: EmbeddingHead | None = None) -> None:
        super().__init__()
        self.model = model
        self.encoder = PaddedEncoder(encoder_of(model))
        self.embedding_head = embedding_head
        self.output_names = self._output_names()

    def _output_names(self) -> tuple[str, ...]:
        if isinstance(self.model, ModernBertForQuestionAnswering):
            return ("start_logits", "end_logits")
        if isinstance(self.model, EncoderWithHead):
            return ("logits",)
        return ("last_hidden_state",) if self.embedding_head is None else (TOKENS, SENTENCE)

    def is_per_token(self, output: str) -> bool:
        """Tell whether an output is `[B, S, …]`, and not `[B, …]`."""
        return output != SENTENCE and not isinstance(self.model, _POOLED)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Map int64 `[B, S]` twice to the outputs; a row may be padded on both sides, but has no holes."""
        hidden = self.encoder(input_ids, attention_mask)
        model = self.model
        if isinstance(model, ModernBertForMaskedLM):
            return (model.decoder(model.head(hidden)),)
        if isinstance(model, EncoderWithClassifier):
            return self._scores(model, hidden, attention_mask)
        head = self.embedding_head
        if head is None:
            return (hidden,)
        pooled = [pool(hidden, attention_mask, mode) for mode in head.config.pooling]
        return hidden, head.project(torch.cat(pooled, dim=-1))

    def _scores(
        self, model: EncoderWithClassifier, hidden: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        is_pooled = isinstance(model, _POOLED)
        scores = model.score(pool(hidden, attention_mask, model.config.head.pooling) if is_pooled else hidden)
        if isinstance(model, ModernBertForQuestionAnswering):
            return scores.unbind(-1)
        return (scores.squeeze(-1) if isinstance(model, ModernBertForMultipleChoice) else scores,)


def pool(hidden: Tensor, attention_mask: Tensor, mode: str) -> Tensor:
    """Reduce rows `[B, S, D]` to `[B, D]`, as `modernbert.model.pooling.pool` does packed sequences."""
    real = attention_mask.to(hidden.dtype)
    if mode == "max":
        return (hidden + (1 - real)[..., None] * torch.finfo(hidden.dtype).min).amax(1)
    places = real * real.cumsum(1)  # 1, 2, … on real tokens, 0 on padding
    length = real.sum(1, keepdim=True)
    weights = {
        "cls": (places == 1).to(hidden.dtype),
        "last": (places == length).to(hidden.dtype),
        "mean": real,
        "weighted": places,
    }[mode]
    total = (weights[:, None] @ hidden).squeeze(1)
    return total / weights.sum(1, keepdim=True).clamp(min=1)


class PaddedEncoder(nn.Module):
    """`ModernBertModel` on padded rows."""

    def __init__(self, encoder: ModernBertModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map int64 `[B, S]` twice to hidden states `[B, S, D]`; those of padding mean nothing."""
        config = self.encoder.config
        # Counted from each row's first real token: left padding then turns no angle.
        positions = attention_mask.cumsum(1) - 1
        tables = {
            theta: _rotary_table(positions, config.head_dim, theta)
            for theta in dict.fromkeys(plan.rope_theta for plan in config.layer_plan)
        }
        real = attention_mask.to(torch.float32)
        bias = (1 - real) * HIDDEN
        band = _Band(real, config.window)
        hidden: Tensor = self.encoder.embeddings(input_ids)
        for block, plan in zip(self.encoder.layers, config.layer_plan, strict=True):
            assert isinstance(block, Block)
            hidden = _run(block, hidden, tables[plan.rope_theta], bias if plan.window is None else band)
        normed: Tensor = self.encoder.final_norm(hidden)
        return normed


def _rotary_table(positions: Tensor, head_dim: int, theta: float) -> RotaryTable:
    """Cosines and sines for positions `[B, S]`, each `[B, S, 1, H / 2]`."""
    cos, sin = rotary_table(positions.flatten(), head_dim, theta)
    return cos.unflatten(0, positions.shape), sin.unflatten(0, positions.shape)


def _run(block: Block, x: Tensor, table: RotaryTable, visible: Tensor | _Band) -> Tensor:
    """State `Block.forward` on `[B, S, D]`."""
    attn = block.attn
    heads = attn.Wqkv(block.attn_norm(x)).unflatten(-1, (3 * attn.num_heads, -1))
    qk, v = heads.split((2 * attn.num_heads, attn.num_heads), dim=2)
    q, k = rotate(qk, table).chunk(2, dim=2)
    mixed = visible.attention(q, k, v) if isinstance(visible, _Band) else _global_attention(q, k, v, visible)
    x = x + attn.Wo(mixed)
    out: Tensor = x + block.mlp(block.mlp_norm(x))
    return out


def _global_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend over the whole row: `[B, S, N, H]` and a bias `[B, S]` on keys give `[B, S, D]`.

    onnxruntime's MultiHeadAttention computes block by block, without `[B, N, S, S]` in memory, as long as it
    is given no mask. So the bias comes in as one more dimension, in which each query has a 1.
    """
    num_heads, width = q.shape[2:]
    q = torch.cat((q, torch.ones_like(q[..., :1])), dim=-1)
    k = torch.cat((k, bias[:, :, None, None].expand(-1, -1, num_heads, 1)), dim=-1)
    return torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (q.flatten(2), k.flatten(2), v.flatten(2)),
        attrs={"num_heads": num_heads, "scale": width**-0.5},
        dtype=v.dtype,
        shape=v.flatten(2).shape,
        version=1,
    )


class _Band:
    """Local attention: each block of queries meets its own and its two neighbouring blocks of keys.

    Args:
        real: fp32 `[B, S]`, 1 for a token and 0 for padding.
        window: Tokens visible on each side.
    """

    def __init__(self, real: Tensor, window: int) -> None:
        self.block = max(window, SMALLEST_BLOCK)
        self.tokens = torch.arange(real.shape[1])
        starts = torch.arange(0, real.shape[1], self.block)[:, None]
        queries = starts + torch.arange(self.block)  # [C, W]
        keys = starts + torch.arange(-self.block, 2 * self.block)  # [C, 3 W]
        self.queries, self.keys = (places.clamp(min=0).minimum(self.tokens[-1]) for places in (queries, keys))
        near = (keys[:, None, :] - queries[:, :, None]).abs() <= window
        inside = keys == self.keys
        visible = self._taken(real, self.keys)[:, :, None] * (near & inside[:, None]).to(real.dtype)
        self.bias = (1 - visible[:, :, None]) * HIDDEN  # [B, C, 1, W, 3 W]

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map `[B, S, N, H]` three times to `[B, S, D]`."""
        queries = self._taken(q, self.queries).transpose(2, 3)  # [B, C, N, W, H]
        keys = self._taken(k, self.keys).permute(0, 1, 3, 4, 2)
        values = self._taken(v, self.keys).transpose(2, 3)
        scores = queries * q.shape[-1] ** -0.5 @ keys + self.bias
        mixed: Tensor = (scores.softmax(dim=-1) @ values).transpose(2, 3)  # [B, C, W, N, H]
        return mixed.flatten(3).flatten(1, 2).index_select(1, self.tokens)

    def _taken(self, x: Tensor, places: Tensor) -> Tensor:
        """Take the tokens of `[B, S, …]` at `places` `[C, …]`."""
        taken: Tensor = x.index_select(1, places.flatten()).unflatten(1, places.shape)
        return taken
