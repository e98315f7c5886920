"""Figures of predictions: from what is right and what was predicted to numbers, by problem.

All are shares from 0 to 1, or of -1 to 1 where they correlate, but for losses and errors. None is ever NaN: a
figure that the examples do not define is left out (the area under a curve where all examples are alike), or
has the value that its function states. Of no examples at all there are no figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modernbert.errors import BackendError, InputError
from modernbert.recipes.finetune.calibration import (
    best_threshold,
    calibration_error,
    losses,
    probabilities,
    reliability,
)
from modernbert.recipes.finetune.entities import count_entities
from modernbert.recipes.finetune.squad import score_answers

Array = NDArray[np.float64]
Counts = NDArray[np.float64]
Problem = Literal["classes", "label_sets", "values", "tags", "answers", "choices"]

PRIMARY: Mapping[str, str] = {
    "classes": "accuracy",
    "label_sets": "micro_f1",
    "values": "pearson",
    "tags": "f1",
    "answers": "f1",
    "choices": "accuracy",
}
"""The figure by which the best checkpoint is chosen, by problem. Higher is better of each, and each is there
wherever there is an example."""


def classes(gold: ArrayLike, logits: ArrayLike, labels: Sequence[str]) -> dict[str, float]:
    """Return the figures of one label of several.

    F1 is averaged over the labels that occur, as what is right or as what was predicted. With two labels, F1,
    ROC-AUC and average precision are those of the second, the positive one; the areas are left out where
    only one label is right. The MCC is 0 where only one label is right, or only one predicted.

    Args:
        gold: `[n]`, each example's label, from 0.
        logits: `[n, L]`.
        labels: Names of the L labels.

    Raises:
        InputError: Shapes that do not fit, a label that there is not, logits that are not finite.
        BackendError: scikit-learn is not installed.
    """
    truth, outputs = _checked_classes(gold, logits, len(labels))
    if not len(truth):
        return {}
    chances = probabilities(outputs, multi_label=False)
    predicted = outputs.argmax(axis=1)
    confusion = confusion_matrix(truth, predicted, len(labels))
    f1 = f1_of(confusion)
    support = confusion.sum(axis=1)
    bins = reliability(chances.max(axis=1), predicted == truth)
    figures = {
        "accuracy": accuracy_of(confusion),
        "macro_f1": macro_f1_of(confusion),
        "micro_f1": accuracy_of(confusion),
        "weighted_f1": float((f1 * support).sum() / support.sum()),
        "mcc": mcc_of(confusion),
        "log_loss": float(losses(truth, outputs).mean()),
        "calibration_error": calibration_error(bins),
    }
    if len(labels) == 2:
        figures["f1"] = float(f1[1])
        figures |= _areas(truth, chances[:, 1])
    return figures


def label_sets(gold: ArrayLike, logits: ArrayLike) -> dict[str, float]:
    """Return the figures of any number of labels at once.

    Labels are predicted from a probability of 0.5 on, and once more from `best_threshold` on, the one
    threshold that gives the best micro F1 on this very set. Macro F1 is the mean over the labels that occur,
    as what is right or as what was predicted; mAP over those that are right at least once, and left out if
    none is. F1 is 0 where nothing is right and nothing predicted.

    Args:
        gold: `[n, L]`, 0 or 1.
        logits: `[n, L]`.

    Raises:
        InputError: Shapes that do not fit, values that are not 0 or 1, logits that are not finite.
        BackendError: scikit-learn is not installed.
    """
    truth, outputs = _checked_pair(gold, logits)
    if not np.isin(truth, (0, 1)).all():
        raise InputError("the right labels of an example must each be 0 or 1; other numbers are among them")
    if not truth.size:
        return {}
    chances = probabilities(outputs, multi_label=True)
    threshold = best_threshold(truth, chances)
    usual, best = (label_counts(truth, chances >= cut).sum(axis=0) for cut in (0.5, threshold))
    figures = {
        "micro_f1": micro_of(usual)["f1"],
        "macro_f1": macro_of(usual),
        "exact_match": float(((chances >= 0.5) == truth).all(axis=1).mean()),
        "best_threshold": threshold,
        "best_micro_f1": micro_of(best)["f1"],
        "best_macro_f1": macro_of(best),
        "log_loss": float(losses(truth, outputs).mean()),
    }
    precisions = [
        _areas(truth[:, label], chances[:, label])["average_precision"]
        for label in range(truth.shape[1])
        if truth[:, label].any()
    ]
    if precisions:
        figures["mean_average_precision"] = float(np.mean(precisions))
    return figures


def values(gold: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Return the figures of numbers, each the mean over the L numbers of an example.

    A correlation is 0 where either side is constant. R2 is 1 where the right numbers are constant and each
    is hit, and 0 where they are constant and missed.

    Args:
        gold: `[n]` or `[n, L]`.
        predicted: The same.

    Raises:
        InputError: Shapes that do not fit, or numbers that are not finite.
        BackendError: scipy is not installed.
    """
    truth, guess = _checked_pair(as_columns(gold), as_columns(predicted))
    if not truth.size:
        return {}
    times = np.ones(len(truth))
    errors = guess - truth
    return {
        "pearson": pearson_of(truth, guess, times),
        "spearman": spearman_of(truth, guess),
        "mse": float((errors**2).mean()),
        "mae": float(np.abs(errors).mean()),
        "r2": float(np.mean([_r2(truth[:, i], guess[:, i]) for i in range(truth.shape[1])])),
    }


