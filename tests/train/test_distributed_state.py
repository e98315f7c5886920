"""Checkpoints in parts, here of a group of one; `tests/recipes/test_distributed.py` has larger ones."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from modernbert import files
from modernbert.errors import CheckpointError, StorageError
from modernbert.train import distributed_state
from modernbert.train.distributed_state import SharedCheckpoints
from modernbert.train.parts import NOTE
from modernbert.train.ranks import Ranks
from modernbert.train.schedule import Clock
from modernbert.train.stable_adamw import StableAdamW
from modernbert.train.state import PARTS, restore


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(control=dist.new_group(backend="gloo"), saving=dist.new_group(backend="gloo"))
    dist.destroy_process_group()


def save_model(model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {name: param.detach() for name, param in model.named_parameters()}, folder / "model.safetensors"
    )


def build(width: int = 4) -> tuple[nn.Linear, StableAdamW]:
    torch.manual_seed(1)
    model = nn.Linear(3, width)
    return model, StableAdamW(model.parameters(), lr=0.01)


def train(model: nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((2, 3), float(step + 1))).square().sum().backward()
        optimizer.step()


class Run:
    """A small run that saves."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.model, self.optimizer = build()
        self.checkpoints = SharedCheckpoints(folder, save_model, ranks, self.copied)

    def copied(self) -> nn.Module:
        copy, _ = build()
        copy.load_state_dict(self.model.state_dict())
        return copy

    def save(self, step: int, **changes: Any) -> Path:
        given: dict[str, Any] = {"loader_state": {"next": 7}, "metrics": {}, "settings_yaml": "", "facts": {}}
        clock = Clock(step=step, tokens=100 * step)
        return self.checkpoints.save(self.model, self.optimizer, clock=clock, **{**given, **changes})


@pytest.fixture
def run(tmp_path: Path, ranks: Ranks) -> Run:
    return Run(tmp_path / "run", ranks)


def test_what_is_saved_is_what_was_then(run: Run, ranks: Ranks) -> None:
    """Though it is written while the run goes on."""
    train(run.model, run.optimizer, 3)
    path = run.save(3)
    train(run.model, run.optimizer, 4)
    run.checkpoints.finish()
    assert run.checkpoints.latest() == path
    assert {file.name for file in (path / PARTS).iterdir()} >= {NOTE}
    assert not list((path / PARTS).glob("*.distcp")), "no pickle"
    resumed, optimizer = build()
    state = restore(path, resumed, optimizer, ranks)
    assert (state.clock.step, state.loader_state) == (3, {"next": 7})
    train(resumed, optimizer, 4)
    for name, param in run.model.named_parameters():
        assert torch.equal(resumed.get_parameter(name), param)


def test_the_next_save_waits_for_the_last_and_only_the_kept_stay(run: Run) -> None:
    for step in range(1, 6):
        train(run.model, run.optimizer, 1)
        run.save(step)
    run.checkpoints.finish()
    names = sorted(path.name for path in run.checkpoints.folder.iterdir())
    assert names == ["step-000000003", "step-000000004", "step-000000005"]


def test_a_failed_save_is_told_by_the_next_call_and_leaves_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run.model, run.optimizer, 1)
    good = run.save(1)
    run.checkpoints.finish()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(distributed_state, "finish_writing", full)
    run.save(2)
    with pytest.raises(StorageError, match=f"the disk is full; .*; the last good checkpoint is `{good}`"):
        run.checkpoints.finish()
    run.checkpoints.finish()
    monkeypatch.undo()
    run.save(3)
    run.checkpoints.finish()
    assert sorted(path.name for path in run.checkpoints.folder.iterdir()) == [
        "step-000000001",
        "step-000000003",
    ]


def test_parts_that_do_not_fit_are_refused(run: Run, ranks: Ranks) -> None:
    train(run.model, run.optimizer, 1)
    path = run.save(1)
    run.checkpoints.finish()
    model, _ = build()
    with pytest.raises(CheckpointError, match="is of `StableAdamW`; it must be of `SGD`"):
        restore(path, model, torch.optim.SGD(model.parameters(), lr=0.1), ranks)
    wide, optimizer = build(width=5)
    with pytest.raises(CheckpointError, match=r"has shape \(4,.*; its parameter has \(5,"):
        restore(path, wide, optimizer, ranks)


def test_parts_that_are_damaged_are_noticed(run: Run, ranks: Ranks) -> None:
    train(run.model, run.optimizer, 1)
    path = run.save(1)
    run.checkpoints.finish()
    (part,) = (path / PARTS).glob("*.safetensors")
    content = part.read_bytes()
    part.write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match="it must have"):
        restore(path, *build(), ranks)
    assert run.checkpoints.latest() is None
    part.write_bytes(b"\xff" * len(content))  # of the right size
    with pytest.raises(CheckpointError, match=r"the optimizer's parts in .* cannot be read"):
        restore(path, *build(), ranks)
    (path / PARTS / NOTE).unlink()
    state = files.read_json(path / "state.json")
    files.write_json(
        path / "state.json",
        {**state, "bytes": {k: v for k, v in state["bytes"].items() if not k.endswith(NOTE)}},
    )
    with pytest.raises(CheckpointError, match="it must be beside the optimizer's parts"):
        restore(path, *build(), ranks)
