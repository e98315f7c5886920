"""Masked loss and pseudo-perplexity at a length, against sums over one window and one mask at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from modernbert.data.masking import Masker, MaskingSettings
from modernbert.data.windows import Stretch, mask_stretches
from modernbert.errors import ConfigError
from modernbert.layout import pack
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.train.evaluation import LengthProbe, LengthSettings

CPU = torch.device("cpu")
VOCAB, CLS, SEP, MASK = 40, 37, 38, 39
TEXT_TOKENS = 14  # a window of 16


class Vocabulary:
    vocab_size, mask_id = VOCAB, MASK
    special_ids = frozenset((CLS, SEP, MASK))
    ordinary_ids = np.arange(37)


@pytest.fixture(scope="module")
def model() -> ModernBertForMaskedLM:
    """One that is sure of itself, so that what it sees makes a difference."""
    shape = EncoderConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        window=3,
        pad_token_id=0,
    )
    model = ModernBertForMaskedLM(shape)
    initialise(model, seed=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.double()


@pytest.fixture(scope="module")
def stretches() -> list[Stretch]:
    generator = np.random.default_rng(3)
    return [Stretch(key, generator.integers(0, 37, TEXT_TOKENS)) for key in range(4)]


MASKER = Masker(Vocabulary(), MaskingSettings(), seed=1)


def probe(stretches: list[Stretch], row_tokens: int = 40, **settings: Any) -> LengthProbe:
    return LengthProbe(
        stretches,
        LengthSettings(**{"lengths": (6, 16), "max_tokens": 64, **settings}),
        MASKER,
        mask_rate=0.3,
        special=(CLS, SEP, MASK),
        row_tokens=row_tokens,
    )


def surprise(model: ModernBertForMaskedLM, text: list[int], places: list[int], truth: list[int]) -> float:
    """Sum `-log P` of the true tokens at these places of one sequence."""
    ids, layout = pack([[CLS, *text, SEP]])
    with torch.no_grad():
        logits = model.eval()(ids, layout)[1:-1][places]
    return functional.cross_entropy(logits, torch.tensor(truth), reduction="sum").item()


def windows_of(text: np.ndarray, width: int) -> list[tuple[int, int, int]]:
    """Begin, end and first token to predict of each window."""
    firsts = range(0, len(text), width)
    return [(min(f, len(text) - width), min(f + width, len(text)), f) for f in firsts]


@pytest.mark.parametrize("stride", [None, 100, 2, 3])
def test_pseudo_perplexity_is_that_of_tokens_masked_in_turn(
    stride: int | None, model: ModernBertForMaskedLM, stretches: list[Stretch]
) -> None:
    found = probe(stretches, stride=stride).measure(model, device=CPU)
    for evaluation, width in zip(found, (4, 14)):
        step = min(stride or width, width)
        total = 0.0
        for stretch in stretches:
            for begin, end, first in windows_of(stretch.tokens, width):
                for offset in range(step):
                    places = [p for p in range(begin, end) if p % step == offset]
                    text = [MASK if p in places else int(stretch.tokens[p]) for p in range(begin, end)]
                    told = [p for p in places if p >= first]
                    if told:
                        truth = [int(stretch.tokens[p]) for p in told]
                        total += surprise(model, text, [p - begin for p in told], truth)
        assert evaluation.num_tokens == 4 * TEXT_TOKENS
        assert evaluation.stride == stride
        assert evaluation.pseudo_perplexity == pytest.approx(math.exp(total / (4 * TEXT_TOKENS)), rel=1e-6)


def test_masked_loss_and_accuracy_are_those_of_the_windows(
    model: ModernBertForMaskedLM, stretches: list[Stretch]
) -> None:
    short, whole = probe(stretches).measure(model, device=CPU)
    total, count = 0.0, 0
    for stretch in mask_stretches(stretches, MASKER, 0.3):
        places = np.flatnonzero(stretch.is_masked).tolist()
        truth = [int(stretch.tokens[place]) for place in places]
        total += surprise(model, stretch.input_ids.tolist(), places, truth)
        count += len(places)
    assert whole.length == 16
    assert whole.loss == pytest.approx(total / count, rel=1e-6)
    assert short.length == 6
    assert short.loss != pytest.approx(whole.loss, rel=1e-3)
    assert 0 <= whole.accuracy <= 1


def test_rows_of_another_size_change_nothing(model: ModernBertForMaskedLM, stretches: list[Stretch]) -> None:
    for one, other in zip(
        probe(stretches, row_tokens=1).measure(model, device=CPU),
        probe(stretches, row_tokens=1000).measure(model, device=CPU),
        strict=True,
    ):
        assert (one.loss, one.pseudo_perplexity) == pytest.approx((other.loss, other.pseudo_perplexity))
        assert one.accuracy == other.accuracy


def test_the_model_stays_in_training(model: ModernBertForMaskedLM, stretches: list[Stretch]) -> None:
    probe(stretches).measure(model.train(), device=CPU)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_lengths_are_measured_in_ascending_order(
    model: ModernBertForMaskedLM, stretches: list[Stretch]
) -> None:
    found = probe(stretches, lengths=(16, 4, 9), stride=4).measure(model, device=CPU)
    assert [evaluation.length for evaluation in found] == [4, 9, 16]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": ()}, r"`lengths` is \[\]; it must hold at least one length"),
        ({"lengths": (2, 8)}, r"`lengths` is \[2, 8\]; .* at least 3"),
        ({"lengths": (8, 8)}, r"`lengths` is \[8, 8\]; .* each its own"),
        ({"lengths": (8,), "stride": 1}, r"`stride` is 1; it must be at least 2, or null"),
        ({"lengths": (8, 64), "max_tokens": 63}, r"`max_tokens` is 63; .* the longest of `lengths`, 64"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LengthSettings(**settings)