def tags(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the figures of tagged words, those of entities by the rules of `entities.count_entities`.

    `precision`, `recall` and `f1` are of all entities together, `f1/PER` and so on of one type; each is 0
    where its denominator is. `accuracy` is the share of words that have the right tag.

    Args:
        gold: A tag for each word of each sequence.
        predicted: As many.

    Raises:
        InputError: The two are not of equal lengths.
        BackendError: seqeval is not installed.
    """
    found = count_entities(gold, predicted)
    right = [tag == guess for pair in zip(gold, predicted) for tag, guess in zip(*pair)]
    if not right:
        return {}
    by_type = found.counts.sum(axis=0).astype(np.float64)
    figures = {**micro_of(by_type), "accuracy": float(np.mean(right))}
    for kind, counts in zip(found.types, by_type):
        figures |= {f"{name}/{kind}": value for name, value in micro_of(counts[None]).items()}
    return figures


def answers(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """Return the figures of answers, as SQuAD's script counts them, but as shares.

    Where some questions have an answer and others none, `exact_match` and `f1` also stand for each part
    (`has_answer_f1`, `no_answer_f1`, …). `character_f1` is for languages without spaces.

    Args:
        gold: For each question the texts that are right; none: it has no answer.
        predicted: A text for each; empty: no answer.

    Raises:
        InputError: There are more or fewer predictions than questions.
    """
    scores = score_answers(gold, predicted)
    if not len(scores.f1):
        return {}
    parts = {"exact_match": scores.exact_match, "f1": scores.f1, "character_f1": scores.character_f1}
    figures = {name: float(part.mean()) for name, part in parts.items()}
    if scores.has_answer.any() and not scores.has_answer.all():
        for name in ("exact_match", "f1"):
            figures[f"has_answer_{name}"] = float(parts[name][scores.has_answer].mean())
            figures[f"no_answer_{name}"] = float(parts[name][~scores.has_answer].mean())
    return figures


def choices(gold: Sequence[int], scores: Sequence[ArrayLike]) -> dict[str, float]:
    """Return the figures of choosing one of several.

    Args:
        gold: The index of the right choice of each question.
        scores: The logits of each question's choices, of which there may be any number.

    Raises:
        InputError: More or fewer scores than questions, or a right choice that is not among them.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in scores]
    if len(parts) != len(gold):
        raise InputError(
            f"there are scores of {len(parts)} questions for {len(gold)}; each must have its own"
        )
    for index, (place, part) in enumerate(zip(gold, parts)):
        if not 0 <= place < len(part) or not np.isfinite(part).all():
            raise InputError(
                f"question {index} has {len(part)} choices and {place} as the right one; it must be one of "
                "them, counted from 0, and all scores finite"
            )
    if not parts:
        return {}
    nats = [float(losses(np.array([place]), part[None])[0]) for place, part in zip(gold, parts)]
    right = [int(part.argmax()) == place for place, part in zip(gold, parts)]
    return {"accuracy": float(np.mean(right)), "log_loss": float(np.mean(nats))}


# Parts of these, from counts: the intervals use them a thousand times over.


