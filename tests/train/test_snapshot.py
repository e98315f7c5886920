from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modernbert.errors import CheckpointError
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.train.optim import OptimizerSettings, build_optimizer, parameter_groups
from modernbert.train.snapshot import read_snapshot, write_snapshot
from modernbert.train.stable_adamw import StableAdamW
from tests.train.phases import phase


def build(width: int = 4, device: str = "cpu") -> tuple[nn.Linear, StableAdamW]:
    model = nn.Linear(3, width, device=device)
    return model, StableAdamW(parameter_groups(model, weight_decay=1e-3), lr=0.1)


def step(model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(2, 3, device=model.weight.device)).sum().backward()
    optimizer.step()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "optimizer.safetensors"


def test_tensors_are_named_by_parameter_and_state(file: Path) -> None:
    model, optimizer = build()
    step(model, optimizer)
    write_snapshot(file, model, optimizer)
    names = {f"{name}/{key}" for name in ("weight", "bias") for key in ("exp_avg", "exp_avg_sq")}
    assert load_file(file).keys() == names | {"rng/cpu"}


def test_an_optimizer_comes_back_bit_for_bit_and_without_the_file(file: Path) -> None:
    model, optimizer = build()
    step(model, optimizer)
    write_snapshot(file, model, optimizer)
    drawn = torch.rand(5)
    again, other = build()
    snapshot = read_snapshot(file, again, other)
    assert not other.state
    file.write_bytes(bytes(file.stat().st_size))
    snapshot.apply(again, other)
    assert torch.equal(torch.rand(5), drawn)
    for name, param in again.named_parameters():
        expected = optimizer.state[model.get_parameter(name)]
        assert other.state[param].keys() == expected.keys()
        assert other.state[param]["step"] == 1
        assert torch.equal(other.state[param]["exp_avg"], expected["exp_avg"])
        assert torch.equal(other.state[param]["exp_avg_sq"], expected["exp_avg_sq"])


@pytest.mark.parametrize("name", ["stable_adamw", "adamw", "muon"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_each_optimizer_goes_on_bit_for_bit(name: Any, device: str, file: Path) -> None:
    def build_and_step(steps: int) -> tuple[ModernBertForMaskedLM, torch.optim.Optimizer]:
        model = ModernBertForMaskedLM(EncoderConfig.preset("tiny", num_hidden_layers=1, layer_types=()))
        initialise(model.to(device), seed=1)
        optimizer = build_optimizer(model, OptimizerSettings(name=name), phase(weight_decay=1e-3))
        for step in range(steps):
            take(step, model, optimizer)
        return model, optimizer

    def take(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        generator = torch.Generator().manual_seed(step)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(device)
        optimizer.step()

    model, optimizer = build_and_step(3)
    write_snapshot(file, model, optimizer)
    again, resumed = build_and_step(0)
    again.load_state_dict(model.state_dict())
    read_snapshot(file, again, resumed).apply(again, resumed)
    for step in (3, 4):
        take(step, model, optimizer)
        take(step, again, resumed)
    for param, expected in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(param, expected)


def test_parameters_never_updated_have_no_state(file: Path) -> None:
    write_snapshot(file, *build())
    model, optimizer = build()
    step(model, optimizer)
    read_snapshot(file, model, optimizer).apply(model, optimizer)
    assert not optimizer.state


def test_an_optimizer_of_other_parameters_is_refused(file: Path) -> None:
    model, optimizer = build()
    write_snapshot(file, model, optimizer)
    with pytest.raises(CheckpointError, match=r"`bias` of .* is saved but not optimized now"):
        read_snapshot(file, model, StableAdamW([model.weight], lr=0.1))
    model.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(CheckpointError, match=r"`extra` of .* is optimized now but not saved"):
        read_snapshot(file, model, StableAdamW(model.parameters(), lr=0.1))
    with pytest.raises(
        CheckpointError, match=r"the optimizer has a parameter of shape \(4, 3\) that the model"
    ):
        write_snapshot(file, build()[0], optimizer)


def test_an_optimizer_of_another_kind_or_shape_is_refused(file: Path) -> None:
    model, optimizer = build()
    step(model, optimizer)
    write_snapshot(file, model, optimizer)
    with pytest.raises(CheckpointError, match="is of `StableAdamW`; it must be of `AdamW`"):
        read_snapshot(file, model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(
        CheckpointError, match=r"`bias/exp_avg` in .* has shape \(4,\); its parameter has \(5,\)"
    ):
        read_snapshot(file, *build(width=5))


NOTE = {"optimizer": '{"class": "StableAdamW", "parameters": ["weight", "bias"], "numbers": {}}'}


@pytest.mark.parametrize("left_out", ["optimizer", "rng/cpu"])
def test_a_file_without_what_it_must_hold_is_refused(left_out: str, file: Path) -> None:
    notes = {key: value for key, value in NOTE.items() if key != left_out}
    tensors = {"rng/cpu": torch.get_rng_state(), "weight/exp_avg": torch.zeros(4, 3)}
    tensors.pop(left_out, None)
    save_file(tensors, file, notes)
    with pytest.raises(CheckpointError, match=f"`{left_out}`"):
        read_snapshot(file, *build())


def test_a_tensor_of_no_parameter_is_refused(file: Path) -> None:
    save_file({"rng/cpu": torch.get_rng_state(), "more/exp_avg": torch.zeros(2)}, file, NOTE)
    with pytest.raises(CheckpointError, match="holds `more/exp_avg`, of no parameter"):
        read_snapshot(file, *build())


def test_a_file_that_is_missing_or_cut_short_is_named(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors` does not exist"):
        read_snapshot(file, *build())
    write_snapshot(file, *build())
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors` is not a whole safetensors file"):
        read_snapshot(file, *build())


@pytest.mark.gpu
def test_the_random_state_of_the_gpu_is_restored(file: Path) -> None:
    model, optimizer = build(device="cuda")
    step(model, optimizer)
    write_snapshot(file, model, optimizer)
    drawn = torch.rand(5, device="cuda")
    read_snapshot(file, model, optimizer).apply(model, optimizer)
    assert torch.equal(torch.rand(5, device="cuda"), drawn)
    assert optimizer.state[model.weight]["exp_avg"].is_cuda
