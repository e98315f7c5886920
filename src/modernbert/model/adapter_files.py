"""Adapters in PEFT's form: `adapter_config.json` and `adapter_model.safetensors`, which name a base model.

Beside them lies the `config.json` of the whole model, as PEFT's files say neither its class nor its labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modernbert.errors import CheckpointError
from modernbert.files import atomic_file, write_json
from modernbert.model import checkpoint, heads, tensor_files
from modernbert.model.adapters import (
    adapter_tensors,
    class_of,
    config_of,
    import_peft,
    inject,
    merged,
)
from modernbert.model.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, Pretrained
from modernbert.model.dialects import to_published
from modernbert.model.fitting import EMBEDDING, some

_PREFIX = "base_model.model."
_TRANSFORMERS = "transformers.models.modernbert.modeling_modernbert"


def save_adapter(model: Pretrained, folder: str | Path, *, base: str | Path) -> None:
    """Write a model's adapter, and the parts of its head that were trained, for PEFT to load.

    Args:
        model: With an adapter, whole on this process.
        folder: Made if it does not exist; its other files stay.
        base: Folder or hub id of the model that the adapter was added to.

    Raises:
        InputError: The model has no adapter.
        StorageError: The disk is full or not writable.
    """
    folder, kind = Path(folder), class_of(model).__name__
    tree = {
        **config_of(model).to_dict(),
        "base_model_name_or_path": str(base),
        "inference_mode": True,
        "auto_mapping": {"base_model_class": kind, "parent_library": _TRANSFORMERS},
    }
    tree = {key: sorted(value) if isinstance(value, set) else value for key, value in tree.items()}
    # All is written under other names first; leaving the stack renames the weights, then the others.
    with contextlib.ExitStack() as stack:
        write_json(stack.enter_context(atomic_file(folder / CONFIG)), to_published(model.config, kind))
        write_json(stack.enter_context(atomic_file(folder / ADAPTER_CONFIG)), tree)
        file = stack.enter_context(atomic_file(folder / ADAPTER_WEIGHTS))
        tensors = {name: tensor.detach() for name, tensor in adapter_tensors(model).items()}
        tensor_files.write_tensors(file, tensors, {"format": "pt"})


def load_adapter(model: Pretrained, folder: str | Path) -> None:
    """Put a LoRA or DoRA adapter from a folder into a model, in place, to be used or trained on.

    Args:
        model: Like the one that the adapter was added to, with the same labels; without an adapter.
        folder: As `save_adapter` or PEFT writes it.

    Raises:
        CheckpointError: A file is missing or damaged, of another kind, or does not fit the model.
        InputError: The model has an adapter already.
        BackendError: PEFT is not installed.
    """
    folder = Path(folder)
    settings, tensors = read_adapter_settings(folder), read_adapter(folder)
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(
            f"`{folder / ADAPTER_CONFIG}` has `peft_type` {settings.get('peft_type')!r}; it must be 'LORA', "
            "which DoRA is too; merge another kind with PEFT, and load the result"
        )
    lora = import_peft().LoraConfig
    try:
        inject(model, lora.from_peft_type(**lora.check_kwargs(**{**settings, "inference_mode": False})))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"`{folder}` does not fit `{type(model).__name__}`: {error}; it must be an adapter of this "
            "model; check which model it was made for"
        ) from error
    own = adapter_tensors(model)
    _check_fits(folder, tensors, own)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, without the weights that it belongs to."""
    whole = ((folder / name).is_file() for name in (checkpoint.WEIGHTS, checkpoint.INDEX))
    return (folder / ADAPTER_WEIGHTS).is_file() and not any(whole)


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Read an adapter's weights, memory-mapped, under the names that they have in the file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    return tensor_files.read_tensors(folder / ADAPTER_WEIGHTS)


def read_adapter_settings(folder: Path) -> Mapping[str, Any]:
    """Read an adapter's `adapter_config.json`.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"`{folder}` holds no `{ADAPTER_CONFIG}`; an adapter has it beside its weights; check the path"
        )
    return checkpoint.read_mapping(folder / ADAPTER_CONFIG)


def base_of(folder: Path) -> tuple[str, str | None]:
    """Return the folder or hub id of an adapter's base model, and the revision that is meant on the hub.

    Raises:
        CheckpointError: The file is missing or damaged, or names none.
    """
    settings = read_adapter_settings(folder)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"`{folder / ADAPTER_CONFIG}` has `base_model_name_or_path` {base!r}; it must name the model "
            "that the adapter was added to; write its folder or hub id there"
        )
    return base, revision if isinstance(revision, str) else None


def load_merged(folder: Path, base: Path, *, dtype: torch.dtype | None = None) -> Pretrained:
    """Load an adapter's base model with the adapter merged into it, in evaluation mode.

    Args:
        folder: Of the adapter, with the `config.json` of the whole model.
        base: Folder of the base model, with any head or none.
        dtype: What the weights become; None: as the base has them.

    Raises:
        CheckpointError: A file is missing or damaged, or adapter and base do not fit each other.
        BackendError: PEFT is not installed.
    """
    with torch.device("meta"):
        model = heads.class_of(folder)(checkpoint.read_config(folder))
    tensors = checkpoint.read_tensors(base)
    if EMBEDDING in model.state_dict() and EMBEDDING not in tensors:
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    # Already now, lest a head be drawn and lamented that the adapter is about to bring.
    brought = {name.removeprefix(_PREFIX): tensor for name, tensor in read_adapter(folder).items()}
    tensors.update({name: tensor for name, tensor in brought.items() if ".lora_" not in name})
    source = checkpoint.weights_file(base)
    checkpoint.load(model, tensors, source=source, dtype=dtype, device="cpu", may_draw_head=True)
    load_adapter(model, folder)
    return merged(model).eval()


def _check_fits(folder: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    faults = []
    missing, surplus = [n for n in wanted if n not in tensors], [n for n in tensors if n not in wanted]
    if missing:
        faults.append(f"it lacks {some(missing)}")
    if surplus:
        faults.append(f"it has {some(surplus)} too many")
    for name, tensor in wanted.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            faults.append(
                f"it has `{name}` as {list(tensors[name].shape)}, which must be {list(tensor.shape)}"
            )
    if faults:
        raise CheckpointError(
            f"`{folder / ADAPTER_WEIGHTS}` does not fit the model: {', and '.join(faults[:3])}; adapter and "
            "model must be of one shape and have the same labels; check both"
        )
