from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modernbert.errors import ConfigError
from modernbert.layout import pack
from modernbert.model.config import GLOBAL, LOCAL, EncoderConfig, HeadConfig, regular_layer_types
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.model.tiling import layer_map, places, resize

SMALL = EncoderConfig.preset(
    "tiny", vocab_size=32, hidden_size=32, num_attention_heads=4, intermediate_size=24, attn_out_dropout=0.0
)
LARGE = replace(
    SMALL, hidden_size=48, num_attention_heads=6, intermediate_size=40, num_hidden_layers=7, layer_types=()
)


def model_of(config: EncoderConfig, seed: int = 1) -> ModernBertForMaskedLM:
    """A model in which no two numbers are alike, norms and biases included."""
    model = ModernBertForMaskedLM(config)
    initialise(model, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model.eval()


def tile(weight: Tensor, rows: int, columns: int) -> Tensor:
    return weight[places(weight.shape[0], rows)][:, places(weight.shape[1], columns)]


def test_the_published_example() -> None:
    tiled = tile(torch.tensor([[1, 2], [3, 4]]), 4, 4)
    assert tiled.tolist() == [[4, 3, 4, 3], [2, 1, 2, 1], [4, 3, 4, 3], [2, 1, 2, 1]]


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size"])
def test_large_has_base_in_the_middle_and_its_repetition_around(key: str) -> None:
    base, large = (getattr(EncoderConfig.preset(name), key) for name in ("base", "large"))
    offset = {"hidden_size": 128, "intermediate_size": 736}[key]
    origins = places(base, large)
    assert origins[offset : offset + base].tolist() == list(range(base))
    assert origins.tolist() == [(place - offset) % base for place in range(large)]


@pytest.mark.parametrize("small", ["17m", "32m", "68m", "base"])
@pytest.mark.parametrize("large", ["68m", "base", "large", "1b"])
def test_heads_stay_whole_in_the_whole_ladder(small: str, large: str) -> None:
    old, new = EncoderConfig.preset(small), EncoderConfig.preset(large)
    if new.hidden_size <= old.hidden_size:
        return
    assert (new.hidden_size - old.hidden_size) // 2 % new.head_dim == 0
    heads = places(old.num_attention_heads, new.num_attention_heads)
    as_published = places(old.hidden_size, new.hidden_size).unflatten(0, (-1, new.head_dim))
    assert torch.equal(as_published[:, 0], heads * new.head_dim)


def test_the_published_map_of_layers() -> None:
    base, large = EncoderConfig.preset("base").layer_types, EncoderConfig.preset("large").layer_types
    found = layer_map(base, large)
    assert found == (
        *(0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10),
        *(11, 12, 13, 13, 14, 15, 16, 16, 17, 18, 19, 20, 20, 21),
    )
    changed = [i for i, j in enumerate(found) if large[i] != base[j]]
    assert changed == [3, 4, 6, 7, 8, 9, 11, 18, 19, 21, 23, 24]


@pytest.mark.parametrize(("source", "target"), [(22, 28), (28, 22), (28, 7), (7, 28), (1, 5), (10, 19)])
def test_types_can_be_kept(source: int, target: int) -> None:
    old, new = regular_layer_types(source), regular_layer_types(target)
    if source == 1:
        new = (GLOBAL,) * target
    found = layer_map(old, new, keep_types=True)
    assert [old[j] for j in found] == list(new)
    for kind in set(new):
        of_kind = [j for j, its in zip(found, new, strict=True) if its == kind]
        assert of_kind == sorted(of_kind)
    assert all(abs(j - i * source / target) <= 2 for i, j in enumerate(found))


def test_a_layer_map_stays_within_the_source() -> None:
    assert layer_map((GLOBAL,) * 2, (GLOBAL,) * 9)[-1] == 1


def test_fewer_layers_and_places_are_taken_in_strides() -> None:
    large, base = EncoderConfig.preset("large"), EncoderConfig.preset("base")
    assert layer_map(large.layer_types, base.layer_types)[:6] == (0, 1, 3, 4, 5, 6)
    assert places(12, 6).tolist() == [0, 2, 4, 6, 8, 10]
    assert places(16, 12).tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]
    assert places(7, 7).tolist() == list(range(7))


def test_each_part_of_a_fused_weight_is_tiled_by_itself() -> None:
    small, large = model_of(SMALL), model_of(LARGE, seed=2)
    resize(large, small, how="tile")
    origins = layer_map(SMALL.layer_types, LARGE.layer_types)
    for block, origin in zip(large.model.layers, origins, strict=True):
        source = small.model.layers[origin]
        for found, given in zip(block.attn.Wqkv.weight.chunk(3), source.attn.Wqkv.weight.chunk(3)):
            torch.testing.assert_close(found, tile(given, 48, 48), rtol=0, atol=0)
        for found, given in zip(block.mlp.Wi.weight.chunk(2), source.mlp.Wi.weight.chunk(2)):
            torch.testing.assert_close(found, tile(given, 40, 48), rtol=0, atol=0)
        torch.testing.assert_close(block.attn.Wo.weight, tile(source.attn.Wo.weight, 48, 48), rtol=0, atol=0)
        torch.testing.assert_close(block.mlp.Wo.weight, tile(source.mlp.Wo.weight, 48, 40), rtol=0, atol=0)
        assert torch.equal(block.mlp_norm.weight, source.mlp_norm.weight[places(32, 48)])


