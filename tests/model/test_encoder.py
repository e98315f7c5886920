"""What the encoder promises beside parity: sizes, meta device, dropout, RoPE switch, first weights."""

from __future__ import annotations

import pytest
import torch

from modernbert.errors import ConfigError, InputError
from modernbert.layout import SequenceLayout, pack
from modernbert.model.config import EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise

TINY = EncoderConfig.preset("tiny")


@pytest.mark.parametrize(
    ("preset", "encoder", "masked_lm"),
    [("base", 149_014_272, 149_655_232), ("large", 394_781_696, 395_881_664)],
)
def test_published_parameter_counts(preset: str, encoder: int, masked_lm: int) -> None:
    config = EncoderConfig.preset(preset)
    with torch.device("meta"):
        models = ModernBertModel(config), ModernBertForMaskedLM(config)
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counts == [encoder, masked_lm] == [config.num_parameters(), config.num_parameters(head=True)]


def test_forward_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = ModernBertForMaskedLM(TINY)
    layout = SequenceLayout.of([70, 200], "meta")
    ids = torch.zeros(270, dtype=torch.int64, device="meta")
    assert model(ids, layout).shape == (270, TINY.vocab_size)


def test_dropout_acts_on_the_attention_output_in_training_only() -> None:
    torch.manual_seed(0)
    model = ModernBertModel(TINY)
    ids, layout = pack([[5, 6, 7, 8]])
    model.train()
    assert not torch.equal(model(ids, layout), model(ids, layout))
    model.eval()
    assert torch.equal(model(ids, layout), model(ids, layout))
    assert (
        {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {TINY.attn_out_dropout} == {0.1}
    )


def test_rope_thetas_change_the_layers_they_belong_to() -> None:
    torch.manual_seed(0)
    model = ModernBertModel(TINY).eval()
    ids, layout = pack([list(range(5, 60))])
    before = model(ids, layout)
    model.set_rope_thetas(global_rope_theta=TINY.global_rope_theta, local_rope_theta=TINY.local_rope_theta)
    assert torch.equal(model(ids, layout), before)
    assert model.config is TINY
    model.set_rope_thetas(global_rope_theta=10.0, local_rope_theta=TINY.local_rope_theta)
    assert {plan.rope_theta for plan in model.config.layer_plan if plan.window is None} == {10.0}
    assert not torch.allclose(model(ids, layout), before)


def test_dropout_on_the_attention_can_be_changed() -> None:
    torch.manual_seed(0)
    model = ModernBertModel(TINY)
    ids, layout = pack([list(range(5, 60))])
    expected = model.eval()(ids, layout)
    model.train().set_attn_out_dropout(0.5)
    assert not torch.allclose(model(ids, layout), expected)
    assert (model.config.attn_out_dropout, model.draws_in_layers) == (0.5, True)
    model.set_attn_out_dropout(0.0)
    assert torch.equal(model(ids, layout), expected)
    assert (model.config.attn_out_dropout, model.draws_in_layers) == (0.0, False)
    with pytest.raises(ConfigError, match=r"`attn_out_dropout` is 1\.0; it must be at least 0 and below 1"):
        model.set_attn_out_dropout(1.0)


def test_refuses_ids_that_do_not_fit_the_layout_and_sequences_beyond_the_limit() -> None:
    model = ModernBertModel(EncoderConfig.preset("tiny", max_position_embeddings=16))
    with pytest.raises(InputError, match=r"shape \(1, 4\); it must be \(4,\)"):
        model(torch.zeros(1, 4, dtype=torch.int64), SequenceLayout.of([4]))
    with pytest.raises(InputError, match="a sequence has 17 tokens; this model takes at most 16"):
        model(torch.zeros(17, dtype=torch.int64), SequenceLayout.of([17]))


def test_initial_weights_are_full_megatron() -> None:
    config = EncoderConfig.preset("17m", vocab_size=1024, pad_token_id=0, cls_token_id=1, sep_token_id=2)
    model = ModernBertForMaskedLM(config)
    initialise(model, seed=3)
    narrow = 0.02 / (2 * 7) ** 0.5
    # A normal of deviation s cut at two deviations has deviation 0.8796 s.
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.ndim == 1:
            assert (parameter == 1).all()
        else:
            std = narrow if ".Wo." in name else 0.02
            assert parameter.abs().max() <= 2 * std
            assert parameter.std().item() == pytest.approx(0.8796 * std, rel=0.02), name
            assert abs(parameter.mean().item()) < 0.02 * std


def test_initialisation_depends_on_the_seed_alone() -> None:
    first, second, other = (ModernBertForMaskedLM(TINY) for _ in range(3))
    initialise(first, seed=1)
    torch.rand(100)
    initialise(second, seed=1)
    initialise(other, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.dense.weight, other.head.dense.weight)
