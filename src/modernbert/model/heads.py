"""Task heads on the encoder (paper 2.1.1; the masked-LM head predicts masked positions only)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from modernbert.layout import SequenceLayout
from modernbert.model.checkpoint import Pretrained
from modernbert.model.config import EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.layers import layer_norm
from modernbert.ops.loss import linear_cross_entropy


class PredictionHead(nn.Module):
    """Dense layer, GELU, norm: what stands between the encoder and a decoder or classifier."""

    def __init__(self, *, dim: int, norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim, bias=False)
        self.norm = layer_norm(dim, norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[M, D]` to `[M, D]`."""
        normed: Tensor = self.norm(functional.gelu(self.dense(hidden)))
        return normed


class ModernBertForMaskedLM(Pretrained):
    """The encoder with the masked-LM head, whose decoder shares the embedding's weight."""

    def __init__(self, config: EncoderConfig, *, backend: str = "auto") -> None:
        super().__init__()
        self.model = ModernBertModel(config, backend=backend)
        self.head = PredictionHead(dim=config.hidden_size, norm_eps=config.norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        self.tie_weights()

    @property
    def config(self) -> EncoderConfig:  # type: ignore[override]
        """The encoder's configuration."""
        return self.model.config

    def tie_weights(self) -> None:
        """Make the decoder's weight the embedding's."""
        self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    def forward(self, input_ids: Tensor, layout: SequenceLayout, positions: Tensor | None = None) -> Tensor:
        """Score every token of the vocabulary at the given positions.

        Args:
            input_ids: int64 `[T]`.
            layout: Where each sequence lies.
            positions: int64 `[M]`, the packed positions to predict; None: all `T`, which for a large
                vocabulary is a large result.

        Returns:
            Logits `[M, V]`.
        """
        logits: Tensor = self.decoder(self._features(input_ids, layout, positions))
        return logits

    def loss(
        self, input_ids: Tensor, layout: SequenceLayout, masked_positions: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy over the masked positions, and count the right guesses.

        Args:
            input_ids: int64 `[T]`, masked.
            layout: Where each sequence lies.
            masked_positions: int64 `[M]`.
            labels: int64 `[M]`, the original ids there.

        Returns:
            Loss (fp32 scalar, summed, in nats) and number of correct predictions (int64 scalar).
        """
        features = self._features(input_ids, layout, masked_positions)
        return linear_cross_entropy(features, self.decoder.weight, self.decoder.bias, labels)

    def _features(self, input_ids: Tensor, layout: SequenceLayout, positions: Tensor | None) -> Tensor:
        hidden = self.model(input_ids, layout)
        features: Tensor = self.head(hidden if positions is None else hidden.index_select(0, positions))
        return features
