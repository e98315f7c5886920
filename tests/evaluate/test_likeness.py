"""Sentence similarity: the correlations are scipy's, columns are guessed or named, pairs must be pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from modernbert.data.columns import Columns
from modernbert.errors import ConfigError, InputError
from modernbert.evaluate.likeness import evaluate_likeness
from tests.evaluate.vectors import ChosenVectors, write_lines

GOLD = [0.0, 2.5, 5.0, 2.5, 1.0, 4.0]
ROWS = [{"sentence1": f"a{row}", "sentence2": f"b{row}", "score": gold} for row, gold in enumerate(GOLD)]


@pytest.fixture
def model() -> ChosenVectors:
    draw = np.random.default_rng(3)
    return ChosenVectors({f"{side}{row}": draw.normal(size=4) for side in "ab" for row in range(6)})


def test_correlations(model: ChosenVectors, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "sts" / "test.jsonl", ROWS)
    found = evaluate_likeness([path], {"m": lambda: model}).sets[0]
    cosines = [float(model._vector(f"a{row}") @ model._vector(f"b{row}")) for row in range(6)]
    (system,) = found.systems
    assert system.figures == pytest.approx(
        {"spearman": stats.spearmanr(GOLD, cosines)[0], "pearson": stats.pearsonr(GOLD, cosines)[0]}
    )
    for name, value in system.figures.items():
        assert system.intervals[name].low <= value <= system.intervals[name].high
    assert (found.name, found.counts) == ("sts/test.jsonl", {"pairs": 6})
    assert found.remarks == ("text: sentence1, text_pair: sentence2, label: score",)


def test_columns_that_are_named(model: ChosenVectors, tmp_path: Path) -> None:
    rows = [{"x": it["sentence1"], "y": it["sentence2"], "z": it["score"], "score": "no"} for it in ROWS]
    path = write_lines(tmp_path / "sts" / "test.jsonl", rows)
    found = evaluate_likeness([path], {"m": lambda: model}, Columns(text="x", text_pair="y", label="z"))
    assert found.sets[0].remarks == ("text: x, text_pair: y, label: z",)


def test_what_cannot_be(model: ChosenVectors, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "sts" / "test.jsonl", [*ROWS, {**ROWS[0], "score": "high"}])
    with pytest.raises(InputError, match=r"test.jsonl, line 7`: `score` is 'high'; it must be a number"):
        evaluate_likeness([path], {"m": lambda: model})
    with pytest.raises(InputError, match=r"was read as single texts \(text: sentence1, label: score\)"):
        evaluate_likeness([path], {"m": lambda: model}, Columns(text="sentence1"))
    with pytest.raises(ConfigError, match="there is no model"):
        evaluate_likeness([path], {})
