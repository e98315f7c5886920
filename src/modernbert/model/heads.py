"""Task heads on the encoder (paper 2.1.1; the masked-LM head predicts masked positions only).

Each is named, and names its parameters, as the published checkpoints do. `from_pretrained` picks the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from modernbert import hub
from modernbert.errors import CheckpointError, did_you_mean
from modernbert.layout import SequenceLayout
from modernbert.model.checkpoint import CONFIG, DOWNLOADED, Pretrained, read_architecture, read_tensors
from modernbert.model.config import DEFAULT_LABELS, EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.layers import layer_norm
from modernbert.model.pooling import pool
from modernbert.ops.loss import linear_cross_entropy
from modernbert.ops.splade import splade_pool


class PredictionHead(nn.Module):
    """Dense layer, GELU, norm: what stands between the encoder and a decoder or classifier."""

    def __init__(self, *, dim: int, norm_eps: float, bias: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim, bias=bias)
        self.norm = layer_norm(dim, norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[M, D]` to `[M, D]`."""
        normed: Tensor = self.norm(functional.gelu(self.dense(hidden)))
        return normed


class EncoderWithHead(Pretrained):
    """The trunk of all heads: the encoder and the prediction head.

    Attributes:
        model: The encoder.
        head: What its hidden states go through, all of them or pooled ones.
    """

    def __init__(self, config: EncoderConfig, *, backend: str = "auto") -> None:
        super().__init__()
        self.model = ModernBertModel(config, backend=backend)
        self.head = PredictionHead(dim=config.hidden_size, norm_eps=config.norm_eps, bias=config.head.bias)

    @property
    def config(self) -> EncoderConfig:  # type: ignore[override]
        """The encoder's configuration."""
        return self.model.config


def encoder_of(model: Pretrained) -> ModernBertModel:
    """Return a model's encoder: its trunk, or itself."""
    return model if isinstance(model, ModernBertModel) else cast(EncoderWithHead, model).model


class ModernBertForMaskedLM(EncoderWithHead):
    """The encoder with the masked-LM head, whose decoder shares the embedding's weight."""

    def __init__(self, config: EncoderConfig, *, backend: str = "auto") -> None:
        super().__init__(config, backend=backend)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        self.tie_weights()

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

    def splade(self, input_ids: Tensor, layout: SequenceLayout, activation: str = "relu") -> Tensor:
        """Weigh every token of the vocabulary in each sequence, fp32 `[B, V]`; see `ops.splade`."""
        features = self._features(input_ids, layout, None)
        return splade_pool(features, self.decoder.weight, self.decoder.bias, layout, activation)

    def _features(self, input_ids: Tensor, layout: SequenceLayout, positions: Tensor | None) -> Tensor:
        hidden = self.model(input_ids, layout)
        features: Tensor = self.head(hidden if positions is None else hidden.index_select(0, positions))
        return features


class EncoderWithClassifier(EncoderWithHead):
    """The trunk of the heads that end in a few scores.

    Attributes:
        drop: Dropout before the classifier, in training.
        classifier: Linear layer with a bias; one row a score.
    """

    def __init__(self, config: EncoderConfig, *, num_outputs: int, backend: str) -> None:
        super().__init__(config, backend=backend)
        self.drop = nn.Dropout(config.head.dropout)
        self.classifier = nn.Linear(config.hidden_size, num_outputs)

    def score(self, features: Tensor) -> Tensor:
        """Map `[M, D]`, hidden states or pooled ones, to `[M, num_outputs]`."""
        logits: Tensor = self.classifier(self.drop(self.head(features)))
        return logits


class ModernBertForSequenceClassification(EncoderWithClassifier):
    """A score for each label and sequence. Without labels in `config.head` it has `DEFAULT_LABELS`."""

    def __init__(self, config: EncoderConfig, *, backend: str = "auto") -> None:
        config = _labelled(config)
        super().__init__(config, num_outputs=len(config.head.labels), backend=backend)

    def forward(self, input_ids: Tensor, layout: SequenceLayout) -> Tensor:
        """Score the sequences of packed tokens `[T]`: logits `[B, L]`."""
        hidden = self.model(input_ids, layout)
        return self.score(pool(hidden, layout, self.config.head.pooling))


