"""Several models of one shape made into one: their mean, plain or weighted, or a TIES merge (paper 2.2.2)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from modernbert import config, files
from modernbert.errors import CheckpointError, ConfigError, InputError
from modernbert.model.checkpoint import read_config, read_tensors
from modernbert.model.tensor_files import write_tensors
from modernbert.train.state import Checkpoints, check_like, read_clock

_COPIED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """How several models become one.

    Attributes:
        how: `mean`, as ModernBERT-base was made of its four checkpoints; `exponential`, a mean in which later
            models weigh more, for checkpoints of one run; `ties`, for models that went different ways from
            `base`, see `ties`.
        decay: For `exponential`: what a model weighs relative to the next one, above 0 and below 1.
        base: For `ties`: folder of the model that all of them began as.
        density: For `ties`: share of each model's changes that counts, above 0 and at most 1.

    Raises:
        ConfigError: A value out of range, or `base` where there is none or must be one.
    """

    how: Literal["mean", "exponential", "ties"] = "mean"
    decay: float = 0.5
    base: Path | None = None
    density: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ConfigError(f"`decay` is {self.decay}; it must be above 0 and below 1")
        if not 0 < self.density <= 1:
            raise ConfigError(f"`density` is {self.density}; it must be above 0 and at most 1")
        if (self.base is not None) != (self.how == "ties"):
            given = None if self.base is None else str(self.base)
            raise ConfigError(
                f"`base` is {given!r} and `how` is {self.how!r}; `ties` needs the folder of the model that "
                "all began as, and nothing else takes one"
            )


def merge_checkpoints(folders: Sequence[Path], output: Path, settings: MergeSettings | None = None) -> None:
    """Write a merge of several models as a new folder that loads as a model.

    Configuration and tokenizer are copied from the last folder.

    Args:
        folders: Folders of models, or of checkpoints, of the same `config.json`; in order of age, the newest
            last, where the merge is `exponential`.
        output: A folder that does not exist yet.
        settings: How; the plain mean by default.

    Raises:
        InputError: No folder.
        CheckpointError: A file is missing or cut short, or settings, names, shapes or types differ.
        StorageError: `output` exists, or the disk is full or not writable.
    """
    settings = settings or MergeSettings()
    if settings.base is not None:
        tensors = ties(folders, settings.base, density=settings.density)
    else:
        decay = settings.decay if settings.how == "exponential" else 1.0
        tensors = average(folders, [decay**age for age in reversed(range(len(folders)))])
    with files.atomic_folder(output) as temporary:
        write_tensors(temporary / "model.safetensors", tensors, {"format": "pt"})
        for name in _COPIED_FILES:
            if (folders[-1] / name).exists():
                shutil.copyfile(folders[-1] / name, temporary / name)


def best_and_last(checkpoints: Checkpoints, phase: int, num_best: int) -> list[Path]:
    """Return the best checkpoints of a phase and the newest of the run, which ModernBERT-base is the mean of.

    Args:
        checkpoints: Of a run that is in this phase or at its end.
        phase: Counted from 0.
        num_best: At most so many; those without a score are never among them.

    Returns:
        In the order in which they were saved, none twice.
    """
    newest = checkpoints.folders()[-1:]
    clocks = {folder: read_clock(folder) for folder in checkpoints.ranked()}
    # A checkpoint at a phase's border has the next phase's number, and none of its tokens.
    inside = [folder for folder, clock in clocks.items() if (clock.phase, clock.phase_tokens) > (phase, 0)]
    chosen = {*inside[:num_best], *newest}
    return [folder for folder in checkpoints.folders() if folder in chosen]


def average(folders: Sequence[Path], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Average the weights of several models in float64, tensor by tensor (paper 2.2.2).

    Args:
        folders: Folders of models, or of checkpoints, of the same `config.json`.
        weights: One for each folder, above 0; equal by default. They need not sum to 1.

    Returns:
        A tensor for each name, on the CPU, of the first folder's shape and type.

    Raises:
        InputError: No folder, or another number of weights than folders, or a weight that is not above 0.
        CheckpointError: A file is missing or cut short, or settings, names, shapes or types differ.
    """
    shares = _shares(folders, weights)
    models = _read(folders)
    return {name: _mean([tensors[name] for tensors in models], shares) for name in models[0]}


