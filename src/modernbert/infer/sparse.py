"""Sparse vectors by SPLADE: a masked language model's weight for each token of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import numpy as np
import torch
from numpy.typing import NDArray

from modernbert import hub
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import InputError
from modernbert.infer import loading, sentence_folder, sparse_folder
from modernbert.infer.arguments import check_count
from modernbert.infer.embedding import Role, choose_prompt
from modernbert.infer.encoder import Encoder
from modernbert.infer.runner import TorchRunner
from modernbert.infer.sparse_folder import SparseConfig, TokenWeights
from modernbert.infer.sparse_tasks import EmbedSparsely, Splade, TokenIds, matrix, weighted
from modernbert.model.heads import ModernBertForMaskedLM


class SparseOptions(TypedDict, total=False):
    """The options of `SparseEncoder.encode` and its kin.

    Attributes:
        prompt_name: Name of one of the model's prompts, put before each text.
        prompt: The prompt itself.
        max_active_dims: Numbers of each vector to keep, the largest; None: as the model's configuration says.
    """

    prompt_name: str | None
    prompt: str | None
    max_active_dims: int | None


class SparseEncoder:
    """A model that makes sparse vectors of queries and documents; `load` makes one.

    Args:
        encoder: A masked language model, ready for use.
        config: How vectors are made of its logits.
        queries: What makes queries without the model; None: they are made like documents.

    Raises:
        InputError: Another kind of model, or one loaded from an ONNX file.
    """

    def __init__(self, encoder: Encoder, config: SparseConfig, queries: TokenWeights | None = None) -> None:
        if encoder.architecture != ModernBertForMaskedLM.__name__ or not isinstance(
            encoder.runner, TorchRunner
        ):
            raise InputError(
                f"`{encoder.name}` is a `{encoder.architecture}`; sparse vectors need a "
                f"`{ModernBertForMaskedLM.__name__}` in torch; load a checkpoint with that head, by "
                "another backend than `onnx`"
            )
        self.encoder = encoder
        self.config = config
        self.queries = queries
        model = Splade(cast(ModernBertForMaskedLM, encoder.runner.model), config.activation)
        self._runner = TorchRunner(model, encoder.runner.precision)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str | None = None,
        dtype: str | torch.dtype = "auto",
        backend: str = "auto",
    ) -> SparseEncoder:
        """Load a model for use.

        Args:
            name: A folder or hub id of a sentence-transformers `SparseEncoder` on a ModernBERT, its queries
                inference-free or not; or of a masked language model, whose logits are then pooled.
            device: As for `modernbert.load`.
            dtype: As for `modernbert.load`.
            backend: As for `modernbert.load`, but for `onnx`.
        """
        found = sparse_folder.read(hub.find(name, patterns=sentence_folder.FILES))
        encoder = loading.load(found.encoder, device=device, dtype=dtype, backend=backend)
        return cls(encoder, found.config, found.queries)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.encoder.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens of the longest document, special ones counted."""
        return self.encoder.max_length

    @property
    def embedding_dim(self) -> int:
        """Columns of what `encode` gives: the model's vocabulary."""
        return self.config.texts.width

    def encode(self, inputs: str | Iterable[str], **options: Unpack[SparseOptions]) -> Any:
        """Make sparse vectors of texts, all of them by the model.

        Args:
            inputs: Text or texts; an iterator is read to its end.
            **options: See `SparseOptions`.

        Returns:
            fp32 `scipy.sparse.csr_matrix` `[N, V]`, a row a text, none of its numbers below 0.

        Raises:
            InputError: What is no string, or a number out of range.
            ConfigError: An unknown prompt.
            BackendError: scipy is not installed.
        """
        return self._encode(inputs, None, **options)

    def encode_query(self, inputs: str | Iterable[str], **options: Unpack[SparseOptions]) -> Any:
        """Make vectors of queries, with the prompt `query`; without the model, if it has `queries`."""
        return self._encode(inputs, "query", **options)

    def encode_document(self, inputs: str | Iterable[str], **options: Unpack[SparseOptions]) -> Any:
        """Make vectors of documents: `encode` with the model's prompt `document`."""
        return self._encode(inputs, "document", **options)

    def similarity(self, queries: Any, documents: Any) -> NDArray[np.float32]:
        """Return the dot product of each row of one matrix with each of the other, fp32 `[N, M]`."""
        products: NDArray[np.float32] = (queries @ documents.T).toarray()
        return products

    def decode(self, vector: Any, top_k: int | None = None) -> list[tuple[str, float]]:
        """Name what a vector is made of.

        Args:
            vector: One row of what `encode` gives.
            top_k: How many tokens; None: all that have a weight.

        Returns:
            Tokens as the vocabulary spells them (`Ġ` is a space) with their weights, the largest first.

        Raises:
            InputError: Several rows, or a number out of range.
        """
        if vector.shape != (1, self.embedding_dim):
            raise InputError(
                f"the vector has the shape {list(vector.shape)}; it must be one row, "
                f"[1, {self.embedding_dim}]; take one of several as `vectors[0]`"
            )
        if top_k is not None:
            check_count("top_k", top_k)
        order = np.argsort(-vector.data, kind="stable")
        tokens = [self.tokenizer.backend.id_to_token(int(id)) for id in vector.indices[order]]
        named = zip(tokens, map(float, vector.data[order]))
        # A model may have spare rows, which no token has.
        return [(token, weight) for token, weight in named if token is not None][:top_k]

    def with_idf(self, documents: Iterable[str]) -> SparseEncoder:
        """Return the same model with inference-free queries: each token once, by how rare it is in documents.

        The weight of a token in n of N documents is ln(1 + (N - n + 0.5) / (n + 0.5)), the IDF of BM25.

        Args:
            documents: Texts like those that will be searched; read once.

        Raises:
            InputError: What is no string, or no text at all.
        """
        texts = self.encoder.texts
        counts, number = np.zeros(self.embedding_dim), 0
        for ids in self.encoder.engine.run(TokenIds(texts), documents):
            counts[ids] += 1
            number += 1
        if not number:
            raise InputError("there are no documents to count tokens in; there must be one at least")
        weights = np.log1p((number - counts + 0.5) / (counts + 0.5)).astype(np.float32)
        return SparseEncoder(self.encoder, self.config, TokenWeights(texts=texts, weights=weights))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that sentence-transformers' `SparseEncoder` loads too.

        Raises:
            InputError: The weights are in a form that only serves inference; load with `backend="portable"`.
            StorageError: The disk is full or not writable.
        """
        sparse_folder.write(Path(folder), self.config, self.queries, self.encoder.save_checkpoint)

    def _encode(
        self,
        inputs: str | Iterable[str],
        role: Role | None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        max_active_dims: int | None = None,
    ) -> Any:
        chosen = choose_prompt(self.config.texts, prompt=prompt, prompt_name=prompt_name, role=role)
        most = self.config.max_active_dims if max_active_dims is None else max_active_dims
        if most is not None:
            check_count("max_active_dims", most)
        engine, texts = self.encoder.engine, [inputs] if isinstance(inputs, str) else inputs
        if role == "query" and self.queries is not None:
            tokens = engine.run(TokenIds(self.queries.texts, prompt=chosen), texts)
            rows = [weighted(ids, self.queries.weights, most) for ids in tokens]
        else:
            task = EmbedSparsely(self._runner, self.encoder.texts, prompt=chosen, max_active_dims=most)
            rows = list(engine.run(task, texts))
        return matrix(rows, self.embedding_dim)
