"""An optimizer's state as parts that the ranks write side by side, for any other number of ranks to read.

PyTorch's distributed checkpoints carry it, in their safetensors form: no pickle here either.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer

from modernbert import files
from modernbert.errors import CheckpointError, InputError
from modernbert.train.dtensor import is_split
from modernbert.train.ranks import Ranks
from modernbert.train.snapshot import (
    Snapshot,
    check_optimizer,
    indexed_state,
    named_state,
    optimized,
    param_of,
)

NOTE = "optimizer.json"
"""Among the parts: class, parameters, and what of the state is no tensor."""


def begin_writing(
    folder: Path, model: nn.Module, optimizer: Optimizer, ranks: Ranks
) -> tuple[Future[Any], dict[str, Any]]:
    """Copy this rank's part of an optimizer's state, and begin to write it in a thread.

    All ranks must call it. The optimizer may go on at once.

    Args:
        folder: Is made; the same on all ranks.
        model: Names the parameters.
        optimizer: Over parameters of `model`.
        ranks: Their `saving` group is in use until the future is done.

    Returns:
        What is done when all ranks have written; and the note, to be written beside the parts.
    """
    tensors, note = named_state(model, optimizer)
    # What every rank has whole is written by one of them, in turn; of a sharded tensor each writes its shard.
    own = {
        name: tensor
        for place, (name, tensor) in enumerate(tensors.items())
        if is_split(tensor) or place % ranks.size == ranks.rank
    }
    future = async_save(
        own,
        storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
        process_group=ranks.saving,
    )
    return cast(Future[Any], future), note


def finish_writing(future: Future[Any]) -> None:
    """Wait for what `begin_writing` began.

    Raises:
        OSError: A rank could not write.
    """
    try:
        future.result()
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, OSError):
                raise cause from None
        raise


def read_parts(folder: Path, model: nn.Module, optimizer: Optimizer, ranks: Ranks) -> Snapshot:
    """Read of an optimizer's state what this rank needs.

    Args:
        folder: Where `begin_writing` wrote, and the note.
        model: Names the parameters, which say what this rank needs; is not changed.
        optimizer: Of the same class, over the same parameters; is not changed.
        ranks: All must call it.

    Raises:
        CheckpointError: A part is missing or damaged, or of another optimizer.
    """
    named = optimized(model, optimizer)
    note = _read_note(folder / NOTE)
    check_optimizer(folder / NOTE, note, optimizer, list(named))
    try:
        reader = HuggingFaceStorageReader(str(folder))
        found = reader.read_metadata().state_dict_metadata
        tensors = {full: _empty(folder, full, entry, named) for full, entry in found.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process")
            load(tensors, storage_reader=reader, process_group=ranks.control, no_dist=ranks.size == 1)
    except (OSError, SafetensorError, CheckpointException) as error:
        raise CheckpointError(
            f"the optimizer's parts in `{folder}` cannot be read ({error}); they must be whole; use another "
            "checkpoint"
        ) from error
    return Snapshot(indexed_state(folder, {**tensors, **note["numbers"]}, named), {})


def _read_note(file: Path) -> Mapping[str, Any]:
    try:
        return cast(Mapping[str, Any], files.read_json(file))
    except InputError as error:
        raise CheckpointError(
            f"{error}; it must be beside the optimizer's parts; use another checkpoint"
        ) from None


def _empty(folder: Path, full: str, entry: Any, named: Mapping[str, nn.Parameter]) -> Tensor:
    """Return a tensor to read into: like its parameter, or a plain scalar."""
    param, dtype = param_of(folder, full, entry.size, named), entry.properties.dtype
    if not entry.size:
        return torch.zeros((), dtype=dtype)
    return torch.zeros_like(param.detach(), dtype=dtype)
