"""Folders of sentence-transformers: `modules.json`, and a folder for each module after the encoder.

What is written here is for all readers at once: the type names and keys of the years before version 6,
which version 6 and others (text-embeddings-inference, infinity) understand too, and version 6's own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modernbert.errors import CheckpointError, ConfigError, InputError
from modernbert.files import atomic_file, read_json, write_json
from modernbert.infer.embedding_head import ACTIVATIONS, DenseConfig, EmbeddingConfig, EmbeddingHead
from modernbert.model.checkpoint import ADAPTER_WEIGHTS, DOWNLOADED, WEIGHTS, read_config
from modernbert.model.tensor_files import read_tensors, write_tensors

logger = logging.getLogger(__name__)

MODULES = "modules.json"
FILES = (*DOWNLOADED, "*/model*.safetensors", ADAPTER_WEIGHTS)
"""Names of what such a folder holds, for a download."""

MODEL = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
_CONFIG = "config.json"
_TOKENIZER = "tokenizer_config.json"
_OURS = "sentence_transformers."
_TYPE = "sentence_transformers.models."
_KIND = "SentenceTransformer"
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")

# Key of the old dialect, name in the new one, name in this package; in the order in which several are joined.
_POOLING = (
    ("pooling_mode_cls_token", "cls", "cls"),
    ("pooling_mode_max_tokens", "max", "max"),
    ("pooling_mode_mean_tokens", "mean", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", None),
    ("pooling_mode_weightedmean_tokens", "weightedmean", "weighted"),
    ("pooling_mode_lasttoken", "lasttoken", "last"),
)
# A tokenizer without a limit says so with a number beyond all sense.
_NO_LIMIT = 10**9

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class SentenceFolder:
    """What such a folder holds.

    Attributes:
        encoder: The folder of the encoder's checkpoint and tokenizer: the folder itself, or one in it.
        head: What follows the encoder.
    """

    encoder: Path
    head: EmbeddingHead


def read(folder: Path) -> SentenceFolder:
    """Read a folder, but not its encoder.

    Where nothing says how to embed, the tokens are averaged: in a folder without `modules.json`, and in that
    of another kind of model, such as a `CrossEncoder`.

    Raises:
        CheckpointError: A file is missing or damaged, or a module is not implemented here.
    """
    try:
        return _read(folder)
    except ConfigError as error:
        raise CheckpointError(f"`{folder}` does not describe an embedding model: {error}") from error


def write(folder: Path, head: EmbeddingHead) -> None:
    """Make a sentence-transformers folder of one that holds an encoder and its tokenizer.

    Args:
        folder: Where both were saved with `save_pretrained`.
        head: What follows the encoder.

    Raises:
        CheckpointError: There is no encoder.
        StorageError: The disk is full or not writable.
    """
    config, modules = head.config, ["Transformer", "Pooling"]
    limit = config.max_seq_length or read_config(folder).max_position_embeddings  # some insist on a number
    write_json(folder / "1_Pooling" / _CONFIG, _pooling_tree(config))
    for layer, linear in zip(config.dense, head.dense):
        path = folder / f"{len(modules)}_Dense"
        write_json(path / _CONFIG, _dense_tree(layer))
        with atomic_file(path / WEIGHTS) as file:
            write_tensors(file, {f"linear.{name}": w for name, w in linear.state_dict().items()}, {})
        modules.append("Dense")
    if config.normalize:
        (folder / f"{len(modules)}_Normalize").mkdir(exist_ok=True)
        modules.append("Normalize")
    write_json(folder / MODEL, model_tree(config))
    write_json(folder / TRANSFORMER, {"max_seq_length": limit, "do_lower_case": False})
    # Last, as it is what makes a folder one of these.
    write_json(folder / MODULES, [module_tree(index, _TYPE + kind) for index, kind in enumerate(modules)])


def _read(folder: Path) -> SentenceFolder:
    if not (folder / MODULES).is_file():
        return _averaged(folder)
    about = read_tree(folder / MODEL, dict) if (folder / MODEL).is_file() else {}  # younger than the format
    modules = read_modules(folder / MODULES)
    if modules and about.get("model_type", _KIND) != _KIND:
        return _averaged(modules[0][1])
    _check_modules(modules, folder / MODULES)
    kinds, paths = [kind for kind, _ in modules], [path for _, path in modules]
    dense = [path for kind, path in zip(kinds, paths) if kind == "Dense"]
    config = EmbeddingConfig(
        **_read_pooling(paths[1] / _CONFIG),
        dense=tuple(_read_dense(path / _CONFIG) for path in dense),
        normalize=kinds[-1] == "Normalize",
        max_seq_length=read_max_length(paths[0]),
        **read_about(about, folder / MODEL),
    )
    width = read_config(paths[0]).hidden_size
    if width != config.width:
        raise CheckpointError(
            f"`{paths[1] / _CONFIG}` pools vectors of width {config.width}, but the encoder's are of "
            f"{width}; they must agree; correct the file"
        )
    head = EmbeddingHead(config)
    for linear, path in zip(head.dense, dense):
        _load_dense(linear, path / WEIGHTS)
    return SentenceFolder(paths[0], head.eval())


def _averaged(encoder: Path) -> SentenceFolder:
    logger.info("`%s` does not say how to embed: embeddings are the mean over all tokens", encoder)
    width, limit = read_config(encoder).hidden_size, read_max_length(encoder)
    return SentenceFolder(encoder, EmbeddingHead(EmbeddingConfig(width=width, max_seq_length=limit)).eval())


def read_modules(path: Path) -> list[tuple[str, Path]]:
    """Return the type and folder of each module; of a type of sentence-transformers, its last name."""
    entries = [checked(entry, dict, "module", path) for entry in read_tree(path, list)]
    return [(kind_of(entry.get("type")), inside(path, str(entry.get("path", "")))) for entry in entries]


def kind_of(module_type: Any) -> str:
    """Return the last name of a type of sentence-transformers, whose versions move them; others whole."""
    kind = str(module_type)
    return kind.rsplit(".", 1)[-1] if kind.startswith(_OURS) else kind


def inside(path: Path, place: str) -> Path:
    """Return the folder that the file `path` names as `place`."""
    if Path(place).is_absolute() or ".." in Path(place).parts:
        raise CheckpointError(f"`{path}` names `{place}`; a module must lie in the folder; get it again")
    return path.parent / place


def _check_modules(modules: list[tuple[str, Path]], path: Path) -> None:
    kinds = [kind for kind, _ in modules]
    for kind in kinds:
        if kind not in _KINDS:
            raise CheckpointError(
                f"`{path}` has a module `{kind}`, which this package does not implement; it must be one of: "
                f"{', '.join(_KINDS)} of sentence-transformers; choose another model"
            )
    if kinds[:2] != ["Transformer", "Pooling"] or "Normalize" in kinds[2:-1]:
        raise CheckpointError(
            f"`{path}` lists {', '.join(kinds) or 'nothing'}; it must list a Transformer, a Pooling, any "
            "number of Dense and at most one Normalize, in this order; choose another model"
        )


def _read_pooling(path: Path) -> dict[str, Any]:
    tree = read_tree(path, dict)
    named = tree.get("pooling_mode")
    modes = [named] if isinstance(named, str) else named
    if modes is None:  # the dialect before version 6; with none of its keys the mean is meant
        modes = [new for old, new, _ in _POOLING if tree.get(old)] or ["mean"]
    ours = {new: name for _, new, name in _POOLING}
    for mode in modes:
        if ours.get(mode) is None:
            raise CheckpointError(
                f"`{path}` pools by `{mode}`, which this package does not implement; it must be one of: "
                f"{', '.join(new for new, name in ours.items() if name)}; choose another model"
            )
    width = tree.get("embedding_dimension", tree.get("word_embedding_dimension"))
    return {
        "width": checked(width, int, "embedding_dimension", path),
        "pooling": tuple(ours[mode] for mode in modes),
        "include_prompt": checked(tree.get("include_prompt", True), bool, "include_prompt", path),
    }


def _read_dense(path: Path) -> DenseConfig:
    tree = read_tree(path, dict)
    takes = tree.get("module_input_name", "sentence_embedding")
    gives = tree.get("module_output_name") or takes
    if tree.get("use_residual") or {takes, gives} != {"sentence_embedding"}:
        raise CheckpointError(
            f"`{path}` is a Dense with a residual, or on token embeddings; this package implements plain "
            "ones on the pooled vector; choose another model"
        )
    activation = str(tree.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rsplit(".", 1)[-1]
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise CheckpointError(
            f"`{path}` has the activation `{activation}`; it must be one of: "
            f"{', '.join(f'torch.nn.{known}' for known in ACTIVATIONS)}; choose another model"
        )
    return DenseConfig(
        in_features=checked(tree.get("in_features"), int, "in_features", path),
        out_features=checked(tree.get("out_features"), int, "out_features", path),
        bias=checked(tree.get("bias", True), bool, "bias", path),
        activation=name,
    )


def _load_dense(linear: torch.nn.Module, path: Path) -> None:
    wanted = linear.state_dict()
    given = {name.removeprefix("linear."): tensor for name, tensor in read_tensors(path).items()}
    if _shapes(given) != _shapes(wanted):
        raise CheckpointError(
            f"`{path}` has tensors {_shapes(given)}; its `{_CONFIG}` wants {_shapes(wanted)}; both must be "
            "of one model; get them again"
        )
    linear.load_state_dict(given)


def read_about(tree: Tree, path: Path, *, similarity: str = "cosine") -> dict[str, Any]:
    """Read what concerns the whole model; `similarity` is what is meant where none is named."""
    prompts = checked(tree.get("prompts") or {}, dict, "prompts", path)
    return {
        "prompts": {str(name): str(text or "") for name, text in prompts.items()},
        "default_prompt_name": tree.get("default_prompt_name"),
        "similarity": tree.get("similarity_fn_name") or similarity,
        "truncate_dim": tree.get("truncate_dim"),
    }


def read_max_length(encoder: Path) -> int | None:
    """Return the longest sequence: what the module says, or else the tokenizer, as version 6 leaves it to."""
    path, words = encoder / TRANSFORMER, encoder / _TOKENIZER
    tree = read_tree(path, dict) if path.is_file() else {}
    if tree.get("do_lower_case"):
        raise CheckpointError(
            f"`{path}` has `do_lower_case`; ModernBERT's texts keep their case; set it to false, or choose "
            "another model"
        )
    limit = tree.get("max_seq_length")
    if limit is None and words.is_file():
        limit = read_tree(words, dict).get("model_max_length")
    return int(limit) if isinstance(limit, int | float) and limit < _NO_LIMIT else None


def _pooling_tree(config: EmbeddingConfig) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "word_embedding_dimension": config.width,  # version 6 reads the old name of `embedding_dimension`
        **{old: ours in config.pooling for old, _, ours in _POOLING},
        "include_prompt": config.include_prompt,
    }
    named = [new for mode in config.pooling for _, new, ours in _POOLING if ours == mode]
    if len(named) == 1:
        tree["pooling_mode"] = named[0]
    elif named != [new for old, new, _ in _POOLING if tree[old]]:
        tree["pooling_mode"] = named  # an order that the flags cannot tell; older readers stop at a list
    return tree


def _dense_tree(layer: DenseConfig) -> dict[str, Any]:
    kind = ACTIVATIONS[layer.activation]
    return {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "bias": layer.bias,
        "activation_function": f"{kind.__module__}.{kind.__name__}",
    }


def model_tree(config: EmbeddingConfig, kind: str = _KIND) -> dict[str, Any]:
    """Return what is written of a whole model; `kind` is the class that loads it."""
    tree = {
        "model_type": kind,
        "__version__": {"pytorch": torch.__version__},
        "prompts": dict(config.prompts),
        "default_prompt_name": config.default_prompt_name,
        "similarity_fn_name": config.similarity,
    }
    return tree if config.truncate_dim is None else {**tree, "truncate_dim": config.truncate_dim}


def module_tree(index: int, module_type: str) -> dict[str, Any]:
    """Return a module's entry in `MODULES`; all but the first have a folder of their own."""
    path = f"{index}_{kind_of(module_type)}" if index else ""
    return {"idx": index, "name": str(index), "path": path, "type": module_type}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensors[name].shape) for name in sorted(tensors)}


def read_tree(path: Path, kind: type) -> Any:
    """Read a JSON file whose content is of type `kind`.

    Raises:
        CheckpointError: It is missing, damaged, or something else.
    """
    try:
        return checked(read_json(path), kind, "content", path)
    except InputError as error:
        raise CheckpointError(str(error)) from error


def checked(value: Any, kind: type, name: str, path: Path) -> Any:
    """Return a value of the file `path`, which must be of type `kind`."""
    if not isinstance(value, kind):
        raise CheckpointError(f"`{path}` has `{name}` {value!r}; it must be of type {kind.__name__}")
    return value
