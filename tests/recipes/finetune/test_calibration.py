from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from modernbert.errors import BackendError
from modernbert.recipes.finetune.calibration import (
    best_threshold,
    best_thresholds,
    calibration_error,
    fit_temperature,
    losses,
    probabilities,
    reliability,
)


def test_bins_hold_every_prediction_once() -> None:
    confidence = np.array([0.0, 0.1, 0.1000001, 0.55, 1.0])
    right = np.array([False, True, False, True, True])
    bins = reliability(confidence, right, bins=10)
    assert [(part.low, part.count, part.accuracy) for part in bins] == [
        (0.0, 2, 0.5),  # the upper bound is within
        (0.1, 1, 0),
        (0.5, 1, 1),
        (0.9, 1, 1),
    ]
    gaps = [2 * abs(0.05 - 0.5), 0.1000001, 0.45, 0]
    assert calibration_error(bins) == pytest.approx(sum(gaps) / 5)
    assert calibration_error(()) == 0


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_a_model_that_is_too_sure_is_found(temperature: float, multi_label: bool) -> None:
    draw = np.random.default_rng(1)
    true = draw.normal(size=(20_000, 3)) * 2
    if multi_label:
        gold = (draw.random(true.shape) < probabilities(true, multi_label=True)).astype(int)
    else:
        gold = (true + draw.gumbel(size=true.shape)).argmax(axis=1)
    assert fit_temperature(gold, true * temperature) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_of_degenerate_sets_is_bounded() -> None:
    assert fit_temperature(np.array([], dtype=int), np.zeros((0, 2))) == 1
    assert fit_temperature(np.array([0, 1]), np.eye(2)) == pytest.approx(0.05, rel=0.01)
    assert fit_temperature(np.array([1, 0]), np.eye(2)) == pytest.approx(20, rel=0.01)


def test_losses_are_those_of_torch() -> None:
    import torch

    draw = np.random.default_rng(2)
    logits, gold = draw.normal(size=(9, 4)) * 5, draw.integers(4, size=9)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(gold), reduction="none")
    assert losses(gold, logits) == pytest.approx(expected.numpy())
    sets = draw.integers(2, size=(9, 4))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(sets, dtype=torch.float64), reduction="none"
    )
    assert losses(sets, logits) == pytest.approx(expected.mean(dim=1).numpy())


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=30))
def test_no_threshold_is_better(pairs: list[tuple[bool, int]]) -> None:
    gold, scores = np.array([pair[0] for pair in pairs]), np.array([pair[1] / 10 for pair in pairs])
    cut = best_threshold(gold, scores)
    tried = max(f1_score(gold, scores >= one, zero_division=0) for one in np.arange(0.05, 1, 0.1))
    assert f1_score(gold, scores >= cut, zero_division=0) == pytest.approx(tried)
    assert gold.any() or cut == 0.5


def test_each_label_has_its_threshold() -> None:
    gold = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]])
    scores = np.array([[0.9, 0.1, 0.5], [0.7, 0.3, 0.5], [0.1, 0.2, 0.5]])
    assert best_thresholds(gold, scores) == pytest.approx((0.8, 0.15, 0.5))


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(BackendError, match=r"modernbert\[finetune\]"):
        fit_temperature(np.array([0]), np.eye(1))
