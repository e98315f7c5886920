"""Texts to embeddings, with the options and results of sentence-transformers' `encode`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from modernbert.errors import InputError
from modernbert.infer.arguments import check_choice, check_count
from modernbert.infer.embedding_head import EmbeddingConfig, EmbeddingHead
from modernbert.infer.outputs import per_token
from modernbert.infer.quantize import check_precision, quantize
from modernbert.infer.runner import Runner
from modernbert.infer.task import Prepared, Task
from modernbert.infer.texts import Texts
from modernbert.layout import SequenceLayout

Row = npt.NDArray[Any]
Role = Literal["query", "document"]
OUTPUT_VALUES = ("sentence_embedding", "token_embeddings")

logger = logging.getLogger(__name__)


class EmbedOptions(TypedDict, total=False):
    """The options of `Embed`, which says what they mean."""

    pooling: str | Sequence[str] | None
    normalize_embeddings: bool
    truncate_dim: int | None
    output_value: str
    precision: str
    ranges: Row | None
    convert_to_numpy: bool
    convert_to_tensor: bool


class EncodeOptions(EmbedOptions, total=False):
    """The options of `Encoder.encode`: those of `Embed`, and more.

    Attributes:
        prompt_name: Name of one of the model's prompts, put before each text.
        prompt: The prompt itself.
        show_progress_bar: Show how far a list is, with the rate and the time to go.
        batch_size: Of sentence-transformers, for code written for it. It changes nothing: batches are of
            tokens here, see `batch_tokens` of `modernbert.load`.
    """

    prompt_name: str | None
    prompt: str | None
    show_progress_bar: bool
    batch_size: int


class Embed(Task[str, Row, Row]):
    """Embed texts: fp32 `[E]` a text, or its hidden states `[tokens, D]`; `gather` makes one result of them.

    Args:
        runner: Of an encoder without a head.
        texts: The model's tokenizer and longest sequence.
        head: Moved to the runner's device.
        prompt: Put before each text, see `choose_prompt`.
        pooling: In place of the head's own; one mode, or several whose vectors are put side by side.
        normalize_embeddings: Scale what is returned to length 1, after any truncation.
        truncate_dim: Leading dimensions to keep; None: as the head's configuration says.
        output_value: `sentence_embedding`; or `token_embeddings`, for which only `prompt` matters.
        precision: Of `modernbert.infer.quantize.DTYPES`.
        ranges: Of `int8` and `uint8`, see `modernbert.infer.quantize.quantize`; None: those of the result.
        convert_to_numpy: Gather an array.
        convert_to_tensor: Gather a tensor, whatever `convert_to_numpy` says.

    Raises:
        ConfigError: An unknown pooling, or one that does not fit the head's dense layers.
        InputError: Another option that there is not, or that is out of range.
    """

    def __init__(
        self,
        runner: Runner,
        texts: Texts,
        head: EmbeddingHead,
        *,
        prompt: str = "",
        pooling: str | Sequence[str] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        ranges: Row | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> None:
        _check(output_value, truncate_dim, precision)
        self.runner = runner
        self.texts = texts
        self.head = head.to(runner.device)
        self.prompt = prompt
        self.pooling = head.config.checked_pooling(pooling)
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = head.config.truncate_dim if truncate_dim is None else truncate_dim
        self.whole_sequences = output_value == "token_embeddings"
        self.precision = precision
        self.ranges = ranges
        self.convert_to_numpy = convert_to_numpy
        self.convert_to_tensor = convert_to_tensor
        self.skip = 0 if head.config.include_prompt else prompt_tokens(texts, prompt)

    def prepare(self, inputs: list[str], first: int) -> list[Prepared]:
        return [Prepared([ids]) for ids in self.texts.ids(prompted(self.prompt, inputs), first=first)]

    @torch.inference_mode()
    def compute(self, sequences: list[list[int]]) -> list[Row]:
        if self.whole_sequences:
            return list(per_token(self.runner, sequences))
        hidden, layout = self.runner(sequences)
        embeddings = self._pooled(hidden, layout)[:, : self.truncate_dim]
        if self.normalize_embeddings:
            embeddings = functional.normalize(embeddings, dim=-1)
        return list(embeddings.cpu().numpy())

    def finish(self, prepared: Prepared, outputs: list[Row]) -> Row:
        return outputs[0]

    def gather(self, rows: list[Row]) -> Row | Tensor | list[Tensor]:
        """Make one result of the embeddings of several texts.

        Returns:
            `[N, E]`, or `[0]` if there are no rows; a list of tensors where no conversion is wanted, and for
            `token_embeddings`.

        Raises:
            InputError: A single embedding, in a precision that needs the ranges of several.
        """
        if self.whole_sequences:
            return [torch.from_numpy(row) for row in rows]
        array = quantize(np.stack(rows), self.precision, self.ranges) if rows else np.zeros(0, np.float32)
        if self.convert_to_tensor:
            return torch.from_numpy(array)
        return array if self.convert_to_numpy else list(torch.from_numpy(array))

    def _pooled(self, hidden: Tensor, layout: SequenceLayout) -> Tensor:
        if self.skip < min(layout.lengths):
            whole: Tensor = self.head(hidden, layout, skip=self.skip, pooling=self.pooling)
            return whole
        # The last word of a prompt may merge with the text: then fewer tokens can be there than are skipped.
        parts = []
        for states in layout.split(hidden):
            alone = SequenceLayout.of([len(states)], hidden.device)
            skip = min(self.skip, len(states) - 1)
            parts.append(self.head(states, alone, skip=skip, pooling=self.pooling))
        return torch.cat(parts)


def prompted(prompt: str, inputs: list[str]) -> list[str]:
    """Put a prompt before each text; what is no string is left as it is, for `Texts` to refuse."""
    return [prompt + text if isinstance(text, str) else text for text in inputs]


def prompt_tokens(texts: Texts, prompt: str) -> int:
    """Count the first tokens that a prompt makes, special ones too, as sentence-transformers counts them."""
    if not prompt:
        return 0
    ids = texts.ids([prompt])[0]
    return len(ids) - (ids[-1] in texts.tokenizer.special_ids)


def choose_prompt(
    config: EmbeddingConfig,
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    role: Role | None = None,
) -> str:
    """Return the text to put before each text.

    Args:
        config: Names the model's prompts.
        prompt: The text itself, which goes before all else.
        prompt_name: The name of one of the model's prompts.
        role: What the texts are; the prompt of this name is used, even an empty one. None: the default.

    Raises:
        ConfigError: No prompt has this name.
    """
    if prompt is not None:
        if prompt_name is not None:
            logger.warning(
                "`prompt` is given, so that `prompt_name` %r is ignored; give one of them", prompt_name
            )
        return prompt
    name = prompt_name or role or config.default_prompt_name
    return "" if name is None else config.prompt(name)


def _check(output_value: str, truncate_dim: int | None, precision: str) -> None:
    check_precision(precision)
    check_choice("output_value", output_value, OUTPUT_VALUES)
    if truncate_dim is not None:
        check_count("truncate_dim", truncate_dim)
    if output_value == "token_embeddings" and precision != "float32":
        raise InputError(
            f"`precision` is `{precision}`; `token_embeddings` are given as float32 only; quantize them "
            "afterwards, see `modernbert.infer.quantize`"
        )
