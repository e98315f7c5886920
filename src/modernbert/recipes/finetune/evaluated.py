"""From what is right and what was predicted to `Findings`, by problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modernbert.recipes.finetune import intervals, metrics
from modernbert.recipes.finetune.calibration import Array, losses, probabilities, reliability
from modernbert.recipes.finetune.entities import count_entities, type_of
from modernbert.recipes.finetune.findings import Findings, HardExample, LabelRow
from modernbert.recipes.finetune.intervals import Interval, Measure
from modernbert.recipes.finetune.squad import score_answers

HARDEST = 20
TEXT_LETTERS = 240


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How an evaluated example is shown, should it be among the hardest.

    Attributes:
        text: Its text or texts, of any length.
        place: Where it is: a file and its line.
    """

    text: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How intervals are found; for the fields see `intervals.bootstrap`. Without resamples there are none."""

    resamples: int = 1000
    seed: int = 0


def of_classes(
    split: str,
    gold: ArrayLike,
    logits: ArrayLike,
    labels: Sequence[str],
    shown: Sequence[Shown],
    *,
    temperature: float | None = None,
    sampling: Sampling = Sampling(),
) -> Findings:
    """Evaluate one label of several.

    Args:
        split: Its name.
        gold: `[n]`, each example's label.
        logits: `[n, L]`, as the model gives them.
        labels: Names of the L labels.
        shown: The n examples.
        temperature: As `calibration.fit_temperature` found it on validation; it is kept, not applied.
        sampling: Of the intervals.

    Raises:
        InputError: As `metrics.classes`.
        BackendError: As `metrics.classes`.
    """
    figures = metrics.classes(gold, logits, labels)
    truth = np.asarray(gold, dtype=np.int64)
    outputs = np.asarray(logits, dtype=np.float64).reshape(len(truth), len(labels))
    chances, predicted = probabilities(outputs, multi_label=False), outputs.argmax(axis=1)
    nats = losses(truth, outputs)
    confusion = metrics.confusion_matrix(truth, predicted, len(labels))
    counts = np.stack([np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)], axis=1)

    def hard(index: int) -> tuple[str, str]:
        chosen = predicted[index]
        return labels[truth[index]], f"{labels[chosen]} ({chances[index, chosen]:.0%})"

    return Findings(
        problem="classes",
        split=split,
        num_examples=len(truth),
        figures=figures,
        intervals=_intervals(intervals.of_classes(truth, outputs, len(labels)), len(truth), sampling),
        labels=tuple(labels),
        confusion=_rows(confusion),
        reliability=reliability(chances.max(axis=1), predicted == truth) if len(truth) else (),
        temperature=temperature,
        per_label=_label_rows(labels, counts),
        hardest=tuple(_hard(index, nats, shown, *hard(index)) for index in _hardest(nats)),
    )


def of_label_sets(
    split: str,
    gold: ArrayLike,
    logits: ArrayLike,
    labels: Sequence[str],
    shown: Sequence[Shown],
    *,
    thresholds: Sequence[float] = (),
    temperature: float | None = None,
    sampling: Sampling = Sampling(),
) -> Findings:
    """Evaluate any number of labels at once.

    Args:
        split: Its name.
        gold: `[n, L]`, 0 or 1.
        logits: `[n, L]`.
        labels: Names of the L labels.
        shown: The n examples.
        thresholds: Of each label, as `calibration.best_thresholds` found them on validation. With them come
            the figures `tuned_micro_f1` and `tuned_macro_f1`.
        temperature: As `calibration.fit_temperature` found it on validation; it is kept, not applied.
        sampling: Of the intervals.

    Raises:
        InputError: As `metrics.label_sets`.
        BackendError: As `metrics.label_sets`.
    """
    figures = metrics.label_sets(gold, logits)
    truth = np.asarray(gold, dtype=np.float64).reshape(-1, len(labels))
    outputs = np.asarray(logits, dtype=np.float64).reshape(-1, len(labels))
    chances, nats = probabilities(outputs, multi_label=True), losses(truth, outputs)
    counts = metrics.label_counts(truth, chances >= 0.5).sum(axis=0)
    if thresholds and len(truth):
        tuned = metrics.label_counts(truth, chances >= np.asarray(thresholds)).sum(axis=0)
        figures["tuned_micro_f1"] = metrics.micro_of(tuned)["f1"]
        figures["tuned_macro_f1"] = metrics.macro_of(tuned)

    def names(chosen: NDArray[np.bool_]) -> str:
        return ", ".join(label for label, holds in zip(labels, chosen) if holds) or "none"

    sure = np.maximum(chances, 1 - chances)
    return Findings(
        problem="label_sets",
        split=split,
        num_examples=len(truth),
        figures=figures,
        intervals=_intervals(intervals.of_label_sets(truth, outputs), len(truth), sampling),
        reliability=reliability(sure.ravel(), ((chances >= 0.5) == truth).ravel()) if len(truth) else (),
        temperature=temperature,
        per_label=_label_rows(labels, counts, thresholds),
        hardest=tuple(
            _hard(index, nats, shown, names(truth[index] > 0), names(chances[index] >= 0.5))
            for index in _hardest(nats)
        ),
    )


def of_values(
    split: str,
    gold: ArrayLike,
    predicted: ArrayLike,
    shown: Sequence[Shown],
    *,
    sampling: Sampling = Sampling(),
) -> Findings:
    """Evaluate numbers; the loss of an example is its mean squared error.

    Args:
        split: Its name.
        gold: `[n]` or `[n, L]`.
        predicted: The same.
        shown: The n examples.
        sampling: Of the intervals.

    Raises:
        InputError: As `metrics.values`.
        BackendError: As `metrics.values`.
    """
    figures = metrics.values(gold, predicted)
    truth, guess = metrics.as_columns(gold), metrics.as_columns(predicted)
    errors = ((guess - truth) ** 2).mean(axis=1)

    def written(row: Array) -> str:
        return ", ".join(f"{value:.4g}" for value in row.tolist())

    return Findings(
        problem="values",
        split=split,
        num_examples=len(truth),
        figures=figures,
        intervals=_intervals(intervals.of_values(truth, guess), len(errors), sampling),
        hardest=tuple(
            _hard(index, errors, shown, written(truth[index]), written(guess[index]))
            for index in _hardest(errors)
        ),
    )


def of_tags(
    split: str,
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    shown: Sequence[Shown],
    *,
    losses: Sequence[float] | None = None,
    sampling: Sampling = Sampling(),
) -> Findings:
    """Evaluate tagged words.

    Args:
        split: Its name.
        gold: A tag for each word of each sequence.
        predicted: As many.
        shown: The n sequences, their words joined by spaces.
        losses: Of each sequence; by default its number of wrong tags.
        sampling: Of the intervals.

    Raises:
        InputError: As `metrics.tags`.
        BackendError: As `metrics.tags`.
    """
    figures = metrics.tags(gold, predicted)
    found = count_entities(gold, predicted)
    wrong = [sum(tag != guess for tag, guess in zip(*pair)) for pair in zip(gold, predicted)]
    order = np.array(wrong if losses is None else losses, dtype=np.float64)
    labels = tuple(sorted({type_of(tag) for side in (gold, predicted) for tags in side for tag in tags}))
    place = {label: index for index, label in enumerate(labels)}
    sides = [
        np.array([place[type_of(tag)] for tags in side for tag in tags], dtype=np.int64)
        for side in (gold, predicted)
    ]

    def differing(index: int) -> tuple[str, str]:
        pairs = [pair for pair in zip(gold[index], predicted[index]) if pair[0] != pair[1]]
        return _shorten(" ".join(tag for tag, _ in pairs)), _shorten(" ".join(guess for _, guess in pairs))

    return Findings(
        problem="tags",
        split=split,
        num_examples=len(gold),
        figures=figures,
        intervals=_intervals(intervals.of_tags(gold, predicted), len(gold), sampling) if figures else {},
        labels=labels,
        confusion=_rows(metrics.confusion_matrix(sides[0], sides[1], len(labels))) if labels else (),
        per_label=_label_rows(found.types, found.counts.sum(axis=0)),
        hardest=tuple(_hard(index, order, shown, *differing(index)) for index in _hardest(order)),
    )


def of_answers(
    split: str,
    gold: Sequence[Sequence[str]],
    predicted: Sequence[str],
    shown: Sequence[Shown],
    *,
    losses: Sequence[float] | None = None,
    sampling: Sampling = Sampling(),
) -> Findings:
    """Evaluate answers.

    Args:
        split: Its name.
        gold: For each question the texts that are right; none: it has no answer.
        predicted: A text for each; empty: no answer.
        shown: The n questions.
        losses: Of each; by default what its F1 lacks to 1.
        sampling: Of the intervals.

    Raises:
        InputError: As `metrics.answers`.
    """
    figures = metrics.answers(gold, predicted)
    scores = score_answers(gold, predicted)
    order = 1 - scores.f1 if losses is None else np.asarray(losses, dtype=np.float64)
    has_answer, answered = scores.has_answer, np.array([bool(text.strip()) for text in predicted], dtype=bool)
    some_have_none = len(has_answer) > 0 and not has_answer.all()
    confusion = metrics.confusion_matrix(has_answer.astype(np.int64), answered.astype(np.int64), 2)
    return Findings(
        problem="answers",
        split=split,
        num_examples=len(gold),
        figures=figures,
        intervals=_intervals(intervals.of_answers(gold, predicted), len(gold), sampling),
        labels=("no answer", "an answer") if some_have_none else (),
        confusion=_rows(confusion) if some_have_none else (),
        hardest=tuple(
            _hard(
                index,
                order,
                shown,
                _shorten(" | ".join(dict.fromkeys(gold[index]))) or "no answer",
                _shorten(predicted[index]) or "no answer",
            )
            for index in _hardest(order)
        ),
    )


def of_choices(
    split: str,
    gold: Sequence[int],
    scores: Sequence[ArrayLike],
    shown: Sequence[Shown],
    choices: Sequence[Sequence[str]],
    *,
    sampling: Sampling = Sampling(),
) -> Findings:
    """Evaluate choosing one of several.

    Args:
        split: Its name.
        gold: The index of the right choice of each question.
        scores: The logits of each question's choices.
        shown: The n questions.
        choices: The texts of each question's choices.
        sampling: Of the intervals.

    Raises:
        InputError: As `metrics.choices`.
    """
    figures = metrics.choices(gold, scores)
    parts = [np.asarray(part, dtype=np.float64) for part in scores]
    chances = [probabilities(part, multi_label=False) for part in parts]
    nats = np.array([losses(np.array([i]), part[None])[0] for i, part in zip(gold, parts)], dtype=np.float64)
    sure = np.array([part.max() for part in chances], dtype=np.float64)
    right = np.array([part.argmax() == place for place, part in zip(gold, parts)], dtype=bool)

    def hard(index: int) -> tuple[str, str]:
        chosen = int(parts[index].argmax())
        guess = f"{_shorten(choices[index][chosen])} ({sure[index]:.0%})"
        return _shorten(choices[index][gold[index]]), guess

    return Findings(
        problem="choices",
        split=split,
        num_examples=len(gold),
        figures=figures,
        intervals=_intervals(intervals.of_choices(gold, scores), len(gold), sampling),
        reliability=reliability(sure, right) if len(gold) else (),
        hardest=tuple(_hard(index, nats, shown, *hard(index)) for index in _hardest(nats)),
    )


def _intervals(measures: Mapping[str, Measure], num_examples: int, sampling: Sampling) -> dict[str, Interval]:
    if not sampling.resamples:
        return {}
    return intervals.bootstrap(measures, num_examples, resamples=sampling.resamples, seed=sampling.seed)


def _hardest(losses: NDArray[np.float64]) -> list[int]:
    """Return the places of the largest losses above 0, the largest first."""
    order = np.argsort(-losses, kind="stable")[:HARDEST]
    return [int(index) for index in order if losses[index] > 0]


def _hard(
    index: int, losses: NDArray[np.float64], shown: Sequence[Shown], gold: str, guess: str
) -> HardExample:
    example = shown[index]
    return HardExample(
        place=example.place,
        text=_shorten(example.text),
        gold=gold,
        predicted=guess,
        loss=float(losses[index]),
    )


def _shorten(text: str) -> str:
    """Bring a text to one line of a length that one reads."""
    flat = " ".join(text.split())
    return flat if len(flat) <= TEXT_LETTERS else flat[: TEXT_LETTERS - 1].rstrip() + "…"


def _rows(confusion: NDArray[np.float64]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in confusion.astype(int).tolist())


def _label_rows(
    labels: Sequence[str], counts: NDArray[np.generic], thresholds: Sequence[float] = ()
) -> tuple[LabelRow, ...]:
    """Describe each label of `[L, 3]` counts: right, predicted, true."""
    rows = []
    for index, (label, row) in enumerate(zip(labels, counts)):
        _, predicted, support = (int(count) for count in row)
        threshold = float(thresholds[index]) if len(thresholds) else None
        parts = metrics.micro_of(row[None])
        rows.append(LabelRow(label=label, support=support, predicted=predicted, threshold=threshold, **parts))
    return tuple(rows)