class ModernBertForTokenClassification(EncoderWithClassifier):
    """A score for each label and token. Without labels in `config.head` it has `DEFAULT_LABELS`."""

    def __init__(self, config: EncoderConfig, *, backend: str = "auto") -> None:
        config = _labelled(config)
        super().__init__(config, num_outputs=len(config.head.labels), backend=backend)

    def forward(self, input_ids: Tensor, layout: SequenceLayout) -> Tensor:
        """Score packed tokens `[T]`: logits `[T, L]`."""
        return self.score(self.model(input_ids, layout))


class ModernBertForQuestionAnswering(EncoderWithClassifier):
    """Scores for an answer's first and last token. It has no labels."""

    def __init__(self, config: EncoderConfig, *, backend: str = "auto") -> None:
        super().__init__(_unlabelled(config), num_outputs=2, backend=backend)

    def forward(self, input_ids: Tensor, layout: SequenceLayout) -> Tensor:
        """Score packed tokens `[T]`: logits `[T, 2]`, as the answer's start and as its end."""
        return self.score(self.model(input_ids, layout))


class ModernBertForMultipleChoice(EncoderWithClassifier):
    """One score a sequence, to compare the sequences that are choices of one question. It has no labels."""

    def __init__(self, config: EncoderConfig, *, backend: str = "auto") -> None:
        super().__init__(_unlabelled(config), num_outputs=1, backend=backend)

    def forward(self, input_ids: Tensor, layout: SequenceLayout) -> Tensor:
        """Score the sequences of packed tokens `[T]`: logits `[B]`."""
        hidden = self.model(input_ids, layout)
        return self.score(pool(hidden, layout, self.config.head.pooling)).squeeze(-1)


HEADS: Mapping[str, type[Pretrained]] = {
    kind.__name__: kind
    for kind in (
        ModernBertModel,
        ModernBertForMaskedLM,
        ModernBertForSequenceClassification,
        ModernBertForTokenClassification,
        ModernBertForQuestionAnswering,
        ModernBertForMultipleChoice,
    )
}
"""The class of each published architecture; `ModernBertModel` is the encoder without a head."""


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Pretrained:
    """Load a model as the class that its checkpoint names; the arguments are those of that class's own.

    Raises:
        CheckpointError: Nothing found, files that are damaged, or an architecture that is not in `HEADS`.
    """
    folder = hub.find(
        name,
        patterns=DOWNLOADED,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
    )
    return class_of(folder).from_pretrained(folder, dtype=dtype, device=device)


def class_of(folder: Path) -> type[Pretrained]:
    """Return the class of a checkpoint's model: what `architectures` says, or else its tensors.

    Raises:
        CheckpointError: An unknown architecture, or none where the tensors fit several.
    """
    architecture = read_architecture(folder)
    if architecture is None:
        return _class_by_tensors(folder)
    if architecture not in HEADS:
        raise CheckpointError(
            f"`{folder / CONFIG}` has the architecture `{architecture}`, which this package does not "
            f"implement{did_you_mean(architecture, HEADS)}; choose another checkpoint, or load its encoder "
            "as `ModernBertModel`"
        )
    return HEADS[architecture]


def _class_by_tensors(folder: Path) -> type[Pretrained]:
    names = read_tensors(folder)
    if "decoder.bias" in names:
        return ModernBertForMaskedLM
    if "classifier.weight" in names:
        raise CheckpointError(
            f"`{folder / CONFIG}` has no `architectures`, and the weights have a `classifier` that several "
            "heads could have; name the architecture there, or load with that head's class"
        )
    return ModernBertModel


def _labelled(config: EncoderConfig) -> EncoderConfig:
    """Give a configuration without labels the two that published files leave out."""
    head = config.head
    return config if head.labels else replace(config, head=replace(head, labels=DEFAULT_LABELS))


def _unlabelled(config: EncoderConfig) -> EncoderConfig:
    return replace(config, head=replace(config.head, labels=()))
