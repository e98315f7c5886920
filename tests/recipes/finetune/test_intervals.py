from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.errors import InputError
from modernbert.recipes.finetune import intervals, metrics
from modernbert.recipes.finetune.intervals import bootstrap, spread


def mean_of(values: np.ndarray) -> intervals.Measure:
    return lambda times: float(times @ values / times.sum())


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(7)
    covered = 0
    for trial in range(200):
        right = (draw.random(150) < 0.8).astype(float)
        found = bootstrap({"accuracy": mean_of(right)}, 150, resamples=200, seed=trial)["accuracy"]
        covered += found.low <= 0.8 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_intervals_are_determined_by_their_seed_and_narrow_with_examples() -> None:
    values = np.random.default_rng(1).random(1000)

    def width(count: int, **options: float) -> float:
        found = bootstrap({"mean": mean_of(values[:count])}, count, **options)["mean"]  # type: ignore[arg-type]
        return found.high - found.low

    first, same, other = (bootstrap({"m": mean_of(values)}, 1000, seed=seed) for seed in (0, 0, 1))
    assert first == same != other
    assert width(1000) < 0.5 * width(100)
    assert width(100, level=0.5) < width(100)
    assert width(1) == 0


def test_of_no_examples_there_is_no_interval() -> None:
    assert bootstrap({"mean": mean_of(np.zeros(0))}, 0) == {}
    with pytest.raises(InputError, match=r"0 resamples at a level of 0\.95 give no interval"):
        bootstrap({}, 3, resamples=0)


def test_spread_over_seeds() -> None:
    assert spread([]) is None
    assert spread([0.5]) is None
    found = spread([0.5, 0.7, 0.9])
    assert found is not None
    assert (found.count, found.least, found.most) == (3, 0.5, 0.9)
    assert (found.mean, found.deviation) == (pytest.approx(0.7), pytest.approx(0.2))


TAGS = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "O"], ["O", "O", "B-LOC"], ["O", "B-PER", "O"]]
GUESSES = [["B-PER", "O", "O"], ["B-LOC", "O", "O"], ["O", "B-PER", "B-LOC"], ["O", "O", "O"]]
GOLD_ANSWERS, ANSWERS = [["one two"], ["three"], [], ["four"]], ["one", "three", "", ""]
CLASSES = np.array([0, 1, 1, 0]), np.array([[2.0, 1], [0, 3], [1, 0], [1, 0]])
SETS = np.array([[0, 1], [1, 1], [0, 0], [1, 0]]), np.array([[-1.0, 2], [1, -1], [1, -1], [2, -2]])
VALUES = np.array([1.0, 2, 2, 5]), np.array([1.5, 1, 3, 4])
CHOICES = [1, 0, 0, 1], [[0.0, 1], [0.0, 1], [3.0, 1, 1], [1.0, 2]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_measure_of_a_sample_is_the_metric_of_its_examples(places: list[int]) -> None:
    """A sample as counts gives what `metrics` says of the same examples written out."""
    times = np.bincount(places, minlength=4).astype(float)

    def pick(rows: list) -> list:
        return [rows[place] for place in sorted(places)]

    pairs = [
        (intervals.of_classes(*CLASSES, 2), metrics.classes(*map(pick, CLASSES), ["a", "b"])),
        (intervals.of_label_sets(*SETS), metrics.label_sets(*map(pick, SETS))),
        (intervals.of_values(*VALUES), metrics.values(*map(pick, VALUES))),
        (intervals.of_tags(TAGS, GUESSES), metrics.tags(pick(TAGS), pick(GUESSES))),
        (intervals.of_answers(GOLD_ANSWERS, ANSWERS), metrics.answers(pick(GOLD_ANSWERS), pick(ANSWERS))),
        (intervals.of_choices(*CHOICES), metrics.choices(pick(CHOICES[0]), pick(CHOICES[1]))),
    ]
    for measures, figures in pairs:
        for name, measure in measures.items():
            assert measure(times) == pytest.approx(figures[name]), name


def test_each_primary_figure_has_an_interval() -> None:
    found = {
        "classes": intervals.of_classes(*CLASSES, 2),
        "label_sets": intervals.of_label_sets(*SETS),
        "values": intervals.of_values(*VALUES),
        "tags": intervals.of_tags(TAGS, GUESSES),
        "answers": intervals.of_answers(GOLD_ANSWERS, ANSWERS),
        "choices": intervals.of_choices(*CHOICES),
    }
    assert all(name in found[problem] for problem, name in metrics.PRIMARY.items())