def test_the_rest_is_tiled_too_and_the_decoder_stays_tied() -> None:
    small, large = model_of(SMALL), model_of(LARGE, seed=2)
    resize(large, small, how="tile")
    columns = places(32, 48)
    embedding = large.model.embeddings.tok_embeddings.weight
    assert torch.equal(embedding, small.model.embeddings.tok_embeddings.weight[:, columns])
    assert large.decoder.weight is embedding
    assert torch.equal(large.decoder.bias, small.decoder.bias)
    assert torch.equal(large.model.embeddings.norm.weight, small.model.embeddings.norm.weight[columns])
    assert torch.equal(large.model.final_norm.weight, small.model.final_norm.weight[columns])
    assert torch.equal(large.head.norm.weight, small.head.norm.weight[columns])
    torch.testing.assert_close(large.head.dense.weight, tile(small.head.dense.weight, 48, 48), rtol=0, atol=0)


def test_a_layer_from_layer_0_gets_a_fresh_attention_norm() -> None:
    one = replace(SMALL, num_hidden_layers=1, layer_types=())
    large = model_of(LARGE)
    resize(large, model_of(one), how="tile")
    for block in large.model.layers[1:]:
        assert torch.equal(block.attn_norm.weight, torch.ones(48))


def test_shrinking_takes_whole_heads() -> None:
    large, small = model_of(LARGE), model_of(SMALL, seed=2)
    resize(small, large, how="shrink")
    origin = layer_map(LARGE.layer_types, SMALL.layer_types)[2]
    found = small.model.layers[2].attn.Wqkv.weight.unflatten(0, (3, 4, 8))
    given = large.model.layers[origin].attn.Wqkv.weight.unflatten(0, (3, 6, 8))
    assert torch.equal(found, given[:, [0, 1, 3, 4]][..., places(48, 32)])


def test_a_doubled_model_computes_what_the_small_model_computes() -> None:
    """With every part doubled and outputs halved, only the size changes: heads and halves lie right."""
    double = replace(SMALL, hidden_size=64, num_attention_heads=8, intermediate_size=48)
    small, large = model_of(SMALL), model_of(double)
    resize(large, small, how="tile")
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            if parameter.ndim == 2 and "tok_embeddings" not in name:
                parameter.mul_(0.5)  # each input is there twice
    ids, layout = pack([torch.arange(20), torch.arange(5, 17)])
    expected = small.model(ids, layout)
    torch.testing.assert_close(large.model(ids, layout), expected[:, places(32, 64)], rtol=1e-4, atol=1e-5)


def test_keeping_types_changes_only_which_layer_is_taken() -> None:
    small, large = model_of(SMALL), model_of(LARGE, seed=2)
    resize(large, small, how="tile", keep_layer_types=True)
    origins = layer_map(SMALL.layer_types, LARGE.layer_types, keep_types=True)
    assert origins != layer_map(SMALL.layer_types, LARGE.layer_types)
    for block, origin in zip(large.model.layers, origins, strict=True):
        given = small.model.layers[origin].mlp.Wo.weight
        torch.testing.assert_close(block.mlp.Wo.weight, tile(given, 48, 40), rtol=0, atol=0)


def test_a_bias_of_the_head_is_tiled() -> None:
    small, large = (model_of(replace(config, head=HeadConfig(bias=True))) for config in (SMALL, LARGE))
    resize(large, small, how="tile")
    assert torch.equal(large.head.dense.bias, small.head.dense.bias[places(32, 48)])


@pytest.mark.parametrize(
    ("changes", "how", "message"),
    [
        (
            {"vocab_size": 40},
            "tile",
            "`vocab_size` is 32 in the source and 40 in the model; it must be the same",
        ),
        ({"num_attention_heads": 3}, "tile", "`head_dim` is 8 in the source and 16 in the model"),
        ({}, "shrink", "`hidden_size` is 32 in the source and 48 in the model; to shrink it must be at most"),
        (
            {"num_hidden_layers": 2, "layer_types": ()},
            "tile",
            "`num_hidden_layers` is 4 in the source and 2 in the model; to tile it must be at least as much; "
            "shrink instead",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], how: str, message: str) -> None:
    model, source = (ModernBertForMaskedLM(config) for config in (replace(LARGE, **changes), SMALL))
    with pytest.raises(ConfigError) as caught:
        resize(model, source, how=how)
    assert message in str(caught.value)


def test_a_type_that_the_source_has_not_cannot_be_kept() -> None:
    with pytest.raises(ConfigError, match="the source has no layer of type `sliding_attention`"):
        layer_map((GLOBAL,), (GLOBAL, LOCAL), keep_types=True)