def as_columns(numbers: ArrayLike) -> Array:
    """Return `[n]` or `[n, L]` numbers as `[n, L]`."""
    array = np.asarray(numbers, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array


def confusion_matrix(gold: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int) -> Counts:
    """Count `[L, L]` examples by the right label (row) and the predicted one (column)."""
    cells = np.bincount(gold * num_labels + predicted, minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels).astype(np.float64)


def accuracy_of(confusion: Counts) -> float:
    """Return the share on the diagonal."""
    return float(np.trace(confusion) / max(confusion.sum(), 1))


def f1_of(confusion: Counts) -> Array:
    """Return each label's F1; 0 for one that does not occur."""
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return np.asarray(2 * np.diag(confusion) / np.maximum(both, 1))


def macro_f1_of(confusion: Counts) -> float:
    """Return the mean F1 of the labels that occur."""
    occurs = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return float(f1_of(confusion)[occurs].mean()) if occurs.any() else 0.0


def mcc_of(confusion: Counts) -> float:
    """Return Matthews' correlation; 0 where a side has but one label."""
    total, right = confusion.sum(), np.trace(confusion)
    predicted, gold = confusion.sum(axis=0), confusion.sum(axis=1)
    squares = (total**2 - (predicted**2).sum()) * (total**2 - (gold**2).sum())
    return float((right * total - (predicted * gold).sum()) / np.sqrt(squares)) if squares > 0 else 0.0


def label_counts(gold: NDArray[np.generic], predicted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return `[n, L, 3]`: whether each label is right, was predicted, and should have been."""
    truth = np.asarray(gold, dtype=bool)
    return np.stack([truth & predicted, predicted, truth], axis=-1).astype(np.int64)


def micro_of(counts: NDArray[np.generic]) -> dict[str, float]:
    """Return precision, recall and F1 of `[K, 3]` counts (right, predicted, true) taken together."""
    right, predicted, true = (float(part) for part in np.asarray(counts).sum(axis=0))
    return {
        "precision": right / max(predicted, 1),
        "recall": right / max(true, 1),
        "f1": 2 * right / max(predicted + true, 1),
    }


def macro_of(counts: NDArray[np.generic]) -> float:
    """Return the mean F1 over the K rows of `[K, 3]` counts (right, predicted, true) that are not empty."""
    right, predicted, true = np.asarray(counts, dtype=np.float64).T
    occurs = predicted + true > 0
    return float((2 * right[occurs] / (predicted + true)[occurs]).mean()) if occurs.any() else 0.0


def pearson_of(gold: Array, predicted: Array, times: Array) -> float:
    """Return the mean over columns of Pearson's correlation, row i counted `times[i]` times."""
    total = times.sum()
    left = gold - times @ gold / total
    right = predicted - times @ predicted / total
    both = times @ (left * right)
    sizes = np.sqrt(times @ left**2) * np.sqrt(times @ right**2)
    # Constant but for rounding is constant.
    smallest = 1e-12 * total * np.abs(gold).max(axis=0) * np.abs(predicted).max(axis=0)
    known = (sizes > smallest) & (sizes > 0)
    return float(np.clip(np.where(known, both / np.where(known, sizes, 1), 0.0), -1, 1).mean())


def spearman_of(gold: Array, predicted: Array) -> float:
    """Return the mean over columns of Spearman's correlation, that of ranks."""
    try:
        from scipy.stats import rankdata
    except ImportError:
        raise _missing("Spearman's correlation", "scipy") from None
    return pearson_of(rankdata(gold, axis=0), rankdata(predicted, axis=0), np.ones(len(gold)))


def _r2(gold: Array, predicted: Array) -> float:
    left = ((gold - predicted) ** 2).sum()
    if (gold == gold[0]).all():
        return float(left == 0)
    return float(1 - left / ((gold - gold.mean()) ** 2).sum())


def _areas(gold: NDArray[np.generic], scores: Array) -> dict[str, float]:
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError:
        raise _missing("areas under curves", "scikit-learn") from None
    found = {"average_precision": float(average_precision_score(gold, scores))} if gold.any() else {}
    if gold.any() and not gold.all():
        found["roc_auc"] = float(roc_auc_score(gold, scores))
    return found


def _missing(what: str, library: str) -> BackendError:
    return BackendError(
        f"{what} needs {library}, which is not installed; run `pip install 'modernbert[finetune]'`"
    )


def _checked_classes(gold: ArrayLike, logits: ArrayLike, num_labels: int) -> tuple[NDArray[np.int64], Array]:
    truth, outputs = np.asarray(gold, dtype=np.int64), np.asarray(logits, dtype=np.float64)
    outputs = outputs.reshape(len(outputs), -1) if outputs.size else outputs.reshape(0, num_labels)
    if truth.shape != outputs.shape[:1] or outputs.shape[1] != num_labels:
        raise InputError(
            f"logits are {list(outputs.shape)} for {len(truth)} examples and {num_labels} labels; they must "
            f"be [{len(truth)}, {num_labels}]"
        )
    if len(truth) and (truth.min() < 0 or truth.max() >= num_labels):
        wrong = int(truth.min() if truth.min() < 0 else truth.max())
        raise InputError(f"a right label is {wrong}; it must be from 0 to {num_labels - 1}; leave it out")
    _check_finite(outputs)
    return truth, outputs


def _checked_pair(gold: ArrayLike, predicted: ArrayLike) -> tuple[Array, Array]:
    truth, guess = np.asarray(gold, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if truth.shape != guess.shape or (truth.size and truth.ndim != 2):
        raise InputError(
            f"predictions are {list(guess.shape)} where what is right is {list(truth.shape)}; both must be "
            "[examples, numbers of each]"
        )
    _check_finite(truth)
    _check_finite(guess)
    return truth, guess


def _check_finite(numbers: Array) -> None:
    if not np.isfinite(numbers).all():
        raise InputError(
            f"{int((~np.isfinite(numbers)).sum())} of {numbers.size} numbers are not finite; figures need "
            "all of them; the model may have diverged: try a lower learning rate"
        )
