"""What a run writes down to go on later, bit for bit: checkpoints, kept, ranked and restored.

A checkpoint is a folder that loads as a model, with the optimizer, the random states and the clock
beside the weights. safetensors and JSON only: reading one never runs code.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modernbert import files
from modernbert.errors import CheckpointError, ConfigError, InputError, StorageError
from modernbert.model import tensor_files
from modernbert.model.adapter_files import is_adapter, read_adapter
from modernbert.model.adapters import adapter_tensors
from modernbert.model.checkpoint import read_tensors
from modernbert.train.dtensor import placed_like
from modernbert.train.ranks import ALONE, Ranks
from modernbert.train.schedule import Clock
from modernbert.train.snapshot import read_snapshot, write_snapshot

FORMAT = 1
"""Version of what a checkpoint holds; a reader refuses any other."""

OPTIMIZER = "optimizer.safetensors"

PARTS = "optimizer"
"""Folder of the optimizer's parts, where several processes wrote the checkpoint."""

BESIDE = "beside.safetensors"
"""What a run trains beside the model, which the model's own file does not hold; only of some runs."""

Fill = Callable[[Path], None]
"""Writes into a checkpoint's folder, while it does not yet have its name."""

Commit = Callable[[Fill], None]
"""Makes a checkpoint of what that writes."""

_STATE_KEYS = ("bytes", "clock", "loader", "metrics", "order", "score")


@dataclass(frozen=True)
class RestoredState:
    """What a checkpoint says besides weights, optimizer and random states.

    Attributes:
        clock: How far the run was.
        loader_state: What the loader gave to `save`.
        metrics: What had been measured.
        score: How good it was.
    """

    clock: Clock
    loader_state: dict[str, Any]
    metrics: dict[str, Any]
    score: float | None


