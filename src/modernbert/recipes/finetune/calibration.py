"""How far a model's probabilities can be believed: reliability, temperature, thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import BackendError
from modernbert.infer.outputs import sigmoid, softmax

Array = NDArray[np.float64]
BINS = 15
COLDEST, HOTTEST = 0.05, 20.0


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The predictions made with about the same confidence.

    Attributes:
        low: Lower bound of the confidence.
        high: Upper bound, within it.
        count: How many predictions.
        confidence: Their mean confidence.
        accuracy: The share of them that is right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def probabilities(logits: Array, *, multi_label: bool) -> Array:
    """Return the probabilities of logits `[n, L]`: of one label of all, or of each label by itself."""
    with np.errstate(over="ignore"):  # a very sure logit is 0 or 1
        return np.asarray((sigmoid if multi_label else softmax)(np.asarray(logits, dtype=np.float64)))


def reliability(confidence: Array, right: NDArray[np.bool_], bins: int = BINS) -> tuple[Bin, ...]:
    """Sort predictions into bins of equal width.

    Args:
        confidence: `[n]`, the probability that the model gave its prediction.
        right: `[n]`, whether the prediction was right.
        bins: How many; empty ones are left out.
    """
    place = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=confidence, minlength=bins)
    rights = np.bincount(place, weights=right, minlength=bins)
    return tuple(
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            count=int(count),
            confidence=float(sums[index] / count),
            accuracy=float(rights[index] / count),
        )
        for index, count in enumerate(counts)
        if count
    )


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy; 0 of no bins."""
    total = sum(part.count for part in bins)
    return sum(part.count * abs(part.confidence - part.accuracy) for part in bins) / max(total, 1)


def losses(gold: NDArray[np.generic], logits: Array) -> Array:
    """Return each example's loss in nats, `[n]`.

    Args:
        gold: `[n]` the index of the label, or `[n, L]` 0 or 1 for each label.
        logits: `[n, L]`.

    Returns:
        The cross-entropy; with several labels the mean of theirs.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if gold.ndim == 2:
        return np.asarray((np.logaddexp(0, logits) - gold.astype(np.float64) * logits).mean(axis=1))
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(gold)), gold.astype(np.int64)]
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - chosen)


def fit_temperature(gold: NDArray[np.generic], logits: Array) -> float:
    """Return the number to divide logits by, so that the probabilities fit best.

    It minimises the mean loss, within 0.05 to 20; a model that is never wrong gets 0.05, and an empty set 1.
    To be fitted on validation, never on the set that is reported.

    Args:
        gold: As in `losses`.
        logits: `[n, L]`.

    Raises:
        BackendError: scipy is not installed.
    """
    if not len(gold):
        return 1.0
    try:
        from scipy.optimize import minimize_scalar
    except ImportError:
        raise BackendError(
            "a temperature is fitted by scipy, which is not installed; run "
            "`pip install 'modernbert[finetune]'`"
        ) from None
    found = minimize_scalar(
        lambda power: float(losses(gold, logits / math.exp(power)).mean()),
        bounds=(math.log(COLDEST), math.log(HOTTEST)),
        method="bounded",
    )
    return float(math.exp(found.x))


def best_threshold(gold: NDArray[np.generic], scores: Array) -> float:
    """Return the probability from which on to say yes, for the best F1; 0.5 if nothing is true.

    It lies halfway between the last score taken and the first one left out. Of equally good ones, the
    highest.

    Args:
        gold: Any shape, 0 or 1.
        scores: As many probabilities.
    """
    truth, flat = np.asarray(gold, dtype=bool).ravel(), np.asarray(scores, dtype=np.float64).ravel()
    if not truth.any():
        return 0.5
    order = np.argsort(-flat, kind="stable")
    ordered, right = flat[order], np.cumsum(truth[order])
    f1 = 2 * right / (np.arange(1, len(flat) + 1) + truth.sum())
    is_cut = np.append(ordered[1:] < ordered[:-1], True)  # equal scores stand or fall together
    best = int(np.argmax(np.where(is_cut, f1, -1.0)))
    below = ordered[best + 1] if best + 1 < len(ordered) else 0.0
    return float((ordered[best] + below) / 2)


def best_thresholds(gold: NDArray[np.generic], scores: Array) -> tuple[float, ...]:
    """Return each label's `best_threshold`; to be found on validation, never on the set that is reported.

    Args:
        gold: `[n, L]`, 0 or 1.
        scores: `[n, L]`, probabilities.
    """
    return tuple(best_threshold(gold[:, label], scores[:, label]) for label in range(scores.shape[1]))
