"""What `SparseEncoder` asks of the engine: texts to tokens with weights, by a model or without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modernbert.errors import BackendError
from modernbert.infer.embedding import prompted
from modernbert.infer.runner import Runner
from modernbert.infer.task import Prepared, Task
from modernbert.infer.texts import Texts
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM

SparseRow = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Token ids, ascending, and their weights, none of them 0."""

# Dense vectors alive at one time: 206 MB in fp32 for 50,368 tokens.
VECTORS_AT_ONCE = 1_024


class Splade(nn.Module):
    """A masked language model with pooling in place of its logits.

    Args:
        model: On its device.
        activation: Of `modernbert.ops.splade.ACTIVATIONS`.
    """

    def __init__(self, model: ModernBertForMaskedLM, activation: str) -> None:
        super().__init__()
        self.model = model
        self.activation = activation

    @property
    def config(self) -> EncoderConfig:
        return self.model.config

    def forward(self, input_ids: Tensor, layout: SequenceLayout) -> Tensor:
        """Weigh the tokens of the vocabulary in each sequence, `[B, V]`."""
        return self.model.splade(input_ids, layout, self.activation)


class EmbedSparsely(Task[str, SparseRow, SparseRow]):
    """Texts to sparse vectors, by a runner of `Splade`."""

    def __init__(self, runner: Runner, texts: Texts, *, prompt: str, max_active_dims: int | None) -> None:
        self.runner = runner
        self.texts = texts
        self.prompt = prompt
        self.max_active_dims = max_active_dims

    def prepare(self, inputs: list[str], first: int) -> list[Prepared]:
        return [Prepared([ids]) for ids in self.texts.ids(prompted(self.prompt, inputs), first=first)]

    @torch.inference_mode()
    def compute(self, sequences: list[list[int]]) -> list[SparseRow]:
        parts = (
            sequences[start : start + VECTORS_AT_ONCE] for start in range(0, len(sequences), VECTORS_AT_ONCE)
        )
        return [row for part in parts for row in self._rows(self.runner(part)[0])]

    def finish(self, prepared: Prepared, outputs: list[SparseRow]) -> SparseRow:
        return outputs[0]

    def _rows(self, pooled: Tensor) -> list[SparseRow]:
        if self.max_active_dims is not None and self.max_active_dims < pooled.shape[1]:
            largest, places = pooled.topk(self.max_active_dims, dim=1)
            pooled = torch.zeros_like(pooled).scatter_(1, places, largest)
        rows, ids = pooled.nonzero(as_tuple=True)
        ends = rows.bincount(minlength=len(pooled)).cumsum(0).cpu()[:-1]
        tokens, weights = (np.split(each.cpu().numpy(), ends) for each in (ids.int(), pooled[rows, ids]))
        return list(zip(tokens, weights))


class TokenIds(Task[str, Any, NDArray[np.int32]]):
    """The ids of a text's tokens, ascending, each once; without special ones and without a model."""

    def __init__(self, texts: Texts, *, prompt: str = "") -> None:
        self.texts = texts
        self.prompt = prompt

    def prepare(self, inputs: list[str], first: int) -> list[Prepared]:
        texts, limit = prompted(self.prompt, inputs), self.texts.max_length
        pieces = self.texts.pieces(texts, first=first, limit=limit)
        return [Prepared([], piece.ids) for piece in pieces]

    def compute(self, sequences: list[list[int]]) -> list[Any]:
        return []

    def finish(self, prepared: Prepared, outputs: list[Any]) -> Any:
        return np.unique(np.array(prepared.context, np.int32))


def weighted(ids: NDArray[np.int32], weights: NDArray[np.float32], most: int | None) -> SparseRow:
    """Give each of a text's token ids its weight, and keep the `most` largest; None: all."""
    ids = ids[weights[ids] != 0]
    if most is not None:
        ids = np.sort(ids[np.argsort(-np.abs(weights[ids]), kind="stable")[:most]])
    return ids, weights[ids]


def matrix(rows: list[SparseRow], width: int) -> Any:
    """Stack rows of vectors as wide as the vocabulary: fp32 `scipy.sparse.csr_matrix` `[N, width]`.

    Raises:
        BackendError: scipy is not installed.
    """
    try:
        from scipy.sparse import csr_matrix
    except ImportError:
        raise BackendError(
            "sparse vectors need scipy, which is not installed; run `pip install 'modernbert[retrieval]'`"
        ) from None
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    ids = np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in rows)])
    weights = np.concatenate([np.zeros(0, np.float32), *(weights for _, weights in rows)])
    return csr_matrix((weights, ids, offsets), shape=(len(rows), width))