class Checkpoints:
    """The checkpoints of one run: the last few and the best few. One process writes, any may read.

    Args:
        folder: Holds a folder `step-…` for each checkpoint; made when needed.
        save_model: Writes a model's files into a folder that exists.
        keep_last: How many of the newest to keep, at least 1.
        keep_best: How many of the best to keep besides, by score, at least 0.

    Raises:
        ConfigError: A count out of its range.
    """

    def __init__(
        self,
        folder: Path,
        save_model: Callable[[nn.Module, Path], None],
        *,
        keep_last: int = 3,
        keep_best: int = 1,
    ) -> None:
        for key, count, least in (("keep_last", keep_last, 1), ("keep_best", keep_best, 0)):
            if count < least:
                raise ConfigError(f"`{key}` is {count}; it must be at least {least}")
        self.folder = folder
        self.keep_last = keep_last
        self.keep_best = keep_best
        self._save_model = save_model

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        clock: Clock,
        loader_state: Mapping[str, Any],
        metrics: Mapping[str, Any],
        settings_yaml: str,
        facts: Mapping[str, Any],
        score: float | None = None,
    ) -> Path:
        """Write a checkpoint, whole or not at all, then remove those that are not kept.

        One of the same step is replaced.

        Args:
            model: Goes through `save_model`, which must keep every bit of the weights.
            optimizer: Over parameters of `model`.
            clock: How far the run is.
            loader_state: Where to go on in the data; what JSON can hold, keys being strings.
            metrics: What was measured; what JSON can hold.
            settings_yaml: The run's settings as resolved, see `modernbert.config.dump`.
            facts: Machine, versions, commit; what JSON can hold.
            score: Lower is better; without one, or with one that is not finite, it is never among the best.

        Returns:
            The checkpoint's folder.

        Raises:
            StorageError: The disk is full or not writable; the message names the last good checkpoint.
        """
        state = {
            "clock": asdict(clock),
            "score": score if score is not None and math.isfinite(score) else None,
            "metrics": dict(metrics),
            "loader": dict(loader_state),
        }
        path = self.folder / f"step-{clock.step:09d}"
        self._save(path, model, optimizer, partial(self._commit, path, state, settings_yaml, dict(facts)))
        return path

    def finish(self) -> None:
        """Wait until everything that was saved is on the disk; see `save` for what it raises."""

    def _save(self, path: Path, model: nn.Module, optimizer: Optimizer, commit: Commit) -> None:
        """Fill a checkpoint's folder with model and optimizer, through `commit`."""

        def fill(folder: Path) -> None:
            self._save_model(model, folder)
            write_snapshot(folder / OPTIMIZER, model, optimizer)

        self._sweep()
        commit(fill)

    def _commit(
        self, path: Path, state: dict[str, Any], settings_yaml: str, facts: dict[str, Any], fill: Fill
    ) -> None:
        """Write a checkpoint's files beside what `fill` puts there, and remove those that are not kept."""
        order = max((entry.order for entry in self._entries()), default=0) + 1
        with self._last_good_named(path), _new_folder(path) as temporary:
            fill(temporary)
            files.write_text(temporary / "run.yaml", settings_yaml)
            files.write_json(temporary / "facts.json", facts)
            whole = {"format": FORMAT, "order": order, **state, "bytes": _sizes(temporary)}
            files.write_json(temporary / "state.json", whole)
        self._prune()

    def folders(self) -> list[Path]:
        """Return the whole checkpoints in the order in which they were saved."""
        return [entry.path for entry in self._entries()]

    def latest(self) -> Path | None:
        """Return the checkpoint saved last, which after a rollback is not that of the most steps."""
        return next(reversed(self.folders()), None)

    def ranked(self) -> list[Path]:
        """Return the checkpoints that have a score, the best first."""
        return [entry.path for entry in _ranked(self._entries())]

    def best(self) -> Path | None:
        """Return the checkpoint of the lowest score."""
        return next(iter(self.ranked()), None)

    def _entries(self) -> list[_Entry]:
        for successor in self.folder.glob(".step-*.new"):
            _promote(successor)  # its save was killed on the last step
        found = (_Entry.read(path) for path in self.folder.glob("step-*"))
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.order)

    def _prune(self) -> None:
        """Remove what is not kept. A rename comes first, so that no half of a checkpoint keeps its name."""
        entries = self._entries()
        kept = [*entries[-self.keep_last :], *_ranked(entries)[: self.keep_best]]
        for entry in entries:
            if entry not in kept:
                entry.path.rename(_hidden(entry.path, "removed"))
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a killed save or removal left behind; what cannot go now goes next time."""
        for leftover in self.folder.glob(".*step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @contextlib.contextmanager
    def _last_good_named(self, path: Path) -> Iterator[None]:
        try:
            with files.storage_errors(path):
                yield
        except StorageError as error:
            latest = self.latest()
            last = f"the last good checkpoint is `{latest}`" if latest else "there is no earlier checkpoint"
            raise StorageError(f"{error}; {last}") from error


def restore(folder: Path, model: nn.Module, optimizer: Optimizer, ranks: Ranks = ALONE) -> RestoredState:
    """Bring a model, its optimizer and the random states to where `Checkpoints.save` left them.

    How many processes wrote the checkpoint does not matter, nor how many read it.
    The optimizer's options (learning rate, betas …) stay as they are: they come from the settings.
    Nothing is changed unless every file is whole and the optimizer's fits.

    Args:
        folder: A checkpoint.
        model: Of the same shape, on any device.
        optimizer: Of the same class, over the same parameters.
        ranks: All call this together, each with its part of the model.

    Raises:
        CheckpointError: A file is missing, cut short or of another format, or does not fit.
    """
    state = _read_state(folder)
    if (folder / PARTS).is_dir():
        from modernbert.train.parts import read_parts  # and with it much that one process does not need

        snapshot = read_parts(folder / PARTS, model, optimizer, ranks)
    else:
        snapshot = read_snapshot(folder / OPTIMIZER, model, optimizer)
    load_weights(model, folder)
    snapshot.apply(model, optimizer)
    return RestoredState(Clock(**state["clock"]), state["loader"], state["metrics"], state["score"])


def read_clock(folder: Path) -> Clock:
    """Return how far the run was when a checkpoint was saved.

    Raises:
        CheckpointError: A file is missing, cut short or of another format.
    """
    return Clock(**_read_state(folder)["clock"])


def read_loader_state(folder: Path) -> dict[str, Any]:
    """Return what the loader gave to the `save` of a checkpoint.

    Raises:
        CheckpointError: A file is missing, cut short or of another format.
    """
    return dict(_read_state(folder)["loader"])


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy weights, by name, from a model's folder into a model, in place.

    Of tied weights one name is enough. Nothing is changed unless everything fits.

    Args:
        model: On any device. With an adapter if the folder holds one alone; what it adapts stays as it is.
        folder: Holds `model.safetensors`, or shards and their index, or `adapter_model.safetensors`; and
            perhaps `beside.safetensors`.

    Raises:
        CheckpointError: A file is missing or cut short; a tensor is missing, surplus or of another shape.
        InputError: The folder holds an adapter alone, and the model has none.
    """
    if is_adapter(folder):
        tensors, targets = read_adapter(folder), adapter_tensors(model)
    else:
        tensors, targets = read_tensors(folder), model.state_dict(keep_vars=True)
        if (folder / BESIDE).is_file():
            tensors |= tensor_files.read_tensors(folder / BESIDE)
    for name in tensors:
        if name not in targets:
            raise CheckpointError(
                f"`{folder}` holds `{name}`; the model has no such tensor; use the settings of that run"
            )
    present = {id(targets[name]) for name in tensors}
    for name, target in targets.items():
        if id(target) not in present:
            raise CheckpointError(
                f"`{folder}` holds no tensor `{name}`; the model needs it; use another checkpoint"
            )
    for name, tensor in tensors.items():
        check_like(folder, name, tensor, targets[name], remedy="use the settings of that run")
    with torch.no_grad():
        for name, tensor in tensors.items():
            targets[name].copy_(placed_like(tensor, targets[name]))


