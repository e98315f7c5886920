from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from modernbert import config
from modernbert.errors import ConfigError
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.train.muon import Muon
from modernbert.train.optim import (
    OptimizerSettings,
    build_optimizer,
    clip_gradients,
    follow_schedule,
    parameter_groups,
)
from modernbert.train.schedule import Clock, Schedule
from modernbert.train.stable_adamw import StableAdamW
from tests.train.phases import phase

CONFIG = EncoderConfig.preset("tiny", vocab_size=32, num_hidden_layers=2, layer_types=())
PHASES = (
    phase(name="first", sequence_length=64, batch_tokens=100, learning_rate=8e-4, warmup_tokens=200),
    phase(name="second", sequence_length=64, batch_tokens=100, learning_rate=2e-4, weight_decay=1e-6),
)


def tiny_model() -> ModernBertForMaskedLM:
    model = ModernBertForMaskedLM(CONFIG)
    initialise(model, seed=1)
    return model


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.norm = nn.LayerNorm(4, bias=False)
        self.dense = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.square = nn.Module()
        self.square.bias = nn.Parameter(torch.zeros(2, 2))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.decoder = nn.Linear(4, 6)
        self.decoder.weight = self.embedding.weight


def test_parameter_groups_are_those_published() -> None:
    model = Tied()
    decay, no_decay = parameter_groups(model, weight_decay=1e-5)
    assert (decay["name"], decay["weight_decay"]) == ("decay", 1e-5)
    assert decay["parameter_names"] == ["embedding.weight", "dense.weight"]
    assert decay["params"][0] is model.decoder.weight
    assert (no_decay["name"], no_decay["weight_decay"]) == ("no_decay", 0.0)
    assert no_decay["parameter_names"] == [
        "scale",
        "norm.weight",
        "dense.bias",
        "square.bias",
        "decoder.bias",
    ]
    named = dict(model.named_parameters())
    for group in (decay, no_decay):
        assert [named[name] for name in group["parameter_names"]] == group["params"]


def test_in_base_all_matrices_decay_and_nothing_else() -> None:
    with torch.device("meta"):
        model = ModernBertForMaskedLM(EncoderConfig.preset("base"))
    decay, no_decay = parameter_groups(model, weight_decay=1e-5)
    assert "model.embeddings.tok_embeddings.weight" in decay["parameter_names"]
    assert len(decay["parameter_names"]) == 1 + 4 * 22 + 1  # embedding, layers, the head's dense
    norms = {name for name in no_decay["parameter_names"] if name.endswith("norm.weight")}
    assert len(norms) == 2 * 22 - 1 + 3
    assert set(no_decay["parameter_names"]) - norms == {"decoder.bias"}


def test_groups_of_a_module_without_matrices_can_be_optimized() -> None:
    decay, no_decay = parameter_groups(nn.LayerNorm(3), weight_decay=1e-5)
    assert decay["params"] == []
    optimizer = StableAdamW([decay, no_decay], lr=0.1)
    assert [group["name"] for group in optimizer.param_groups] == ["decay", "no_decay"]


@pytest.mark.parametrize(
    ("name", "kind"), [("stable_adamw", StableAdamW), ("adamw", torch.optim.AdamW), ("muon", Muon)]
)
def test_an_optimizer_is_built_by_its_name(name: Any, kind: type) -> None:
    model = tiny_model()
    settings = OptimizerSettings(name=name, betas=(0.8, 0.9), eps=1e-7, momentum=0.7)
    optimizer = build_optimizer(model, settings, PHASES[0])
    assert type(optimizer) is kind
    params = [param for group in optimizer.param_groups for param in group["params"]]
    assert sorted(map(id, params)) == sorted(map(id, model.parameters()))
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.9), 1e-7, 8e-4)
        if name == "muon":
            assert group["momentum"] == 0.7


def test_muon_takes_the_hidden_matrices_and_knows_what_they_hold() -> None:
    hidden, decay, no_decay = build_optimizer(
        tiny_model(), OptimizerSettings(name="muon"), PHASES[0]
    ).param_groups
    counts = dict(zip(hidden["parameter_names"], hidden["num_matrices"], strict=True))
    layer = {"attn.Wqkv": 3, "attn.Wo": 1, "mlp.Wi": 2, "mlp.Wo": 1}
    assert counts == {"head.dense.weight": 1} | {
        f"model.layers.{index}.{name}.weight": count for index in (0, 1) for name, count in layer.items()
    }
    assert decay["parameter_names"] == ["model.embeddings.tok_embeddings.weight"]
    assert {param.ndim for param in no_decay["params"]} == {1}
    assert decay["num_matrices"] is no_decay["num_matrices"] is None


