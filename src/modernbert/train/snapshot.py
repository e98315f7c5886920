"""The optimizer and the random states of a run as named tensors in one safetensors file, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modernbert.errors import CheckpointError
from modernbert.model.tensor_files import read_tensors_and_notes, write_tensors
from modernbert.train.dtensor import placed_like

_CPU, _CUDA = "rng/cpu", "rng/cuda"
_NOTE = "optimizer"


@dataclass(frozen=True)
class Snapshot:
    """What the file holds, checked against a model and its optimizer but not yet given to them.

    Attributes:
        optimizer_state: By the index of the parameter, as `Optimizer.state_dict` has it.
        random_states: Of the CPU, and of the CUDA device if the model was on one; none of several processes.
    """

    optimizer_state: dict[int, dict[str, Any]]
    random_states: dict[str, Tensor]

    def apply(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Set the optimizer's state, not its options, and the random states."""
        optimizer.load_state_dict({**optimizer.state_dict(), "state": self.optimizer_state})
        if _CPU in self.random_states:
            torch.set_rng_state(self.random_states[_CPU])
        device = _device(model)
        if device.type == "cuda" and _CUDA in self.random_states:
            torch.cuda.set_rng_state(self.random_states[_CUDA], device)


def write_snapshot(file: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write an optimizer's state, each tensor as `<parameter>/<state>`, and the random states.

    Args:
        file: Where to.
        model: Names the parameters.
        optimizer: Over parameters of `model`.

    Raises:
        CheckpointError: The optimizer has a parameter that the model has not.
        OSError: The file could not be written.
    """
    tensors, note = named_state(model, optimizer)
    tensors[_CPU] = torch.get_rng_state()
    device = _device(model)
    if device.type == "cuda":
        tensors[_CUDA] = torch.cuda.get_rng_state(device)
    # One note, as safetensors writes several in any order, and equal states should be equal files.
    write_tensors(file, tensors, {_NOTE: json.dumps(note)})


def read_snapshot(file: Path, model: nn.Module, optimizer: Optimizer) -> Snapshot:
    """Read what `write_snapshot` wrote, and check that it fits.

    Args:
        file: From where.
        model: Names the parameters; is not changed.
        optimizer: Of the same class, over the same parameters; is not changed.

    Raises:
        CheckpointError: The file is missing or cut short, or is of another optimizer.
    """
    tensors, notes = read_tensors_and_notes(file)
    named = optimized(model, optimizer)
    note = json.loads(notes.get(_NOTE, "{}"))
    check_optimizer(file, note, optimizer, list(named))
    if _CPU not in tensors:
        raise CheckpointError(
            f"`{file}` has no `{_CPU}`; it must hold the random state; use another checkpoint"
        )
    random_states = {name: tensors.pop(name) for name in (_CPU, _CUDA) if name in tensors}
    for full, tensor in tensors.items():
        param = param_of(file, full, tensor.shape, named)
        tensors[full] = placed_like(tensor, param) if tensor.ndim else tensor
    return Snapshot(indexed_state(file, {**tensors, **note["numbers"]}, named), random_states)


def named_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's tensors as `<parameter>/<state>`, and a note of all else, which JSON can hold.

    Raises:
        CheckpointError: The optimizer has a parameter that the model has not.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    named = optimized(model, optimizer)
    for name, param in named.items():
        for key, value in optimizer.state.get(param, {}).items():
            kind: dict[str, Any] = tensors if isinstance(value, Tensor) else numbers
            kind[f"{name}/{key}"] = value
    return tensors, {"class": type(optimizer).__name__, "parameters": list(named), "numbers": numbers}


def indexed_state(
    source: Path, values: Mapping[str, Any], named: Mapping[str, nn.Parameter]
) -> dict[int, dict[str, Any]]:
    """Return what was saved as `<parameter>/<state>` by the index of the parameter.

    Raises:
        CheckpointError: Something is of no parameter.
    """
    indices = {name: index for index, name in enumerate(named)}
    state: dict[int, dict[str, Any]] = {}
    for full, value in values.items():
        param_of(source, full, (), named)
        name, _, key = full.rpartition("/")
        state.setdefault(indices[name], {})[key] = value
    return state


def check_optimizer(file: Path, note: Mapping[str, Any], optimizer: Optimizer, names: list[str]) -> None:
    """Make sure that the note of a saved optimizer's class and parameters is of this one.

    Raises:
        CheckpointError: It is of another.
    """
    if not note:
        raise CheckpointError(
            f"`{file}` has no note `{_NOTE}`; it must hold an optimizer's state; use another checkpoint"
        )
    kind = type(optimizer).__name__
    if note["class"] != kind:
        raise CheckpointError(
            f"`{file}` is of `{note['class']}`; it must be of `{kind}`; use that run's optimizer"
        )
    saved = note["parameters"]
    for name in [*saved, *names]:
        if (name in saved) != (name in names):
            where = "saved but not optimized now" if name in saved else "optimized now but not saved"
            raise CheckpointError(
                f"`{name}` of `{file}` is {where}; the parameters must be the same; use that run's"
            )


def param_of(
    source: Path, full: str, shape: Sequence[int], named: Mapping[str, nn.Parameter]
) -> nn.Parameter:
    """Return the parameter whose state `<parameter>/<state>` is; of its shape, or a scalar.

    Raises:
        CheckpointError: There is none, or it has another shape.
    """
    param = named.get(full.rpartition("/")[0])
    if param is None:
        raise CheckpointError(f"`{source}` holds `{full}`, of no parameter; use another checkpoint")
    if len(shape) and tuple(shape) != tuple(param.shape):
        raise CheckpointError(
            f"`{full}` in `{source}` has shape {tuple(shape)}; its parameter has {tuple(param.shape)}; "
            "use the settings of that run"
        )
    return param


def optimized(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return an optimizer's parameters, in its order, by their names in the model.

    Raises:
        CheckpointError: The optimizer has a parameter that the model has not.
    """
    names = {id(param): name for name, param in model.named_parameters()}
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        if id(param) not in names:
            raise CheckpointError(
                f"the optimizer has a parameter of shape {tuple(param.shape)} that the model has not; "
                "it must be the model's; build the optimizer after the model"
            )
    return {names[id(param)]: param for param in params}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
