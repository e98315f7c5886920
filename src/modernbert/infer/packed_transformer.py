"""sentence-transformers on this package's packed engine: its objects, but for what computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from modernbert.errors import InputError
from modernbert.layout import SequenceLayout
from modernbert.model import checkpoint
from modernbert.model.checkpoint import Pretrained
from modernbert.model.dialects import from_published
from modernbert.model.encoder import ModernBertModel
from modernbert.model.heads import HEADS, ModernBertForMaskedLM, ModernBertForSequenceClassification

Target = TypeVar("Target", bound=nn.Module)

# Where sentence-transformers looks for the output of each kind of model that it uses.
_OUTPUT: dict[type[nn.Module], str] = {
    ModernBertModel: "last_hidden_state",
    ModernBertForMaskedLM: "logits",
    ModernBertForSequenceClassification: "logits",
}


class PackedModel(nn.Module):
    """Stands in for a model of transformers: padded tensors in and out, on either side, packed between.

    Attributes:
        model: What computes; trainable.
        config: The configuration of transformers, which others read.
        splade: Of a masked language model whose logits are wanted for SPLADE alone: the activation, see
            `modernbert.ops.splade`; they are then pooled here, and never all in memory.
    """

    def __init__(self, model: Pretrained, config: Any) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.splade: str | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Compute a padded batch, no padding of it.

        Args:
            input_ids: int64 `[B, S]`.
            attention_mask: `[B, S]`, 1 at tokens, in one run a row; None: all are tokens.

        Returns:
            `last_hidden_state` `[B, S, D]`; or `logits`: `[B, S, V]` of a masked language model, pooled ones
            `[B, V]`, `[B, L]` of a sequence classifier. At padding there are zeros.
        """
        there = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        layout = SequenceLayout.of(there.sum(dim=1).tolist(), input_ids.device)
        tokens = there.bool()
        if self.splade is not None:
            masked_lm = cast(ModernBertForMaskedLM, self.model)
            return {"logits": masked_lm.splade(input_ids[tokens], layout, self.splade)}
        output: Tensor = self.model(input_ids[tokens], layout)
        if not isinstance(self.model, ModernBertForSequenceClassification):
            padded = output.new_zeros(*input_ids.shape, output.shape[-1])
            padded[tokens] = output
            output = padded
        return {_OUTPUT[type(self.model)]: output}

    def save_pretrained(self, folder: str | Path, *, safe_serialization: bool = True) -> None:
        """Write a checkpoint that transformers loads; always as safetensors."""
        self.model.save_pretrained(folder)


def packed(target: Target, *, backend: str = "auto") -> Target:
    """Let a model of sentence-transformers compute with this package, in place; all else of it stays.

    Its vectors are the same but for rounding, padding costs nothing, and local layers cost what they
    should. It trains; make the optimizer afterwards, as the parameters are new. What it saves are the
    usual files, which any sentence-transformers loads, with transformers again.

    A `SpladePooling` that takes the largest is fused with the decoder, so that no `[B, S, V]` is ever there.

    Args:
        target: A `SentenceTransformer`, `SparseEncoder` or `CrossEncoder` on a ModernBERT, also as a route of
            a `Router`; or a `Transformer` module, to build one of.
        backend: Attention backend, see `modernbert.ops.attention.BACKENDS`.

    Returns:
        `target`.

    Raises:
        InputError: Its first module is no `Transformer` on a ModernBERT with a head that has a use here.
        CheckpointError: A ModernBERT of a kind that this package does not implement.
    """
    for transformer, after in _transformers(target):
        if not isinstance(getattr(transformer, "model", None), PackedModel):
            _pack(transformer, backend)
        if type(after).__name__ == "SpladePooling" and after.pooling_strategy == "max":
            transformer.model.splade = after.activation_function
            after.embedding_dimension = transformer.model.config.vocab_size
            after.forward = _is_pooled
    return target


def _transformers(target: nn.Module) -> list[tuple[Any, Any]]:
    """Return each module that computes with transformers, with the one after it, if there is one."""
    first: Any = target[0] if isinstance(target, nn.Sequential) else target
    chains = first.sub_modules.values() if type(first).__name__ == "Router" else [target]
    parts = [list(chain) if isinstance(chain, nn.Sequential) else [chain] for chain in chains]
    found = [(part[0], part[1] if part[1:] else None) for part in parts if hasattr(part[0], "model")]
    return found or [(first, None)]


def _is_pooled(features: dict[str, Any]) -> dict[str, Any]:
    """Stand in for the forward of a `SpladePooling`, whose work is done."""
    features["sentence_embedding"] = features["token_embeddings"]
    return features


def _pack(transformer: Any, backend: str) -> None:
    theirs = getattr(transformer, "model", None)
    kind = HEADS.get(type(theirs).__name__)
    if theirs is None or kind not in _OUTPUT:
        raise InputError(
            f"the first module computes with `{type(theirs).__name__}`; it must be one of: "
            f"{', '.join(known.__name__ for known in _OUTPUT)} of transformers; load a ModernBERT"
        )
    transformer.model = PackedModel(_counterpart(theirs, kind, backend), theirs.config)
    # What its forward takes, of all that the tokenizer and others offer; and no second way of unpadding.
    transformer.model_forward_params = {"input_ids", "attention_mask"}
    transformer.can_flatten_inputs = False


def _counterpart(theirs: Any, kind: type[Pretrained], backend: str) -> Pretrained:
    """Make this package's model of one of transformers: same weights, dtype, device and mode."""
    name = theirs.config.name_or_path or kind.__name__
    config = from_published(theirs.config.to_dict(), name)
    # The one dropout that both have; transformers knows it by this name, and has it at 0 if not told.
    config = replace(config, attn_out_dropout=theirs.config.attention_dropout)
    with torch.device("meta"):
        ours = kind(config, backend=backend)
    checkpoint.load(ours, theirs.state_dict(), source=Path(name))
    return ours.train(theirs.training)
