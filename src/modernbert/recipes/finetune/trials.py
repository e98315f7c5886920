"""Several fine-tuning runs in place of one: over seeds, folds and values of settings."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modernbert import config, files
from modernbert.errors import ConfigError
from modernbert.recipes.finetune.about import read_about, write_about
from modernbert.recipes.finetune.findings import read_findings, write_findings
from modernbert.recipes.finetune.intervals import spread
from modernbert.recipes.finetune.report import write_report
from modernbert.recipes.finetune.session import finetune_on
from modernbert.recipes.finetune.settings import FinetuneRun, TrialSettings
from modernbert.recipes.tuning.selection import cost
from modernbert.recipes.tuning.session import MODEL, TuningResult, facts_of, own_folder, processes
from modernbert.train.ranks import Ranks

log = logging.getLogger(__name__)

FOLDER, OUTCOME = "trials", "trials.json"
SET_BY_TRIALS = ("folder", "seed", "data.fold", "data.folds")
SHARED_BY_TRIALS = ("device", "distribution.timeout_seconds")


@dataclass(frozen=True)
class Trial:
    """One run of several.

    Attributes:
        choice: What distinguishes it, but for seed and fold: the values of settings that are searched.
        name: Of its folder.
        run: Its settings.
    """

    choice: dict[str, Any]
    name: str
    run: FinetuneRun


Outcome = tuple[Trial, TuningResult]


def trials_of(run: FinetuneRun) -> list[Trial]:
    """Return the runs that a run stands for; one alone is the run itself.

    Raises:
        ConfigError: A setting that is searched is unknown, or a value does not fit.
    """
    settings = run.trials
    if settings.folds and run.data.validation is not None:
        raise ConfigError(
            f"`trials.folds` is {settings.folds} and `data.validation` `{run.data.validation}`; with folds "
            "each part of `data.train` is the validation once; leave one of them out"
        )
    for name in settings.search:
        if name in SET_BY_TRIALS or name.startswith("trials"):
            raise ConfigError(
                f"`trials.search` has `{name}`, which the trials set themselves; leave it out; for several "
                "seeds or folds there are `trials.seeds` and `trials.folds`"
            )
        if name in SHARED_BY_TRIALS:
            raise ConfigError(f"`trials.search` has `{name}`, which all trials share; leave it out")
    tree = config.to_tree(run)
    tree.pop("trials")
    if settings == TrialSettings():
        return [Trial({}, "", config.build(FinetuneRun, tree))]
    return [
        _trial(tree, dict(zip(settings.search, values)), seed, fold, settings.folds)
        for values in itertools.product(*settings.search.values())
        for seed in range(run.seed, run.seed + settings.seeds)
        for fold in (range(settings.folds) if settings.folds else [None])
    ]


def finetune_all(run: FinetuneRun) -> list[Outcome]:
    """Carry out all runs that a run stands for, one after the other; the same call goes on.

    Of several, each has its folder below `trials/`; the run's own gets `run.yaml`, the best one's model as
    `model/`, and `trials.json`, what all came to. It raises what `finetune` raises.

    Returns:
        The trials, the best first; those after one that a signal stopped are left out.
    """
    trials = trials_of(run)
    with processes(run) as (ranks, device):
        if not trials[0].name:
            return [(trials[0], finetune_on(run, ranks, device))]
        with own_folder(run, ranks, facts_of(ranks, device)):
            outcomes = _carry_out(trials, ranks, device)
            if outcomes[-1][1].stopped_by is not None:
                return outcomes[::-1]
            best_first = _best_first(outcomes)
            if ranks.is_first:
                _write(Path(run.folder), best_first)
            ranks.meet()
            return best_first


def _carry_out(trials: Sequence[Trial], ranks: Ranks, device: torch.device) -> list[Outcome]:
    """Carry out one trial after the other, up to one that a signal stops."""
    outcomes: list[Outcome] = []
    for number, trial in enumerate(trials, start=1):
        log.info("trial %d of %d: %s", number, len(trials), trial.name)
        outcomes.append((trial, finetune_on(trial.run, ranks, device)))
        if outcomes[-1][1].stopped_by is not None:
            break
    return outcomes


def _best_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    choices = sorted(_by_choice(outcomes), key=_mean_cost)
    return [outcome for alike in choices for outcome in sorted(alike, key=_cost)]


def _trial(tree: dict[str, Any], choice: dict[str, Any], seed: int, fold: int | None, folds: int) -> Trial:
    name = "-".join(
        [
            *(f"{key.rpartition('.')[2]}={value}" for key, value in choice.items()),
            f"seed={seed}",
            *([] if fold is None else [f"fold={fold}"]),
        ]
    )
    changed = {**choice, "seed": seed, "folder": str(Path(tree["folder"]) / FOLDER / name)}
    if fold is not None:
        changed |= {"data.fold": fold, "data.folds": folds}
    run = config.build(FinetuneRun, config.override(tree, _assignments(changed)))
    return Trial(choice, name, run)


def _assignments(changed: dict[str, Any]) -> Iterator[str]:
    for key, value in changed.items():
        yield f"{key}={json.dumps(value)}"


def _by_choice(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Bring together what differs in seed and fold alone."""
    groups: dict[str, list[Outcome]] = {}
    for trial, result in outcomes:
        groups.setdefault(repr(trial.choice), []).append((trial, result))
    return list(groups.values())


def _cost(outcome: Outcome) -> float:
    """Return what is the lower the better."""
    result = outcome[1]
    return float("inf") if result.score is None else cost(result.metric, result.score)


def _mean_cost(outcomes: Sequence[Outcome]) -> float:
    return sum(map(_cost, outcomes)) / len(outcomes)


def _write(folder: Path, best_first: Sequence[Outcome]) -> None:
    """Write what all trials came to, and the best one's model with a report on all that are like it."""
    rows = [
        {"trial": trial.name, **trial.choice, "seed": trial.run.seed, "score": result.score, **result.figures}
        for trial, result in best_first
    ]
    best, result = best_first[0]
    files.write_json(folder / OUTCOME, {"metric": result.metric, "best_first": rows})
    assert result.model is not None  # none was stopped
    shutil.rmtree(folder / MODEL, ignore_errors=True)  # that of an earlier call
    with files.atomic_folder(folder / MODEL) as temporary:
        _copy(result.model, temporary)
    alike = [outcome for outcome in best_first if outcome[0].choice == best.choice]
    about = replace(
        read_about(Path(best.run.folder)),
        model=folder.name,
        seeds=tuple(trial.run.seed for trial, _ in alike),
        runs=tuple(f"{FOLDER}/{trial.name}" for trial, _ in alike),
        seconds=sum(it.seconds for _, it in best_first),
    )
    write_about(folder, about)
    if result.figures:
        _write_findings(folder, Path(best.run.folder), [it for _, it in alike])
        write_report(folder)


def _copy(folder: Path, to: Path) -> None:
    """Copy the files of a folder; unlike `shutil.copytree`, which hides why it cannot."""
    for file in sorted(it for it in folder.rglob("*") if it.is_file()):
        target = to / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _write_findings(folder: Path, best: Path, alike: Sequence[TuningResult]) -> None:
    """Write what was found of the best run, with how far its figures lie apart over runs that are alike."""
    for found in read_findings(best):
        figures = [result.figures[found.split] for result in alike]
        apart = {name: spread([it[name] for it in figures if name in it]) for name in found.figures}
        known = {name: it for name, it in apart.items() if it is not None}
        write_findings(folder, replace(found, spread=known))
