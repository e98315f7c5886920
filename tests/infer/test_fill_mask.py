"""Masks filled: like transformers' pipeline, each text as if alone, and every misuse told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, InputError, ModernBertError
from modernbert.infer import fill_mask
from modernbert.infer.fill_mask import FillMask, describe
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM

WORDS = ["capital", "river", "the", "of", "France", "is", "runs", "through", "a", "small", "town", "café"]
CORPUS = [" ".join(WORDS[(i * step) % len(WORDS)] for i in range(60)) + "." for step in (1, 5, 7, 11)]
CORPUS += [f"{a}{b} " * 4 for a in "bcdfg" for b in "aeiouvwxyz"]  # more pairs than are asked for
TOKENIZER = Tokenizer.train(CORPUS, vocab_size=384)

ONE = "The capital of [MASK] is a small town."
TWO = "[MASK] river runs through the [MASK], café!"
TEXTS = [ONE, TWO, "[MASK]", "a [MASK]", "through the town " * 9 + "[MASK].", "[MASK][MASK] [MASK]"]


def build(vocab_size: int = 384, **options: Any) -> ModernBertForMaskedLM:
    """A model whose random weights are far enough apart that every proposal has its own probability."""
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "pad_token_id": TOKENIZER.pad_id,
        "cls_token_id": TOKENIZER.cls_id,
        "sep_token_id": TOKENIZER.sep_id,
        "max_position_embeddings": 128,
    }
    torch.manual_seed(3)
    model = ModernBertForMaskedLM(EncoderConfig.preset("tiny", **settings, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def filler() -> FillMask:
    return FillMask(build(), TOKENIZER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and its tokenizer on disk."""
    path = tmp_path_factory.mktemp("model")
    build().save_pretrained(path)
    TOKENIZER.save_pretrained(path, model_max_length=128)
    return path


def assert_same(found: Any, expected: Any) -> None:
    """The same proposals in the same order, the scores up to rounding."""
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
        return
    assert found.keys() == expected.keys()
    assert found["score"] == pytest.approx(expected["score"], rel=1e-4)
    assert {**found, "score": 0} == {**expected, "score": 0}


class TestProposals:
    def test_for_one_mask(self, filler: FillMask) -> None:
        fills = filler(ONE)
        assert [list(fill) for fill in fills] == [["score", "token", "token_str", "sequence"]] * 5
        scores = [fill["score"] for fill in fills]
        assert scores == sorted(scores, reverse=True)
        for fill in fills:
            assert fill["token_str"] == TOKENIZER.decode([fill["token"]], skip_special=False)
            ids = [fill["token"] if id == TOKENIZER.mask_id else id for id in TOKENIZER.encode(ONE)]
            assert fill["sequence"] == TOKENIZER.decode(ids)

    def test_are_the_likeliest_of_the_whole_vocabulary(self, filler: FillMask) -> None:
        fills = filler(ONE, top_k=384)
        assert sorted(fill["token"] for fill in fills) == list(range(384))
        assert sum(fill["score"] for fill in fills) == pytest.approx(1, abs=1e-5)
        assert fills[:1] == filler(ONE, top_k=1)
        ids = torch.tensor(TOKENIZER.encode(ONE))
        with torch.no_grad():
            logits = filler.model(ids, SequenceLayout.of([len(ids)]))
        at_mask = logits[(ids == TOKENIZER.mask_id).nonzero().item()].softmax(dim=-1)
        for fill in fills[:10]:
            assert fill["score"] == pytest.approx(at_mask[fill["token"]].item(), rel=1e-4)

    def test_for_several_masks_each_is_filled_alone(self, filler: FillMask) -> None:
        first, second = filler(TWO, top_k=3)
        assert [len(first), len(second)] == [3, 3]
        for fill in first:
            assert fill["sequence"].startswith("[CLS]")
            assert fill["sequence"].endswith("[MASK], café![SEP]")
        for fill in second:
            assert fill["sequence"].startswith("[CLS][MASK] river runs through the")
        assert first != second

    def test_neighbouring_masks_stay_apart(self, filler: FillMask) -> None:
        fills = filler("[MASK][MASK] [MASK]", top_k=1)
        assert [fill["sequence"].count("[MASK]") for (fill,) in fills] == [2, 2, 2]


