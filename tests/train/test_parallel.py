"""What of the spread model one process can tell; `tests/recipes/test_distributed.py` has several."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch._dynamo

from modernbert.data.masking import MaskedBatch
from modernbert.errors import ConfigError
from modernbert.layout import pack
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.train.feed import stand_in
from modernbert.train.parallel import DistributionSettings, Spread
from modernbert.train.ranks import Ranks

CPU = torch.device("cpu")


def build(dropout: float = 0.0) -> ModernBertForMaskedLM:
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    config = EncoderConfig(vocab_size=32, window=3, pad_token_id=0, attn_out_dropout=dropout, **shape)
    model = ModernBertForMaskedLM(config)
    initialise(model, seed=1)
    return model.train()


def row() -> MaskedBatch:
    ids, layout = pack([list(range(5, 20)), list(range(9))])
    places = torch.tensor([1, 4, 9, 17])
    return MaskedBatch(ids, layout, places, ids[places])


def gradients(
    model: ModernBertForMaskedLM, settings: DistributionSettings | None, *, compiles: bool = False
) -> dict[str, torch.Tensor]:
    spread = Spread(model, device=CPU, settings=settings, compiles=compiles)
    torch.manual_seed(3)
    loss, _ = spread.loss(row())
    spread.backward(loss)
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_layers_computed_again_have_the_same_gradients(dropout: float) -> None:
    model = build(dropout)
    again = copy.deepcopy(model)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    again.model.layers[1].register_forward_pre_hook(count)
    expected = gradients(model, DistributionSettings())
    found = gradients(again, DistributionSettings(activation_checkpointing=True))
    assert calls == 2
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler stumbles over its own
@pytest.mark.parametrize("recomputes", [False, True])
def test_compiled_layers_have_the_same_gradients(recomputes: bool) -> None:
    settings = DistributionSettings(activation_checkpointing=recomputes)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = build()
    compiled = copy.deepcopy(model)
    expected = gradients(model, settings)
    found = gradients(compiled, settings, compiles=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it did compile
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_layers_in_fp8_learn_nearly_the_same() -> None:
    model = build()
    eighth = copy.deepcopy(model)
    spread = Spread(eighth, device=CPU, precision="bf16", uses_fp8=True)
    loss, _ = spread.loss(row())
    spread.backward(loss)
    plain = Spread(model, device=CPU, precision="bf16")
    expected, _ = plain.loss(row())
    plain.backward(expected)
    assert 0 < abs(loss.item() - expected.item()) < 0.01 * expected.item()
    assert eighth.state_dict().keys() == model.state_dict().keys()
    for (name, found), param in zip(eighth.named_parameters(), model.parameters(), strict=True):
        assert found.grad is not None
        assert param.grad is not None
        near = torch.nn.functional.cosine_similarity(found.grad.flatten(), param.grad.flatten(), dim=0)
        assert near > 0.95, name


def test_looking_at_a_model_does_not_change_how_it_is_trained() -> None:
    model = build()
    Spread(model, device=CPU, settings=DistributionSettings(activation_checkpointing=True))
    Spread(model, device=CPU)
    assert model.model.recomputes_layers


def test_a_stand_in_adds_nothing_but_has_all_gradients() -> None:
    model = build()
    spread = Spread(model, device=CPU)
    loss, correct = spread.loss(stand_in())
    spread.backward(loss)
    assert (loss.item(), correct.item()) == (0.0, 0)
    assert all(param.grad is not None and not param.grad.any() for param in model.parameters())


def test_alone_the_model_is_whole() -> None:
    model = build()
    spread = Spread(model, device=CPU, settings=DistributionSettings(strategy="fsdp"))
    assert spread.gathered() is model
    spread.settle()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "fsdp", "shard_ranks": 2}, "`shard_ranks` is 2 with strategy `fsdp`; it must be null"),
        ({"strategy": "hybrid", "shard_ranks": 0}, "`shard_ranks` is 0 with strategy `hybrid`"),
        ({"timeout_seconds": 0.0}, "`timeout_seconds` is 0.0; it must be above 0"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistributionSettings(**settings)


def test_processes_that_do_not_fit_the_settings_are_refused() -> None:
    uneven = DistributionSettings(strategy="hybrid", shard_ranks=3)
    with pytest.raises(ConfigError, match=r"`distribution.shard_ranks` is 3 .* and there are 2 processes"):
        Spread(build(), device=CPU, ranks=Ranks(size=2), settings=uneven)
