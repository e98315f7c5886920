from __future__ import annotations

import numpy as np
import pytest
import torch

from modernbert.data.counter_random import mix64
from modernbert.data.masking import MaskedBatch, Masker, MaskingSettings
from modernbert.errors import ConfigError
from modernbert.layout import SequenceLayout

CLS, SEP, MASK = 900, 901, 902


class Vocabulary:
    vocab_size = 1000
    mask_id = MASK
    special_ids = frozenset({CLS, SEP, MASK, 903})
    ordinary_ids = np.arange(10, 900)


def row(lengths: list[int], first_sequence: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, keys and positions of sequences `[CLS] … [SEP]` whose content follows from their numbers."""
    tokens, keys, positions = [], [], []
    for number, length in enumerate(lengths, first_sequence):
        content = 10 + mix64(np.arange(length - 2) + 1000 * number) % np.uint64(890)
        tokens.append(np.concatenate([[CLS], content.astype(np.int64), [SEP]]))
        keys.append(np.repeat(mix64(number), length))
        positions.append(np.arange(length))
    return np.concatenate(tokens), np.concatenate(keys), np.concatenate(positions)


def masker(seed: int = 1, **settings: object) -> Masker:
    return Masker(Vocabulary(), MaskingSettings(**settings), seed=seed)  # type: ignore[arg-type]


def test_shares_are_those_of_the_paper() -> None:
    tokens, keys, positions = row([1000] * 200)
    input_ids, places, labels = masker().mask(tokens, keys, positions, rate=0.3)
    assert len(places) / (len(tokens) - 400) == pytest.approx(0.3, abs=0.005)
    changed = input_ids[places]
    masked, kept = np.mean(changed == MASK), np.mean(changed == labels)
    assert masked == pytest.approx(0.8, abs=0.01)
    assert kept == pytest.approx(0.1 + 0.1 / 890, abs=0.008)
    assert 1 - masked - kept == pytest.approx(0.1, abs=0.008)


def test_labels_are_the_true_tokens_and_nothing_else_changes() -> None:
    tokens, keys, positions = row([50, 3, 200])
    before = tokens.copy()
    input_ids, places, labels = masker().mask(tokens, keys, positions, rate=0.5)
    assert (tokens == before).all()
    assert (labels == tokens[places]).all()
    assert (np.diff(places) > 0).all()
    untouched = np.setdiff1d(np.arange(len(tokens)), places)
    assert (input_ids[untouched] == tokens[untouched]).all()
    assert {array.dtype for array in (input_ids, places, labels)} == {np.dtype(np.int64)}


def test_random_tokens_are_ordinary_and_uniform() -> None:
    tokens, keys, positions = row([1000] * 100)
    input_ids, places, _ = masker(mask_share=0.0, random_share=1.0).mask(tokens, keys, positions, rate=1.0)
    drawn = input_ids[places]
    assert np.isin(drawn, Vocabulary.ordinary_ids).all()
    counts = np.bincount(drawn, minlength=900)[10:]
    expected = len(drawn) / 890
    assert ((counts - expected) ** 2 / expected).sum() < 890 + 5 * (2 * 890) ** 0.5
    assert np.mean(drawn == tokens[places]) < 0.003


def test_special_tokens_are_protected_unless_asked_for() -> None:
    tokens, keys, positions = row([5] * 1000)
    special = np.isin(tokens, [CLS, SEP])
    _, places, labels = masker().mask(tokens, keys, positions, rate=0.3)
    assert not special[places].any()
    _, places, labels = masker(protect_special=False).mask(tokens, keys, positions, rate=0.3)
    assert np.mean(np.isin(np.flatnonzero(special), places)) == pytest.approx(0.3, abs=0.03)
    assert {CLS, SEP} <= set(labels.tolist())


def test_a_sequence_is_masked_alike_wherever_it_lies() -> None:
    lengths = [30, 7, 128, 64, 5]
    tokens, keys, positions = row(lengths)
    together = masker().mask(tokens, keys, positions, rate=0.3)[0]
    pieces = np.split(together, np.cumsum(lengths)[:-1])
    for number, (length, piece) in enumerate(zip(lengths, pieces)):
        alone = masker().mask(*row([length], first_sequence=number), rate=0.3)[0]
        assert (alone == piece).all()
    order = np.random.default_rng(0).permutation(len(tokens))
    shuffled = masker().mask(tokens[order], keys[order], positions[order], rate=0.3)[0]
    assert (shuffled == together[order]).all()


def test_seed_key_and_position_each_matter() -> None:
    tokens, keys, positions = row([1000])
    chosen = {masker(1).mask(tokens, keys, positions, 0.3)[1].tobytes()}
    chosen.add(masker(2).mask(tokens, keys, positions, 0.3)[1].tobytes())
    chosen.add(masker(1).mask(tokens, keys + np.uint64(1), positions, 0.3)[1].tobytes())
    chosen.add(masker(1).mask(tokens, keys, positions + 1, 0.3)[1].tobytes())
    assert len(chosen) == 4


def test_a_higher_rate_adds_to_a_lower_one() -> None:
    tokens, keys, positions = row([500])
    few, many = (set(masker().mask(tokens, keys, positions, rate)[1].tolist()) for rate in (0.15, 0.3))
    assert few < many


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 498)])
def test_none_or_all(rate: float, expected: int) -> None:
    input_ids, places, labels = masker().mask(*row([500]), rate=rate)
    assert len(places) == len(labels) == expected
    assert len(input_ids) == 500


def test_refuses_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"`mask_share` is 1.2; it must be between 0 and 1"):
        MaskingSettings(mask_share=1.2)
    with pytest.raises(ConfigError, match=r"`random_share` is -0.1; it must be between 0 and 1"):
        MaskingSettings(random_share=-0.1)
    with pytest.raises(
        ConfigError, match=r"`mask_share` 0.8 and `random_share` 0.3 sum to more than 1; lower one"
    ):
        MaskingSettings(random_share=0.3)
    with pytest.raises(ConfigError, match=r"the mask rate is 30; it must be between 0 and 1"):
        masker().mask(*row([5]), rate=30)
    MaskingSettings(mask_share=0.9, random_share=0.1)


def test_a_batch_counts_and_moves() -> None:
    tokens = torch.arange(5)
    batch = MaskedBatch(tokens, SequenceLayout.of([2, 3]), torch.tensor([1, 3]), torch.tensor([7, 8]))
    assert (batch.num_tokens, batch.num_masked) == (5, 2)
    assert batch.to("cpu").layout is batch.layout
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in (moved.input_ids, moved.masked_positions, moved.labels)} == {
        "meta"
    }
    assert moved.layout.device.type == "meta"


@pytest.mark.gpu
def test_a_batch_moves_to_the_gpu_whole() -> None:
    tokens = torch.arange(100_000)
    batch = MaskedBatch(tokens, SequenceLayout.of([len(tokens)]), tokens[::3], tokens[::3] + 1).to("cuda")
    assert torch.equal(batch.input_ids.cpu(), tokens)
    assert torch.equal(batch.labels.cpu(), tokens[::3] + 1)
    assert batch.to("cuda").input_ids is batch.input_ids