class TestSeveralTexts:
    def test_each_is_as_if_alone(self, filler: FillMask) -> None:
        assert_same(filler(TEXTS), [filler(text) for text in TEXTS])

    def test_a_list_gives_a_list(self, filler: FillMask) -> None:
        assert filler([]) == []
        assert_same(filler([ONE]), [filler(ONE)])
        assert_same(filler((ONE, TWO)), [filler(ONE), filler(TWO)])

    @pytest.mark.parametrize("limit", [1, 40, 10_000])
    def test_the_order_holds_when_they_are_parted(
        self, filler: FillMask, limit: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected, passes = [filler(text) for text in TEXTS], []
        monkeypatch.setattr(fill_mask, "TOKENS_AT_ONCE", limit)
        hook = filler.model.register_forward_hook(lambda _, given, __: passes.append(given[1].lengths))
        found = filler(TEXTS)
        hook.remove()
        assert_same(found, expected)
        assert [n for lengths in passes for n in lengths] == [
            len(ids) for ids in TOKENIZER.encode_batch(TEXTS)
        ]
        assert all(sum(lengths) <= limit or len(lengths) == 1 for lengths in passes)
        assert (len(passes) == 1) == (limit == 10_000)


class TestModel:
    def test_it_is_in_eval_mode(self) -> None:
        filler = FillMask(build(attn_out_dropout=0.5).train(), TOKENIZER)
        assert not filler.model.training
        assert filler(ONE) == filler(ONE)

    def test_rows_that_no_token_has_are_never_proposed(self) -> None:
        model = build(vocab_size=512)
        with torch.no_grad():
            model.decoder.bias[384:] = 3.0
        fills = FillMask(model, TOKENIZER)(ONE, top_k=384)
        assert sorted(fill["token"] for fill in fills) == list(range(384))
        assert sum(fill["score"] for fill in fills) < 0.5, "they have their share of the probability"

    def test_bf16_on_request(self, filler: FillMask) -> None:
        rough, exact = FillMask(filler.model, TOKENIZER, "bf16")(ONE), filler(ONE)
        assert rough[0]["score"] != exact[0]["score"]
        assert rough[0]["score"] == pytest.approx(exact[0]["score"], rel=0.1)


class TestRefusals:
    @pytest.mark.parametrize("text", ["", "no blank here", "[mask]"])
    def test_a_text_without_a_mask(self, filler: FillMask, text: str) -> None:
        with pytest.raises(InputError) as caught:
            filler([ONE, text])
        assert str(caught.value) == (
            f"`{text}` has no mask; it must have at least one; write [MASK] where a word is missing"
        )

    def test_a_text_that_is_too_long(self, filler: FillMask) -> None:
        text = "[MASK] " + "the town " * 100
        length = len(TOKENIZER.encode(text))
        with pytest.raises(InputError) as caught:
            filler(text)
        assert str(caught.value) == (
            f"`{text[:60]}…` has {length} tokens; this model takes at most 128; shorten it"
        )

    def test_the_longest_that_is_not(self, filler: FillMask) -> None:
        words = 1
        while len(TOKENIZER.encode("[MASK]" + "a" * (words + 1))) <= 128:
            words += 1
        text = "[MASK]" + "a" * words
        assert len(TOKENIZER.encode(text)) == 128
        assert len(filler(text)) == 5

    @pytest.mark.parametrize("top_k", [0, -1, 385])
    def test_top_k_out_of_range(self, filler: FillMask, top_k: int) -> None:
        with pytest.raises(InputError, match=rf"^`top_k` is {top_k}; it must be from 1 to 384$"):
            filler(ONE, top_k=top_k)

    def test_a_tokenizer_that_does_not_fit(self) -> None:
        with pytest.raises(
            ConfigError, match="the tokenizer has ids up to 383, but the model's `vocab_size` is 383"
        ):
            FillMask(build(vocab_size=383), TOKENIZER)


class TestFromPretrained:
    def test_a_folder(self, folder: Path, filler: FillMask) -> None:
        for name in (folder, str(folder)):
            loaded = FillMask.from_pretrained(name, device="cpu")
            assert loaded.tokenizer.fingerprint == TOKENIZER.fingerprint
            assert loaded(TEXTS) == filler(TEXTS)

    def test_a_tokenizer_from_elsewhere(self, folder: Path, tmp_path: Path, filler: FillMask) -> None:
        build().save_pretrained(tmp_path)
        with pytest.raises(InputError, match="tokenizer"):
            FillMask.from_pretrained(tmp_path, device="cpu")
        assert FillMask.from_pretrained(tmp_path, tokenizer=folder, device="cpu")(ONE) == filler(ONE)

    def test_a_preset_has_random_weights_and_the_given_tokenizer(self, folder: Path) -> None:
        one, other = (FillMask.from_pretrained("tiny", tokenizer=folder, device="cpu") for _ in range(2))
        assert one(ONE) == other(ONE)
        assert one(ONE)[0]["score"] < 0.1
        assert one.model.config.hidden_size == EncoderConfig.preset("tiny").hidden_size

    def test_a_preset_without_tokenizer_is_refused(self) -> None:
        with pytest.raises(InputError) as caught:
            FillMask.from_pretrained("tiny", device="cpu")
        assert str(caught.value) == (
            "the preset `tiny` has random weights and no tokenizer; name one as `tokenizer`"
        )

    def test_what_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModernBertError, match="missing"):
            FillMask.from_pretrained(tmp_path / "missing", device="cpu")

    def test_a_wrong_device_is_refused_before_anything_is_read(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="`tpu` is not a device"):
            FillMask.from_pretrained(tmp_path / "missing", device="tpu")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return transformers.pipeline("fill-mask", model=str(folder), tokenizer=str(folder), device="cpu")


class TestLikeTransformers:
    @pytest.mark.parametrize("text", TEXTS)
    def test_one_text(self, text: str, filler: FillMask, pipeline: Any) -> None:
        assert_same(filler(text), pipeline(text))
        assert_same(filler(text, top_k=384), pipeline(text, top_k=384))

    def test_several_texts(self, filler: FillMask, pipeline: Any) -> None:
        assert_same(filler(TEXTS, top_k=2), pipeline(TEXTS, top_k=2))


class TestDescribe:
    def test_one_mask(self) -> None:
        fills = [
            {"score": 0.5, "token": 1, "token_str": " Paris", "sequence": "It is Paris."},
            {"score": 0.0123, "token": 2, "token_str": " a", "sequence": "It is a."},
        ]
        assert describe("It is [MASK].", fills).splitlines() == [
            "It is [MASK].",
            "  50.0%  ' Paris'         It is Paris.",
            "   1.2%  ' a'             It is a.",
        ]

    def test_several_masks(self, filler: FillMask) -> None:
        fills = filler(TWO, top_k=2)
        lines = describe(TWO, fills).splitlines()
        assert lines[0] == TWO
        assert len(lines) == 5
        assert [line.partition("%")[0].strip() for line in lines[1:]] == [
            f"{100 * fill['score']:.1f}" for proposals in fills for fill in proposals
        ]
        assert not math.isnan(fills[0][0]["score"])
