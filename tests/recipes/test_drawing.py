from __future__ import annotations

import numpy as np
import pytest

from modernbert.errors import BackendError
from modernbert.recipes.drawing import check_drawing, smooth, thin


@pytest.mark.parametrize("count", [1, 7, 400, 401, 1000, 99_999])
def test_a_thinned_line_keeps_its_mean_its_ends_and_its_extremes(count: int) -> None:
    tokens = np.arange(1.0, count + 1)
    values = np.random.default_rng(1).normal(size=count)
    line = thin(tokens, values, points=400)
    assert len(line.tokens) == min(count, 400)
    assert line.tokens[-1] == count
    assert (line.low.min(), line.high.max()) == (values.min(), values.max())
    assert (line.low <= line.mean).all()
    assert (line.mean <= line.high).all()
    sizes = np.diff([0, *line.tokens])
    assert (line.mean * sizes).sum() / count == pytest.approx(values.mean())


def test_short_lines_stay_as_they_are_and_gaps_are_left_out() -> None:
    tokens, values = np.arange(4.0), np.array([1.0, np.nan, 3.0, np.inf])
    line = thin(tokens, values)
    assert (line.tokens.tolist(), line.mean.tolist()) == ([0, 2], [1, 3])
    nothing = thin(tokens, np.full(4, np.nan))
    assert [len(part) for part in nothing] == [0, 0, 0, 0]


def test_smoothing_calms_a_line_and_does_not_lag() -> None:
    slope = np.linspace(0, 1, 500)
    noisy = slope + np.random.default_rng(2).normal(scale=0.1, size=500)
    calm = smooth(noisy, reach=5)
    middle = slice(50, -50)
    assert np.abs(calm - slope)[middle].mean() < 0.4 * np.abs(noisy - slope)[middle].mean()
    assert abs((calm - slope)[middle].mean()) < 0.01
    assert smooth(np.full(9, 3.0), reach=2) == pytest.approx(np.full(9, 3.0))
    assert smooth(noisy[:5], reach=0.05) == pytest.approx(noisy[:5], abs=0.01)  # of a few values, each counts
    assert len(smooth(noisy[:0], reach=1)) == 0


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_drawing()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match=r"needs matplotlib.*run `pip install 'modernbert\[train\]'`"):
        check_drawing()
