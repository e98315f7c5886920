"""The outcome of a fine-tuning benchmark as tables, with published rows beside ours."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from modernbert.evaluate.collected import Figure, Outcome
from modernbert.evaluate.finetuned import SUITES
from modernbert.evaluate.measured import NOTHING, Measured, Rows
from modernbert.evaluate.published import PUBLISHED
from modernbert.evaluate.suites import DEV, TRAIN, SuiteTask
from modernbert.telemetry import human

NOT_FROM_MNLI = "†"


def report(outcome: Outcome) -> Measured:
    """Return the outcome as text and as values."""
    return Measured(
        headline=headline(outcome),
        tables=tables(outcome),
        remarks=remarks(outcome),
        figures=outcome.to_json(),
    )


def headline(outcome: Outcome) -> str:
    """Say in a line what was measured."""
    limit = "" if outcome.limit is None else f"; only {outcome.limit:,} rows of each split: a try, no result"
    return (
        f"{SUITES[outcome.suite].title} of {outcome.model}: {human(outcome.parameters)} parameters, "
        f"{len(outcome.finished)} runs, {outcome.hours:.1f} hours{limit}"
    )


def tables(outcome: Outcome) -> dict[str, Rows]:
    """Return each table by its title: rows of equal keys, all text."""
    return {"Scores, %": _score_rows(outcome), "Runs": _run_rows(outcome)}


def remarks(outcome: Outcome) -> list[str]:
    """Say what a reader of the tables must know."""
    told = [*outcome.notes]
    if any(_is_marked(outcome, task) for task in _tasks(outcome)):
        told.append(f"{NOT_FROM_MNLI} started from the model itself; as published it starts from MNLI")
    if any(len(outcome.runs(task)) > 1 for task in outcome.tasks):
        told.append("±: standard deviation over seeds")
    if _counted(outcome) and not _is_whole(outcome):
        told.append("mean: over the tasks that were run, in published rows too")
    return told


def _tasks(outcome: Outcome) -> list[SuiteTask]:
    return [SUITES[outcome.suite].tasks[name] for name in outcome.tasks]


def _score_rows(outcome: Outcome) -> Rows:
    """Lay out a row a published model, and ours below."""
    rows = []
    for published in PUBLISHED[outcome.suite]:
        cells = {task.title: _percent(published.scores.get(task.name)) for task in _tasks(outcome)}
        if any(cell != NOTHING for cell in cells.values()):
            rows.append(
                {
                    "model": published.model,
                    "parameters": published.parameters,
                    **cells,
                    **_mean_cell(outcome, published.scores),
                }
            )
    ours = {task.name: _headline_figure(outcome, task) for task in _tasks(outcome)}
    means = {name: 100 * figure.mean for name, figure in ours.items()}
    rows.append(
        {
            "model": f"{outcome.model} (ours)",
            "parameters": human(outcome.parameters),
            **{
                task.title: _shown(ours[task.name]) + f" {NOT_FROM_MNLI}" * _is_marked(outcome, task)
                for task in _tasks(outcome)
            },
            **_mean_cell(outcome, means),
        }
    )
    return rows


def _mean_cell(outcome: Outcome, scores: Mapping[str, float]) -> dict[str, str]:
    """Return the mean over the tasks that were run, under its title; nothing if none of them counts."""
    counted = _counted(outcome)
    if not counted:
        return {}
    suite = SUITES[outcome.suite]
    title = "mean" if _is_whole(outcome) else f"mean of {len(counted)} of {len(suite.default)}"
    whole = all(name in scores for name in counted)
    return {title: _percent(statistics.mean(scores[name] for name in counted) if whole else None)}


def _counted(outcome: Outcome) -> list[str]:
    return [task.name for task in _tasks(outcome) if task.in_mean]


def _is_whole(outcome: Outcome) -> bool:
    return set(SUITES[outcome.suite].default) <= set(outcome.tasks)


def _is_marked(outcome: Outcome, task: SuiteTask) -> bool:
    return task.from_mnli and not outcome.runs(task.name)[0].from_mnli


def _run_rows(outcome: Outcome) -> Rows:
    rows = []
    for task in _tasks(outcome):
        runs = outcome.runs(task.name)
        metrics = [
            ("" if split == DEV else f"{split}: ")
            + ", ".join(f"{metric} {_shown(figure)}" for metric, figure in found.items())
            for split, found in outcome.figures(task.name).items()
        ]
        rows.append(
            {
                "task": task.title,
                "scores": "; ".join(metrics),
                "rate / decay / epochs": str(runs[0].values),
                "seeds": ", ".join(str(it.seed) for it in runs),
                "start": runs[0].start,
                "train": f"{outcome.examples[task.name][TRAIN]:,}",
                "minutes": f"{sum(it.seconds for it in runs) / 60:.1f}",
            }
        )
    return rows


def _headline_figure(outcome: Outcome, task: SuiteTask) -> Figure:
    return outcome.figures(task.name)[task.scored_on][task.metrics[0]]


def _shown(figure: Figure) -> str:
    spread = "" if figure.spread is None else f" ±{100 * figure.spread:.1f}"
    return f"{100 * figure.mean:.1f}{spread}"


def _percent(score: float | None) -> str:
    return NOTHING if score is None else f"{score:.1f}"
