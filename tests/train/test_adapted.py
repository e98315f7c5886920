"""Training a model that holds an adapter: what the optimizer sees, exact checkpoints, compiled layers."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch.optim import Optimizer

from modernbert.errors import CheckpointError, InputError
from modernbert.layout import pack
from modernbert.model.adapter_files import load_adapter, save_adapter
from modernbert.model.adapters import AdapterSettings, add_adapter
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.heads import ModernBertForSequenceClassification
from modernbert.model.init import initialise
from modernbert.train.objectives import Classes
from modernbert.train.optim import OptimizerSettings, build_optimizer, parameter_groups
from modernbert.train.schedule import Clock
from modernbert.train.state import Checkpoints, load_weights, restore
from tests.train.phases import phase as make_phase

OBJECTIVE = Classes(num_labels=3)
TEXTS = [[5, 6, 7], [8], list(range(20, 90))]


def build(kind: Any = "lora", *, dropout: float = 0.0, **settings: Any) -> Any:
    head = HeadConfig(labels=("a", "b", "c"))
    model = ModernBertForSequenceClassification(
        EncoderConfig.preset("tiny", attn_out_dropout=dropout, head=head)
    )
    initialise(model, seed=1)
    add_adapter(model, AdapterSettings(kind=kind, rank=4, dropout=dropout, **settings))
    return model.train()


def optimizer_of(model: Any) -> Optimizer:
    return torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=0.01)


def loss_of(model: Any) -> torch.Tensor:
    ids, layout = pack(TEXTS)
    loss, _ = OBJECTIVE.loss(model, ids, layout.worked_out(), torch.tensor([0, 2, 1]))
    return loss


def take_steps(model: Any, optimizer: Optimizer, count: int) -> list[float]:
    losses = []
    for _ in range(count):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["stable_adamw", "adamw", "muon"])
def test_optimizers_hold_what_is_trained_alone(name: Any) -> None:
    model = build("dora")
    phase = make_phase(learning_rate=1e-3)
    optimizer = build_optimizer(model, OptimizerSettings(name=name), phase)
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    trained = {id(param) for param in model.parameters() if param.requires_grad}
    assert held == trained
    frozen = {name: param.clone() for name, param in model.named_parameters() if not param.requires_grad}
    losses = take_steps(model, optimizer, 20)
    assert losses[-1] < 0.8 * losses[0]
    for part, param in model.named_parameters():
        assert part not in frozen or torch.equal(param, frozen[part])


def test_lengths_of_rows_do_not_decay_and_matrices_do() -> None:
    decay, no_decay = parameter_groups(build("dora"), weight_decay=0.1)
    assert {name.split(".")[-3] for name in decay["parameter_names"] if "lora" in name} == {
        "lora_A",
        "lora_B",
    }
    assert "model.layers.0.attn.Wqkv.lora_magnitude_vector.default.weight" in no_decay["parameter_names"]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_stopped_and_resumed_equals_never_stopped(kind: Any, tmp_path: Path) -> None:
    """With dropout. A checkpoint holds the adapter alone, and is an adapter for others."""
    torch.manual_seed(2)
    model = build(kind, dropout=0.2)
    optimizer = optimizer_of(model)
    checkpoints = Checkpoints(tmp_path, partial(save_adapter, base="some/base"))
    take_steps(model, optimizer, 3)
    folder = checkpoints.save(
        model,
        optimizer,
        clock=Clock(phase=0, phase_tokens=3, tokens=3, step=3),
        loader_state={},
        metrics={},
        settings_yaml="",
        facts={},
    )
    expected = take_steps(model, optimizer, 3)
    again = build(kind, dropout=0.2)
    resumed = optimizer_of(again)
    assert restore(folder, again, resumed).clock.step == 3
    assert take_steps(again, resumed, 3) == expected
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not (folder / "model.safetensors").exists()
    plain = ModernBertForSequenceClassification(model.config)
    initialise(plain, seed=1)
    load_adapter(plain, folder)


def test_weights_of_another_adapter_are_refused(tmp_path: Path) -> None:
    save_adapter(build(targets=("Wi",)), tmp_path, base="some/base")
    with pytest.raises(CheckpointError, match=r"holds no tensor `base_model.*Wqkv.lora_A.weight`; the model"):
        load_weights(build(), tmp_path)
    model = ModernBertForSequenceClassification(build().config)
    with pytest.raises(InputError, match="has no adapter; it must have one"):
        load_weights(model, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler stumbles over its own
def test_compiled_layers_train_the_same() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = build("lora")
    compiled = copy.deepcopy(model)
    compiled.model.compile_layers()
    losses = [take_steps(it, torch.optim.SGD(it.parameters(), lr=0.1), 3) for it in (model, compiled)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it did compile
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for (name, param), (_, other) in zip(model.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(other, param, rtol=1e-4, atol=1e-5, msg=name)