def ties(folders: Sequence[Path], base: Path, *, density: float = 0.2) -> dict[str, Tensor]:
    """Merge models that went different ways from one base, by TIES (Yadav et al. 2023; mmBERT).

    Of each model's changes since the base only the largest count, a share of `density` over all its tensors.
    Each weight then takes the direction of the larger sum of changes, and moves by the mean of the changes
    that go this way.

    Args:
        folders: See `average`.
        base: The model that all began as, of the same `config.json`.
        density: Above 0 and at most 1.

    Returns:
        See `average`.

    Raises:
        InputError: No folder.
        CheckpointError: See `average`.
    """
    _shares(folders, None)
    start, *models = _read([base, *folders])
    thresholds = [_threshold(tensors, start, density) for tensors in models]
    return {
        name: _ties(tensor, [tensors[name] for tensors in models], thresholds)
        for name, tensor in start.items()
    }


def _read(folders: Sequence[Path]) -> list[dict[str, Tensor]]:
    """Read models, mapped to memory, which must be of one shape."""
    models = [read_tensors(folder) for folder in folders]
    _check_configs(folders)
    first = models[0]
    for folder, tensors in zip(folders, models, strict=True):
        for name in sorted(first.keys() ^ tensors.keys()):
            raise CheckpointError(
                f"`{name}` is in only one of `{folders[0]}` and `{folder}`; both must hold it; "
                "merge checkpoints of one run"
            )
        for name, tensor in tensors.items():
            check_like(folder, name, tensor, first[name], remedy="merge checkpoints of one run")
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"`{name}` in `{folder}` is {tensor.dtype}; only floating point can be merged; "
                    "leave it out"
                )
    return models


def _check_configs(folders: Sequence[Path]) -> None:
    """Refuse models that compute differently with the same shapes, as those of other RoPE bases do."""
    first, *others = (config.to_tree(read_config(folder)) for folder in folders)
    for folder, other in zip(folders[1:], others, strict=True):
        if changes := config.differences(first, other):
            raise CheckpointError(
                f"`{folders[0]}` and `{folder}` differ in their settings ({', '.join(changes)}); they must "
                "have the same; merge checkpoints of one phase"
            )


def _shares(folders: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    if not folders:
        raise InputError("there is no checkpoint to merge; give at least one folder")
    shares = [1.0] * len(folders) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(folders):
        raise InputError(
            f"there are {len(shares)} weights for {len(folders)} folders; give one for each folder"
        )
    for share in shares:
        if not 0 < share < math.inf:
            raise InputError(
                f"a weight of the average is {share}; it must be above 0 and finite; leave that folder out"
            )
    return shares


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor.double(), alpha=share)
    return total.div_(sum(shares)).to(tensors[0].dtype)


def _threshold(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], density: float) -> float:
    """Return the size of a model's smallest change that still counts."""
    changes = torch.cat([_change(tensors[name], base[name]).abs().flatten() for name in base])
    num_kept = math.ceil(density * changes.numel())
    return changes.kthvalue(changes.numel() - num_kept + 1).values.item()


def _ties(base: Tensor, tensors: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    changes = [_change(tensor, base) for tensor in tensors]
    trimmed = torch.stack(
        [
            change.where(change.abs() >= threshold, 0.0)
            for change, threshold in zip(changes, thresholds, strict=True)
        ]
    ).double()
    agrees = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
    moved = trimmed.where(agrees, 0.0).sum(0) / agrees.sum(0).clamp_min(1)
    return (base.double() + moved).to(base.dtype)


def _change(tensor: Tensor, base: Tensor) -> Tensor:
    return tensor.float() - base.float()
