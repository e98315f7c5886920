"""LoRA and DoRA in our models: what is trained, what is computed, and what merging makes of it."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from modernbert.errors import BackendError, ConfigError, InputError
from modernbert.layout import pack
from modernbert.model.adapters import (
    AdapterSettings,
    adapter_tensors,
    add_adapter,
    blank_like,
    config_of,
    is_adapted,
    merged,
)
from modernbert.model.checkpoint import Pretrained
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.heads import HEADS
from modernbert.model.init import initialise

CONFIG = EncoderConfig.preset("tiny", attn_out_dropout=0.0, head=HeadConfig(labels=("a", "b", "c")))
BATCH = [[5, 6, 7], [8], list(range(20, 90))]
KINDS = ("lora", "dora")


def build(head: str = "ModernBertForSequenceClassification") -> Any:
    model = HEADS[head](CONFIG)
    initialise(model, seed=1)
    return model.eval()


def adapted(head: str = "ModernBertForSequenceClassification", **settings: Any) -> Any:
    """A model whose adapter and head are no longer what they were at first."""
    model = build(head)
    add_adapter(model, AdapterSettings(**{"rank": 4, "alpha": 8, **settings}))
    stir(model)
    return model.eval()


@torch.no_grad()
def stir(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_at_first_an_adapter_changes_nothing(head: str, kind: Any) -> None:
    model = build(head)
    before = copy.deepcopy(model)
    add_adapter(model, AdapterSettings(kind=kind))
    assert type(model) is type(before)
    assert is_adapted(model)
    assert not is_adapted(before)
    torch.testing.assert_close(model(*pack(BATCH)), before(*pack(BATCH)), rtol=0, atol=1e-5)


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_adapter_and_the_head_alone_are_trained() -> None:
    model = adapted(kind="dora", targets=("Wqkv", "attn.Wo"))
    layers = {f"model.layers.{i}.attn.{name}.lora_" for i in range(4) for name in ("Wqkv", "Wo")}
    parts = ("A.default.weight", "B.default.weight", "magnitude_vector.default.weight")
    ends = ("head.{}.dense.weight", "head.{}.norm.weight", "classifier.{}.weight", "classifier.{}.bias")
    head = {end.format("modules_to_save.default") for end in ends}
    assert trained_names(model) == {layer + part for layer in layers for part in parts} | head
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(*pack(BATCH)).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name


def test_parts_of_the_head_that_are_not_named_stay() -> None:
    names = trained_names(adapted(trained=("classifier",)))
    assert not any(name.startswith("head.") for name in names)
    assert "classifier.modules_to_save.default.weight" in names
    assert all(".lora_" in name for name in trained_names(adapted(trained=())))


def test_what_a_model_has_not_is_left_out() -> None:
    assert config_of(adapted("ModernBertForMaskedLM")).modules_to_save == ["head"]
    assert config_of(adapted("ModernBertModel")).modules_to_save is None


def test_the_seed_fixes_the_adapter_and_leaves_torchs_random_state() -> None:
    models = [build(), build(), build()]
    state = torch.get_rng_state()
    for model, seed in zip(models, (3, 3, 4)):
        add_adapter(model, AdapterSettings(), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(1)
        state = torch.get_rng_state()
    first, same, other = (adapter_tensors(model) for model in models)
    name = "base_model.model.model.layers.0.attn.Wqkv.lora_A.weight"
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_merged_computes_the_same_and_is_plain(head: str, kind: Any) -> None:
    model = adapted(head, kind=kind)
    expected = model(*pack(BATCH))
    assert (expected - build(head)(*pack(BATCH))).abs().max() > 0.01
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = merged(model)
    torch.testing.assert_close(plain(*pack(BATCH)), expected, rtol=1e-4, atol=2e-5)
    assert type(plain) is type(model)
    assert plain.state_dict().keys() == build(head).state_dict().keys()
    assert trained_names(plain) == {name for name, _ in plain.named_parameters()}
    assert not is_adapted(plain)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(*pack(BATCH)), expected)


def test_a_merged_masked_lm_is_still_tied() -> None:
    plain = merged(adapted("ModernBertForMaskedLM"))
    assert plain.decoder.weight is plain.model.embeddings.tok_embeddings.weight


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_one_takes_the_tensors(kind: Any) -> None:
    """As the first rank does with what it gathers, to save it."""
    model = adapted("ModernBertForMaskedLM", kind=kind)
    blank = blank_like(model)
    assert {parameter.device.type for parameter in blank.parameters()} == {"meta"}
    blank.load_state_dict(model.state_dict(), assign=True)
    blank.tie_weights()
    assert torch.equal(blank.eval()(*pack(BATCH)), model(*pack(BATCH)))
    assert trained_names(blank) == trained_names(model)
    assert adapter_tensors(blank).keys() == adapter_tensors(model).keys()


def test_a_blank_one_of_a_plain_model_is_plain() -> None:
    assert not is_adapted(blank_like(build()))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    model.train()(*pack(BATCH)).square().sum().backward()
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_computed_again_draw_the_same_dropout(kind: Any) -> None:
    """Although the model has none of its own."""
    model = adapted(kind=kind, dropout=0.5)
    expected = gradients(model)
    model.model.recomputes_layers = True
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())
    assert not merged(model).model.draws_in_layers


def test_a_second_adapter_is_refused() -> None:
    with pytest.raises(InputError, match="the model has an adapter already; it must have none; merge"):
        add_adapter(adapted(), AdapterSettings())


@pytest.mark.parametrize("use", [merged, adapter_tensors])
def test_a_model_without_one_is_refused(use: Any) -> None:
    with pytest.raises(InputError, match="the `ModernBertModel` has no adapter; it must have one; give it"):
        use(build("ModernBertModel"))


def test_a_checkpoint_of_it_is_refused(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="the model has an adapter, which a checkpoint cannot hold"):
        adapted().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BackendError, match=r"`peft` is not installed.*'modernbert\[finetune\]'"):
        add_adapter(build(), AdapterSettings())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "lore"}, "`kind` is 'lore'; did you mean `lora`"),
        ({"rank": 0}, "`rank` is 0; it must be at least 1"),
        ({"alpha": -1}, "`alpha` is -1; it must be at least 1"),
        ({"dropout": 1.0}, "`dropout` is 1.0; it must be at least 0 and below 1"),
        ({"targets": ()}, "`targets` is empty; it must name at least one of: Wqkv, Wo, Wi"),
        ({"targets": ("Wqv",)}, "`targets` has 'Wqv'; did you mean `Wqkv`"),
        ({"trained": ("clasifier",)}, "`trained` has 'clasifier'; did you mean `classifier`"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterSettings(**settings)


def test_the_weights_go_where_the_models_are() -> None:
    with torch.device("meta"):
        model: Pretrained = HEADS["ModernBertForTokenClassification"](replace(CONFIG, num_hidden_layers=4))
        add_adapter(model, AdapterSettings(kind="dora"))
    assert {tensor.device.type for tensor in adapter_tensors(model).values()} == {"meta"}
