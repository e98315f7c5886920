"""How sure a figure is: bootstrap intervals over the examples, and the spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modernbert.errors import InputError
from modernbert.recipes.finetune import metrics
from modernbert.recipes.finetune.calibration import Array, losses, probabilities
from modernbert.recipes.finetune.entities import count_entities
from modernbert.recipes.finetune.squad import score_answers

Times = NDArray[np.float64]
Measure = Callable[[Times], float]
"""A figure of a sample in which example i stands `times[i]` times; `times` is float64 `[n]`."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The range in which a figure would lie on other examples of the same kind.

    Attributes:
        low: Its lower end.
        high: Its upper end.
    """

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One figure over several seeds.

    Attributes:
        count: How many seeds.
        mean: Over them.
        deviation: Standard deviation, with one less than the seeds as the denominator.
        least: The lowest value.
        most: The highest value.
    """

    count: int
    mean: float
    deviation: float
    least: float
    most: float


def bootstrap(
    measures: Mapping[str, Measure],
    num_examples: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the percentile interval of each figure, over samples drawn with replacement.

    Args:
        measures: Figures, all measured on the same samples.
        num_examples: n; of none there are no intervals.
        resamples: How many samples to draw.
        level: Share of the samples whose figures lie within.
        seed: Of the draws; the same gives the same.

    Raises:
        InputError: `resamples` is below 1, or `level` not between 0 and 1.
    """
    if resamples < 1 or not 0 < level < 1:
        raise InputError(
            f"{resamples} resamples at a level of {level} give no interval; there must be at least one, and "
            "a level between 0 and 1; try 1000 and 0.95"
        )
    if not num_examples:
        return {}
    draw = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(resamples):
        places = draw.integers(num_examples, size=num_examples)
        times = np.bincount(places, minlength=num_examples).astype(np.float64)
        for name, measure in measures.items():
            found[name].append(measure(times))
    ends = (50 * (1 - level), 50 * (1 + level))
    pairs = {name: np.percentile(values, ends) for name, values in found.items()}
    return {name: Interval(low=float(low), high=float(high)) for name, (low, high) in pairs.items()}


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread of one figure over seeds; None for a single seed, which says nothing of it."""
    if len(values) < 2:
        return None
    return Spread(
        count=len(values),
        mean=float(np.mean(values)),
        deviation=float(np.std(values, ddof=1)),
        least=float(min(values)),
        most=float(max(values)),
    )


# The figures that get an interval, by problem. Of all examples once each, they are what `metrics` gives.


def of_classes(gold: ArrayLike, logits: ArrayLike, num_labels: int) -> dict[str, Measure]:
    """Measure accuracy, macro F1, MCC and log loss; with two labels also F1. For arguments see `metrics`."""
    truth, outputs = np.asarray(gold, dtype=np.int64), np.asarray(logits, dtype=np.float64)
    cells = truth * num_labels + outputs.argmax(axis=1)
    nats = losses(truth, outputs)

    def confusion(times: Times) -> Array:
        counts: Array = np.bincount(cells, weights=times, minlength=num_labels**2).astype(np.float64)
        return counts.reshape(num_labels, num_labels)

    found: dict[str, Measure] = {
        "accuracy": lambda times: metrics.accuracy_of(confusion(times)),
        "macro_f1": lambda times: metrics.macro_f1_of(confusion(times)),
        "mcc": lambda times: metrics.mcc_of(confusion(times)),
        "log_loss": mean_of(nats),
    }
    if num_labels == 2:
        found["f1"] = lambda times: float(metrics.f1_of(confusion(times))[1])
    return found


def of_label_sets(gold: ArrayLike, logits: ArrayLike) -> dict[str, Measure]:
    """Measure micro and macro F1 and the exact match, all at 0.5. For the arguments see `metrics`."""
    truth = np.asarray(gold, dtype=bool)
    predicted = probabilities(np.asarray(logits, dtype=np.float64), multi_label=True) >= 0.5
    sums = _sums(metrics.label_counts(truth, predicted))
    return {
        "micro_f1": lambda times: metrics.micro_of(sums(times))["f1"],
        "macro_f1": lambda times: metrics.macro_of(sums(times)),
        "exact_match": mean_of((predicted == truth).all(axis=1).astype(np.float64)),
    }


def of_values(gold: ArrayLike, predicted: ArrayLike) -> dict[str, Measure]:
    """Measure both correlations and both errors. For the arguments see `metrics`."""
    truth, guess = metrics.as_columns(gold), metrics.as_columns(predicted)

    def spearman(times: Times) -> float:
        rows = np.repeat(np.arange(len(truth)), times.astype(int))
        return metrics.spearman_of(truth[rows], guess[rows])

    return {
        "pearson": lambda times: metrics.pearson_of(truth, guess, times),
        "spearman": spearman,
        "mse": mean_of(((guess - truth) ** 2).mean(axis=1)),
        "mae": mean_of(np.abs(guess - truth).mean(axis=1)),
    }


def of_tags(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Measure]:
    """Measure precision, recall and F1 of entities, over sequences. For the arguments see `metrics`."""
    sums = _sums(count_entities(gold, predicted).counts.sum(axis=1, keepdims=True))

    def measure(name: str) -> Measure:
        return lambda times: metrics.micro_of(sums(times))[name]

    return {name: measure(name) for name in ("precision", "recall", "f1")}


def of_answers(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, Measure]:
    """Measure exact match and both F1. For the arguments see `metrics`."""
    scores = score_answers(gold, predicted)
    return {
        "exact_match": mean_of(scores.exact_match),
        "f1": mean_of(scores.f1),
        "character_f1": mean_of(scores.character_f1),
    }


def of_choices(gold: Sequence[int], scores: Sequence[ArrayLike]) -> dict[str, Measure]:
    """Measure accuracy. For the arguments see `metrics`."""
    right = [float(np.asarray(part).argmax() == place) for place, part in zip(gold, scores)]
    return {"accuracy": mean_of(np.array(right, dtype=np.float64))}


def mean_of(values: Array) -> Measure:
    """Measure the mean of `[n]` values, one an example."""
    return lambda times: float(times @ values / times.sum())


def _sums(counts: NDArray[np.int64]) -> Callable[[Times], Array]:
    """Return what sums `[n, K, 3]` counts over a sample, to `[K, 3]`."""
    flat = counts.reshape(len(counts), counts.shape[1] * counts.shape[2]).astype(np.float64)
    return lambda times: (times @ flat).reshape(counts.shape[1:])
