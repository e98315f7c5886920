"""A loaded model as the maker of vectors that `modernbert.infer.stream.encode_file` asks for."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import ConfigError
from modernbert.files import sha256
from modernbert.infer.embedding import Embed, Row, choose_prompt
from modernbert.infer.embedding_head import EmbeddingHead
from modernbert.infer.encoder import Encoder
from modernbert.infer.fused import FusedEncoder
from modernbert.infer.onnx_runner import OnnxRunner
from modernbert.infer.runner import Runner, TorchRunner

_WEIGHTS = "*.safetensors"
# Of `Encoder.encode`: what decides on a vector of float32, which is all that comes from here.
_OPTIONS = ("pooling", "normalize_embeddings", "truncate_dim")


class EncoderSource:
    """Makes vectors of texts, counts their tokens, and knows what the vectors depend on.

    Args:
        encoder: What `modernbert.load` gave.
        prompt: Put before each text.
        prompt_name: Name of one of the model's prompts instead.
        **options: `pooling`, `normalize_embeddings` and `truncate_dim` of `Encoder.encode`.

    Raises:
        ConfigError: Another option, an unknown pooling or prompt.
        InputError: The model gives no hidden states, or a number is out of range.
    """

    def __init__(
        self, encoder: Encoder, *, prompt: str | None = None, prompt_name: str | None = None, **options: Any
    ) -> None:
        if unknown := sorted({*options} - {*_OPTIONS}):
            raise ConfigError(f"`{unknown[0]}` is no option here; it must be one of {', '.join(_OPTIONS)}")
        self.prompt = choose_prompt(encoder.embedding_config, prompt=prompt, prompt_name=prompt_name)
        self.dim = len(encoder.encode("", prompt=self.prompt, **options))  # refuses what cannot be, too
        assert encoder.encoder_runner is not None  # else there was no vector
        self.encoder = encoder
        self.options = options
        self._task = _CountingEmbed(
            encoder.encoder_runner, encoder.texts, encoder.embedding_head, prompt=self.prompt, **options
        )

    @property
    def num_tokens(self) -> int:
        """Tokens computed so far."""
        return self._task.num_tokens

    def encode(self, texts: Iterator[str]) -> Iterator[Row]:
        """Yield the vector of each text, fp32 `[dim]`, in order."""
        return self.encoder.engine.run(self._task, texts)

    @cached_property
    def fingerprint(self) -> str:
        """What the vectors depend on beside the text: files by their content, arithmetic and options."""
        encoder, folder = self.encoder, self.encoder.folder
        facts = {
            "weights": encoder.name if folder is None else _weights(folder, self._task.runner),
            "arithmetic": _arithmetic(self._task.runner),
            # What is computed together decides on the last bits.
            "batch": "alone" if encoder.engine.deterministic else encoder.engine.batch_tokens,
            "tokenizer": encoder.tokenizer.fingerprint,
            "max_length": encoder.max_length,
            "head": _head(encoder.embedding_head),
            "prompt": self.prompt,
            **{name: value for name, value in self.options.items() if value},
        }
        return f"{zlib.crc32(json.dumps(facts, sort_keys=True).encode()):08x}"


class _CountingEmbed(Embed):
    """Counts the tokens that it computes."""

    num_tokens = 0

    def compute(self, sequences: list[list[int]]) -> list[Row]:
        self.num_tokens += sum(map(len, sequences))
        return super().compute(sequences)


def _weights(folder: Path, runner: Runner) -> dict[str, str]:
    """Return the checksum of each file of weights; the time of a file would differ in each download."""
    if isinstance(runner, OnnxRunner):
        paths = [path for path in runner.file.parent.glob(f"{runner.file.name}*") if path.is_file()]
    else:
        paths = list(folder.glob(_WEIGHTS))
    return {path.name: sha256(path) for path in paths}  # in any order, as keys are sorted


def _arithmetic(runner: Runner) -> str:
    if not isinstance(runner, TorchRunner):
        return type(runner).__name__
    model = runner.model
    if isinstance(model, FusedEncoder):
        return f"fused {model.arithmetic}"
    return f"{model.backend} {runner.precision} on {runner.device.type}"


def _head(head: EmbeddingHead) -> str:
    values = b"".join(np.ascontiguousarray(each.cpu()).tobytes() for each in head.state_dict().values())
    return f"{head.config} {zlib.crc32(values):08x}"
