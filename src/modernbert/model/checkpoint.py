"""Checkpoints in the published form: `config.json` and safetensors, from a folder or the hub.

Parameter names are the published ones, so that other tools read what is written here, and the other
way round. Pickles are never read.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from modernbert import hub
from modernbert.errors import CheckpointError, InputError
from modernbert.files import atomic_file, read_json, storage_errors, write_json
from modernbert.model import tensor_files
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.dialects import from_published, to_published
from modernbert.model.fitting import EMBEDDING, TIED, fit, some
from modernbert.model.init import initialise

logger = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_SHARD_BYTES = 50 * 10**9

DOWNLOADED = ("*.json", "model*.safetensors")
"""Configuration, tokenizer and weights; never a pickle."""

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Pretrained(nn.Module):
    """A model that `from_pretrained` makes from a checkpoint and `save_pretrained` writes as one.

    Its constructor takes an `EncoderConfig` alone, and runs on the meta device.
    """

    config: EncoderConfig

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        new_head: HeadConfig | None = None,
        mapped: bool = False,
    ) -> Self:
        """Load a model, in evaluation mode.

        Args:
            name: A folder, or an id on the Hugging Face hub.
            revision: Branch, tag or commit on the hub; None: its main branch. A folder has none.
            cache_dir: Where downloads are kept; None: the hub's own cache.
            local_files_only: Take the files from the cache, and never go to the network.
            token: Access token of the hub; None or True: the one that `hf auth login` stored.
            dtype: What the weights become; None: as the file has them.
            device: Where the weights go; None: the CPU.
            new_head: Give the model a head with these settings, to train it, whatever head the checkpoint
                has. Its tensors are kept where they fit; the others are drawn from torch's seed, and named
                in a warning. None: the checkpoint's own head, which must be this class's.
            mapped: Leave the weights in the file, mapped to memory, where dtype and device allow: for who
                copies them anyway, and before the file can change.

        Raises:
            CheckpointError: Nothing found, or files that are damaged or do not fit the model.
        """
        folder = hub.find(
            name,
            patterns=DOWNLOADED,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        config = read_config(folder)
        if new_head is not None:
            config = replace(config, head=new_head)
        with torch.device("meta"):
            model = cls(config)
        load(
            model,
            read_tensors(folder),
            source=weights_file(folder),
            dtype=dtype,
            device=device,
            may_draw_head=new_head is not None,
            mapped=mapped,
        )
        return model.eval()

    def save_pretrained(self, folder: str | Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        """Write `config.json` and the weights to `folder`, which transformers and others can load.

        Args:
            folder: Made if it does not exist; its other files stay.
            max_shard_bytes: Weights beyond this size are split over several files.

        Raises:
            StorageError: The disk is full or not writable.
        """
        architecture = type(self).__name__
        save(
            self, Path(folder), config=self.config, architecture=architecture, max_shard_bytes=max_shard_bytes
        )

    def tie_weights(self) -> None:
        """Make parameters that share a tensor share it again, after new ones were assigned."""


def read_config(folder: Path) -> EncoderConfig:
    """Read a checkpoint's `config.json`, in either published dialect.

    Raises:
        CheckpointError: The file is missing, damaged, or describes what this package does not implement.
    """
    return from_published(_read_config_tree(folder), str(folder / CONFIG))


def read_architecture(folder: Path) -> str | None:
    """Return the name of the model's class that a checkpoint's `config.json` gives; None if it gives none.

    Raises:
        CheckpointError: The file is missing or damaged, or `architectures` is no list of names.
    """
    names = _read_config_tree(folder).get("architectures")
    if not names:
        return None
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise CheckpointError(
            f"`{folder / CONFIG}` has `architectures` {names!r}; it must be a list with the name of the "
            "model's class; correct the file"
        )
    return names[0]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read a checkpoint's weights, memory-mapped: single or sharded safetensors.

    Raises:
        CheckpointError: There are none, a shard is missing, or a file is damaged or a pickle.
    """
    path = weights_file(folder)
    return tensor_files.read_tensors(path) if path.name == WEIGHTS else _read_shards(path)


def weights_file(folder: Path) -> Path:
    """Return the file that holds a checkpoint's weights, or the index of their shards.

    Raises:
        CheckpointError: There is neither.
    """
    for path in (folder / WEIGHTS, folder / INDEX):
        if path.is_file():
            return path
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"`{folder}` holds {some(pickles)}, a pickle, which can run any code when it is read; it must "
            f"hold `{WEIGHTS}`; convert it with transformers, whose `save_pretrained` writes that file"
        )
    if (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"`{folder}` holds an adapter, `{ADAPTER_WEIGHTS}`, without its base model; it must hold "
            f"`{WEIGHTS}`; load it with `modernbert.load`, or add it to its base with `load_adapter`"
        )
    raise CheckpointError(
        f"`{folder}` holds neither `{WEIGHTS}` nor `{INDEX}`; it must hold one of them; check the path; a "
        "model published as a pickle only must be converted first"
    )