@pytest.mark.parametrize("name", ["stable_adamw", "adamw", "muon"])
def test_weight_decay_takes_the_same_share_with_each_optimizer(name: Any) -> None:
    """Where the gradient is zero and was so always, only weight decay moves a weight: by its share."""
    model = tiny_model()
    before = {key: param.detach().clone() for key, param in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerSettings(name=name), PHASES[0])
    setting = Schedule(PHASES).setting(Clock(step=20, phase=1, phase_tokens=0, tokens=1000))
    assert setting is not None
    setting = replace(setting, phase=replace(setting.phase, weight_decay=0.25), learning_rate=1e-4)
    follow_schedule(optimizer, setting)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for key, param in model.named_parameters():
        share = 0.25 * 1e-4 / 2e-4 if param.ndim > 1 else 0.0
        torch.testing.assert_close(param.detach(), before[key] * (1 - share))


@pytest.mark.parametrize("name", ["stable_adamw", "adamw", "muon"])
def test_an_optimizer_follows_the_schedule(name: Any) -> None:
    optimizer = build_optimizer(tiny_model(), OptimizerSettings(name=name), PHASES[0])
    schedule = Schedule(PHASES)
    for clock, rate, decay, peak in (
        (Clock(step=1, phase=0, phase_tokens=100, tokens=100), 4e-4, 1e-5, 8e-4),
        (Clock(step=9, phase=0, phase_tokens=900, tokens=900), 8e-4, 1e-5, 8e-4),
        (Clock(step=11, phase=1, phase_tokens=100, tokens=1100), 2e-4, 1e-6, 2e-4),
    ):
        setting = schedule.setting(clock)
        assert setting is not None
        follow_schedule(optimizer, setting)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(rate, rel=1e-6)
            expected = 0.0 if group["name"] == "no_decay" else decay
            if name == "stable_adamw":
                assert (group["weight_decay"], group["max_lr"]) == (expected, peak)
            else:
                assert group["weight_decay"] == expected / peak


@pytest.mark.parametrize("name", ["stable_adamw", "adamw", "muon"])
def test_each_optimizer_learns(name: Any) -> None:
    torch.manual_seed(3)
    model = nn.ModuleDict(
        {"attn": nn.ModuleDict({"Wo": nn.Linear(8, 8, bias=False)}), "out": nn.Linear(8, 3)}
    )
    optimizer = build_optimizer(model, OptimizerSettings(name=name), replace(PHASES[0], learning_rate=0.02))
    inputs, labels = torch.randn(64, 8), torch.randint(3, (64,))
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model["out"](model["attn"]["Wo"](inputs)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_gradients_are_clipped_where_it_is_wanted() -> None:
    model = tiny_model()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    norm = torch.nn.utils.get_total_norm([param.grad for param in model.parameters()]).item()
    clip_gradients(build_optimizer(model, OptimizerSettings(), PHASES[0]), norm)
    clip_gradients(
        build_optimizer(model, OptimizerSettings(name="adamw", clip_norm=2 * norm), PHASES[0]), norm
    )
    assert all(bool((param.grad == 1).all()) for param in model.parameters() if param.grad is not None)
    optimizer = build_optimizer(model, OptimizerSettings(name="adamw", clip_norm=0.5), PHASES[0])
    clip_gradients(optimizer, norm)
    clipped = torch.nn.utils.get_total_norm([param.grad for param in model.parameters()])
    assert clipped.item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "adam"}, "`name` is 'adam'; did you mean `adamw`?"),
        ({"betas": [0.9, 1.0]}, "`betas` is [0.9, 1.0]; it must be two numbers, each at least 0 and below 1"),
        ({"betas": [0.9]}, "`betas` is [0.9]; it must be two numbers"),
        ({"eps": 0}, "`eps` is 0.0; it must be above 0"),
        ({"momentum": 1}, "`momentum` is 1.0; it must be at least 0 and below 1"),
        (
            {"name": "muon", "fused": True},
            "`fused` is True; it must be false; only `stable_adamw` has a choice",
        ),
        ({"clip_norm": 1.0}, "`clip_norm` is 1.0; it must be above 0 with `adamw`, or null"),
        ({"name": "adamw", "clip_norm": 0}, "`clip_norm` is 0.0; it must be above 0 with `adamw`, or null"),
    ],
)
def test_a_setting_out_of_range_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(OptimizerSettings, tree)
    assert message in str(caught.value)
