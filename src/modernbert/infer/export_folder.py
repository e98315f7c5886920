"""Export a loaded model as a folder that serves on its own: the ONNX file, and all that text needs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from modernbert.errors import InputError
from modernbert.infer.embedding_head import EmbeddingConfig, EmbeddingHead
from modernbert.infer.encoder import Encoder
from modernbert.infer.export import OPSET, ExportReport, export_onnx
from modernbert.infer.runner import TorchRunner
from modernbert.infer.sentence_folder import MODULES
from modernbert.infer.sentence_folder import write as write_sentence_folder
from modernbert.model.checkpoint import Pretrained
from modernbert.model.encoder import ModernBertModel
from modernbert.model.heads import encoder_of

log = logging.getLogger(__name__)


def export_folder(
    encoder: Encoder,
    folder: str | Path,
    *,
    pooling: str | None = None,
    normalize: bool = False,
    quantize: Literal["int8"] | None = None,
    opset: int = OPSET,
    texts: Sequence[str] = (),
) -> ExportReport:
    """Write a model to a folder that `modernbert.load(folder, backend="onnx")` takes.

    A model with a head is exported with it; a bare encoder with its pooling, dense layers and normalisation.
    Files of a tokenizer and of embedding modules that are there already stay.

    Args:
        encoder: Loaded with `backend="portable"`.
        folder: May be the model's own.
        pooling: Export the encoder alone, whatever its head, with this pooling in the graph.
        normalize: Scale what is pooled to length 1.
        quantize: See `modernbert.infer.export.export_onnx`, also for what it raises.
        opset: Version of the standard operators.
        texts: Where `int8` is compared with fp32; none: on random tokens.

    Raises:
        InputError: The encoder was loaded with another backend, or settings do not fit each other.
    """
    target, model = Path(folder), _plain(encoder)
    head = None
    if pooling is not None:
        model = encoder_of(model)
        width = model.config.hidden_size
        head = EmbeddingHead(EmbeddingConfig(width=width, pooling=(pooling,), normalize=normalize))
    elif isinstance(model, ModernBertModel):
        head = encoder.embedding_head
        _note_what_is_not_in_the_graph(head.config)
    report = export_onnx(
        model,
        target,
        normalize=normalize and pooling is None,  # which it then refuses
        embedding_head=head,
        opset=opset,
        quantize=quantize,
        sample=encoder.texts.ids(texts) or None,
    )
    if not (target / "tokenizer.json").exists():
        encoder.tokenizer.save_pretrained(target, model_max_length=encoder.max_length)
    if head is not None and not (target / MODULES).exists():
        write_sentence_folder(target, head)
    return report


def _note_what_is_not_in_the_graph(config: EmbeddingConfig) -> None:
    """Say what other programs must do to the graph's embeddings; the `onnx` backend here does it."""
    if config.truncate_dim is not None:
        log.warning(
            "the graph gives all dimensions; keep the first %d, as the model does", config.truncate_dim
        )
    if not config.include_prompt and any(config.prompts.values()):
        log.warning("the graph pools the tokens of a prompt too, which the model leaves out")


def _plain(encoder: Encoder) -> Pretrained:
    """Return the model in its plain form.

    Raises:
        InputError: It was loaded in another.
    """
    model = encoder.runner.model if isinstance(encoder.runner, TorchRunner) else None
    if not isinstance(model, Pretrained) or not isinstance(encoder_of(model), ModernBertModel):
        raise InputError(
            "the model was loaded in a form that only serves inference; to be exported it must be plain; "
            f'load `{encoder.name}` with `backend="portable"`'
        )
    return model