@dataclass(frozen=True)
class _Entry:
    """A whole checkpoint: where it is, after how many others it was saved, how good it is."""

    path: Path
    order: int
    score: float | None

    @classmethod
    def read(cls, path: Path) -> _Entry | None:
        """Return the checkpoint at `path`, or None if it is not whole."""
        try:
            state = _read_state(path)
        except CheckpointError:
            return None
        return cls(path, state["order"], state["score"])


def _ranked(entries: list[_Entry]) -> list[_Entry]:
    scored = [(entry.score, entry.order, entry) for entry in entries if entry.score is not None]
    return [entry for _, _, entry in sorted(scored, key=lambda item: item[:2])]


def _hidden(path: Path, why: str) -> Path:
    return path.with_name(f".{path.name}.{why}")


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path`, and that takes its place only when it is whole."""
    if not path.exists():
        with files.atomic_folder(path) as temporary:
            yield temporary
        return
    successor = _hidden(path, "new")
    with files.atomic_folder(successor) as temporary:
        yield temporary
    path.rename(_hidden(path, "removed"))
    _promote(successor)


def _promote(successor: Path) -> None:
    """Give a whole folder the name that it waits for, once that is free; whoever comes first does it."""
    path = successor.with_name(successor.name.removeprefix(".").removesuffix(".new"))
    if not path.exists():
        with contextlib.suppress(OSError):
            successor.rename(path)


def _sizes(folder: Path) -> dict[str, int]:
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in found}


def _read_state(folder: Path) -> dict[str, Any]:
    """Read `state.json`, and check that the files it names are whole."""
    file = folder / "state.json"
    try:
        state = files.read_json(file)
    except (InputError, OSError) as error:
        raise CheckpointError(
            f"{error}; `{folder}` must be a checkpoint of a run; give a folder `step-…`"
        ) from None
    version = state.get("format") if isinstance(state, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"`{file}` has `format` {version!r}; it must be {FORMAT}; use the release that wrote it"
        )
    for key in _STATE_KEYS:
        if key not in state:
            raise CheckpointError(f"`{file}` has no `{key}`; it must have one; use another checkpoint")
    clock = state["clock"]
    if not isinstance(clock, dict) or set(clock) != {field.name for field in fields(Clock)}:
        raise CheckpointError(f"`clock` in `{file}` is {clock!r}; it must be a clock; use another checkpoint")
    _check_sizes(folder, state["bytes"])
    return dict(state)


def _check_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(f"`{file}` {what}; it must have {size} bytes; use another checkpoint")


def check_like(folder: Path, name: str, found: Tensor, wanted: Tensor, *, remedy: str) -> None:
    """Make sure that a saved tensor has the shape and type of another.

    Raises:
        CheckpointError: It has not.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise CheckpointError(
            f"`{name}` in `{folder}` is {found.dtype} {tuple(found.shape)}; "
            f"it must be {wanted.dtype} {tuple(wanted.shape)}; {remedy}"
        )
