"""Folders of sentence-transformers' `SparseEncoder`: a masked language model and its SPLADE pooling.

With inference-free queries, a `Router` holds the two as the route of documents, and as that of queries a
tokenizer with a weight for each token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError, ConfigError, did_you_mean
from modernbert.files import atomic_file, write_json
from modernbert.infer.embedding_head import EmbeddingConfig
from modernbert.infer.sentence_folder import (
    MODEL,
    MODULES,
    TRANSFORMER,
    checked,
    inside,
    kind_of,
    model_tree,
    module_tree,
    read_about,
    read_max_length,
    read_modules,
    read_tree,
)
from modernbert.infer.texts import Texts
from modernbert.model.checkpoint import CONFIG, WEIGHTS, read_config
from modernbert.model.config import EncoderConfig
from modernbert.model.tensor_files import read_tensors, write_tensors
from modernbert.ops.splade import ACTIVATIONS

_KIND = "SparseEncoder"
_ROUTER = "router_config.json"
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_POOLING = "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"
_STATIC = "sentence_transformers.sparse_encoder.modules.sparse_static_embedding.SparseStaticEmbedding"
_ROUTES = "sentence_transformers.base.modules.router.Router"
# By what version 6 calls it, and by what version 5 did.
_DOCUMENTS = (["Transformer", "SpladePooling"], ["MLMTransformer", "SpladePooling"])

Chain = list[tuple[str, Path]]
"""Type and folder of modules that follow each other."""


@dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """How a model makes sparse vectors.

    Attributes:
        activation: Of `modernbert.ops.splade.ACTIVATIONS`.
        max_active_dims: Numbers of a vector that are kept, the largest; None: all.
        texts: The width of the vectors, and the model's prompts.

    Raises:
        ConfigError: An unknown activation, a number below 1, or another similarity than the dot product.
    """

    activation: str = "relu"
    max_active_dims: int | None = None
    texts: EmbeddingConfig

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"unknown activation `{self.activation}`{did_you_mean(self.activation, ACTIVATIONS)}"
            )
        if self.max_active_dims is not None and self.max_active_dims < 1:
            raise ConfigError(f"`max_active_dims` is {self.max_active_dims}; it must be at least 1, or None")
        if self.texts.similarity != "dot":
            raise ConfigError(
                f"the similarity is `{self.texts.similarity}`; that of sparse vectors must be `dot`; "
                "correct it, or choose another model"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenWeights:
    """What makes queries without a model: a weight for each token of the vocabulary.

    Attributes:
        texts: Tokenizer and most tokens of a query.
        weights: fp32 `[V]`.
        is_frozen: Whether sentence-transformers, when it trains the model, leaves the weights as they are.
    """

    texts: Texts
    weights: NDArray[np.float32]
    is_frozen: bool = False


@dataclass(frozen=True, kw_only=True)
class SparseFolder:
    """What such a folder holds.

    Attributes:
        encoder: The folder of the masked language model and its tokenizer.
        config: How vectors are made.
        queries: What makes queries without the model; None: they are made like documents.
    """

    encoder: Path
    config: SparseConfig
    queries: TokenWeights | None


def read(folder: Path) -> SparseFolder:
    """Read a folder, but not its masked language model.

    One without `modules.json` is a checkpoint, whose logits sentence-transformers pools by default.

    Raises:
        CheckpointError: A file is missing or damaged, or a module is not implemented here.
    """
    try:
        return _read(folder)
    except ConfigError as error:
        raise CheckpointError(f"`{folder}` does not describe a sparse encoder: {error}") from error


def write(
    folder: Path,
    config: SparseConfig,
    queries: TokenWeights | None,
    save_checkpoint: Callable[[Path], None],
) -> None:
    """Write a folder that sentence-transformers loads.

    Args:
        folder: Made if it is missing.
        config: How vectors are made.
        queries: What makes queries without a model, if anything does.
        save_checkpoint: Writes the masked language model and its tokenizer into a folder.

    Raises:
        StorageError: The disk is full or not writable.
    """
    if queries is None:
        modules = [_TRANSFORMER, _POOLING]
        save_checkpoint(folder)
        _write_documents(folder, folder / module_tree(1, _POOLING)["path"], config)
    else:
        modules = [_ROUTES]
        _write_routes(folder, config, queries, save_checkpoint)
    tree = model_tree(config.texts, _KIND)
    if config.max_active_dims is not None:
        tree["max_active_dims"] = config.max_active_dims
    write_json(folder / MODEL, tree)
    # Last, as it is what makes a folder one of these.
    write_json(folder / MODULES, [module_tree(index, kind) for index, kind in enumerate(modules)])


def _read(folder: Path) -> SparseFolder:
    about = read_tree(folder / MODEL, dict) if (folder / MODEL).is_file() else {}
    documents: Chain = [("Transformer", folder)]
    queries: Chain | None = None
    if (folder / MODULES).is_file():
        documents, queries = _chains(folder / MODULES)
    encoder = documents[0][1]
    width = read_config(encoder).vocab_size
    max_active_dims = about.get("max_active_dims")
    config = SparseConfig(
        activation=_read_activation(documents[1][1] / CONFIG) if documents[1:] else "relu",
        max_active_dims=max_active_dims and checked(max_active_dims, int, "max_active_dims", folder / MODEL),
        texts=EmbeddingConfig(width=width, **read_about(about, folder / MODEL, similarity="dot")),
    )
    weights = None if queries is None else _read_weights(queries[0][1], read_config(encoder))
    return SparseFolder(encoder=encoder, config=config, queries=weights)


def _chains(path: Path) -> tuple[Chain, Chain | None]:
    """Return the modules that documents go through, and queries if they go another way."""
    modules = read_modules(path)
    kinds = [kind for kind, _ in modules]
    if kinds == ["Router"]:
        return _routes(modules[0][1] / _ROUTER)
    if kinds not in _DOCUMENTS:
        raise CheckpointError(
            f"`{path}` lists {', '.join(kinds) or 'nothing'}; a sparse encoder must have a Transformer and a "
            "SpladePooling, or a Router; choose another model"
        )
    return modules, None


def _routes(path: Path) -> tuple[Chain, Chain]:
    tree = read_tree(path, dict)
    types, structure = (checked(tree.get(name), dict, name, path) for name in ("types", "structure"))
    routes = {
        route: [
            (kind_of(types.get(name)), inside(path, str(name))) for name in checked(names, list, route, path)
        ]
        for route, names in structure.items()
    }
    kinds = {route: [kind for kind, _ in chain] for route, chain in routes.items()}
    has_mappings = bool((tree.get("parameters") or {}).get("route_mappings"))
    if (
        kinds.keys() != {"query", "document"}
        or kinds["query"] != ["SparseStaticEmbedding"]
        or kinds["document"] not in _DOCUMENTS
        or has_mappings
    ):
        raise CheckpointError(
            f"`{path}` has the routes {kinds}{' and mappings of them' if has_mappings else ''}; it must have "
            "`query`, a SparseStaticEmbedding, and `document`, a Transformer and a SpladePooling, and no "
            "mappings; choose another model"
        )
    return routes["document"], routes["query"]


def _read_activation(path: Path) -> str:
    tree = read_tree(path, dict)
    pooling = tree.get("pooling_strategy", "max")
    if pooling != "max":
        raise CheckpointError(
            f"`{path}` pools by `{pooling}`; it must be `max`, the one that this package implements; choose "
            "another model"
        )
    return str(tree.get("activation_function", "relu"))


def _read_weights(folder: Path, model: EncoderConfig) -> TokenWeights:
    tree = read_tree(folder / CONFIG, dict)
    if tree.get("path"):
        raise CheckpointError(
            f"`{folder / CONFIG}` has its weights in `{tree['path']}`; they must be in `{WEIGHTS}` beside "
            "it; load and save the model with sentence-transformers, which moves them"
        )
    tokenizer = Tokenizer.from_pretrained(folder)
    weight = read_tensors(folder / WEIGHTS).get("weight")
    if weight is None or weight.ndim != 1 or not tokenizer.vocab_size <= len(weight) <= model.vocab_size:
        raise CheckpointError(
            f"`{folder / WEIGHTS}` must have a tensor `weight` of {tokenizer.vocab_size:,} numbers, one for "
            f"each token, and no more than the {model.vocab_size:,} that documents have; its shape is "
            f"{None if weight is None else list(weight.shape)}; choose another model"
        )
    weights = np.zeros(model.vocab_size, np.float32)  # a model may have spare rows, which no token has
    weights[: len(weight)] = weight.float().numpy()
    return TokenWeights(
        texts=Texts(tokenizer, read_max_length(folder) or model.max_position_embeddings),
        weights=weights,
        is_frozen=checked(tree.get("frozen", False), bool, "frozen", folder / CONFIG),
    )


def _write_documents(encoder: Path, pooling: Path, config: SparseConfig) -> None:
    """Write what makes a checkpoint a module, and the pooling after it."""
    logits = {"text": {"method": "forward", "method_output_name": "logits"}}
    about = {
        "transformer_task": "fill-mask",
        "modality_config": logits,
        "module_output_name": "token_embeddings",
    }
    write_json(encoder / TRANSFORMER, about)
    write_json(
        pooling / CONFIG,
        {
            "pooling_strategy": "max",
            "activation_function": config.activation,
            "embedding_dimension": config.texts.width,
        },
    )


def _write_routes(
    folder: Path, config: SparseConfig, queries: TokenWeights, save_checkpoint: Callable[[Path], None]
) -> None:
    names = {
        f"{route}_{index}_{kind_of(kind)}": kind
        for route, kinds in {"query": [_STATIC], "document": [_TRANSFORMER, _POOLING]}.items()
        for index, kind in enumerate(kinds)
    }
    static, encoder, pooling = (folder / name for name in names)
    save_checkpoint(encoder)
    _write_documents(encoder, pooling, config)
    queries.texts.tokenizer.save_pretrained(static, model_max_length=queries.texts.max_length)
    with atomic_file(static / WEIGHTS) as file:
        weights = queries.weights[: queries.texts.tokenizer.vocab_size]  # as many as its reader expects
        write_tensors(file, {"weight": torch.from_numpy(weights)}, {})
    write_json(static / CONFIG, {"frozen": queries.is_frozen})
    structure: dict[str, list[str]] = {"query": [], "document": []}
    for name in names:
        structure[name.split("_")[0]].append(name)
    parameters: dict[str, Any] = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
    write_json(folder / _ROUTER, {"types": names, "structure": structure, "parameters": parameters})