def load(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    may_draw_head: bool = False,
    mapped: bool = False,
) -> None:
    """Give a model the weights of a checkpoint, all of them and no others.

    A bare encoder takes the encoder out of a checkpoint with a head. The parameters are replaced, not
    filled: load before an optimizer holds them.

    Args:
        model: With parameters under their published names; may be on the meta device.
        tensors: By name, as `read_tensors` returns them.
        source: The file that they come from, for messages.
        dtype: What floating-point tensors become; None: as they are.
        device: Where they go; None: where they are.
        may_draw_head: Take of the checkpoint's head what fits, and draw the rest from torch's seed.
        mapped: Keep tensors that are already of this dtype and on this device, instead of copies.

    Raises:
        CheckpointError: Tensors are missing, left over or of another shape.
    """
    wanted, kind = model.state_dict(), type(model).__name__
    given, drawn = fit(tensors, wanted, model=kind, source=source, may_draw_head=may_draw_head)
    # Copied: parameters that are a mapped file would change with it, and need not be aligned as kernels like.
    owned = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None, copy=not mapped)
        for name, tensor in given.items()
        if name != TIED
    }
    if TIED in wanted:
        owned[TIED] = owned[EMBEDDING]
    model.load_state_dict(owned, strict=True, assign=True)
    if isinstance(model, Pretrained):
        model.tie_weights()
        if drawn:
            initialise(model, seed=torch.initial_seed(), names=drawn)
            logger.warning(
                "`%s` has no %s that fits `%s`; drawn anew, to be trained", source, some(drawn), kind
            )


def save(
    model: nn.Module,
    folder: Path,
    *,
    config: EncoderConfig,
    architecture: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model as a checkpoint. A failure leaves what was there before, whole.

    Args:
        model: With parameters under their published names.
        folder: Made if it does not exist; its other files stay, but weights of an earlier save go.
        config: What `config.json` says.
        architecture: Name of the class that transformers should load.
        max_shard_bytes: Weights beyond this size are split over several files.

    Raises:
        StorageError: The disk is full or not writable.
        InputError: `max_shard_bytes` is below 1, `folder` is a file, or the model has an adapter.
    """
    if max_shard_bytes < 1:
        raise InputError(f"`max_shard_bytes` is {max_shard_bytes}; it must be at least 1")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"`{folder}` is a file; it must be a folder or new; choose another name")
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items() if name != TIED}
    if any(".base_layer." in name for name in tensors):
        raise InputError(
            "the model has an adapter, which a checkpoint cannot hold; it must have none; save it with "
            "`save_adapter`, or `merged` into the weights"
        )
    files = _files(tensors, max_shard_bytes)
    trees = {CONFIG: to_published(config, architecture)}
    if len(files) > 1:
        trees[INDEX] = _index(files)
    # All is written under other names first. Leaving the stack renames the weights, then their index, then
    # the configuration; the old index goes before that, so that no reader takes new shards for old ones.
    with contextlib.ExitStack() as stack:
        for name, tree in trees.items():
            write_json(stack.enter_context(atomic_file(folder / name)), tree)
        for name, shard in files.items():
            tensor_files.write_tensors(
                stack.enter_context(atomic_file(folder / name)), shard, {"format": "pt"}
            )
        (folder / INDEX).unlink(missing_ok=True)
    _remove_weights_except(folder, {*files, *trees})


def _read_config_tree(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"`{folder}` holds no `{CONFIG}`; a checkpoint has `{CONFIG}` and `{WEIGHTS}`; check the path"
        )
    return read_mapping(path)


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
    """
    try:
        tree = read_json(path)
    except InputError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"`{path}` holds no mapping; it must be a JSON object; get the file again")
    return tree


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Read the tensors that an index assigns to files of its folder."""
    weight_map = read_mapping(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"`{index}` has no `weight_map` that names each tensor's file; get it again")
    files = sorted(set(weight_map.values()))
    outside = [file for file in files if Path(file).name != file]
    if outside:
        raise CheckpointError(f"`{index}` names {some(outside)}; shards must lie beside it; get it again")
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        raise CheckpointError(
            f"`{index}` names {some(absent)}; all shards must be there; get the missing ones again"
        )
    shards = {file: tensor_files.read_tensors(index.parent / file) for file in files}
    missing = [name for name, file in weight_map.items() if name not in shards[file]]
    if missing:
        raise CheckpointError(
            f"`{index}` assigns {some(missing)} to `{weight_map[missing[0]]}`, which lacks it; index and "
            "shards must be of one checkpoint; get all of them again"
        )
    return {name: shards[file][name] for name, file in weight_map.items()}


def _files(tensors: Mapping[str, Tensor], max_bytes: int) -> dict[str, dict[str, Tensor]]:
    """Divide tensors into files of at most `max_bytes`; one that is larger stands alone."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def _index(files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(t.nbytes for shard in files.values() for t in shard.values())},
        "weight_map": {name: file for file, shard in files.items() for name in shard},
    }


def _remove_weights_except(folder: Path, kept: set[str]) -> None:
    """Remove the weights of an earlier save, which a reader might take for these."""
    with storage_errors(folder):
        for path in list(folder.iterdir()):
            name = path.name
            if name not in kept and (name in (WEIGHTS, INDEX) or _SHARD.fullmatch(name)):
                path.unlink()
