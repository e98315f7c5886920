"""The verb of fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modernbert import telemetry
from modernbert.cli.training import Overrides
from modernbert.errors import ConfigError, did_you_mean

TASKS = ("classify", "tag", "answer", "choose", "prompt")

_File = Annotated[str | None, typer.Option(help=".csv, .tsv, .jsonl, .json, .parquet; .conll for tags.")]


def finetune(
    what: Annotated[
        str, typer.Argument(metavar="TASK|RUN.yaml", help=f"One of {', '.join(TASKS)}; or a run file.")
    ],
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Checkpoint to begin with: folder or hub id.")
    ] = None,
    train: _File = None,
    validation: _File = None,
    test: _File = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Train with so many seeds, take the best.")] = None,
    folds: Annotated[int | None, typer.Option(help="Hold out each of so many parts once.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Make a model for a task of a checkpoint and a file of examples; the same command goes on."""
    from modernbert.recipes.finetune import settings
    from modernbert.recipes.finetune.trials import finetune_all

    run_file = _run_file(what)
    data = _without_none(train=train, validation=validation, test=test)
    given = _without_none(
        task=None if run_file else what,
        model=model,
        folder=_folder(what, output, run_file),
        data=data or None,
        trials=_without_none(seeds=seeds, folds=folds) or None,
    )
    outcomes = finetune_all(settings.read_run(run_file, given, overrides or []))
    best = outcomes[0][1]
    if as_json:
        telemetry.result_json([{"trial": trial.name, **result.facts()} for trial, result in outcomes])
    else:
        if len(outcomes) > 1:
            telemetry.table("Trials", [_row(trial.name, result) for trial, result in outcomes])
        telemetry.result(best.summary())
    if best.stopped_by is not None:
        raise typer.Exit(1)


def _run_file(what: str) -> Path | None:
    if what.endswith((".yaml", ".yml")):
        return Path(what)
    if what not in TASKS:
        raise ConfigError(
            f"`{what}` is neither a task nor a run file; it must be one of {', '.join(TASKS)}, or end in "
            f".yaml{did_you_mean(what, TASKS)}"
        )
    return None


def _folder(what: str, output: Path | None, run_file: Path | None) -> str | None:
    """Return the run's folder: as given, as the run file says, or named after the task."""
    if output is not None:
        return str(output)
    return None if run_file else f"{what}-run"


def _without_none(**given: Any) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def _row(name: str, result: Any) -> dict[str, str]:
    figures = {f"{split} {result.metric}": f"{it[result.metric]:.4f}" for split, it in result.figures.items()}
    return {"trial": name, **figures, "steps": f"{result.steps:,}", "seconds": f"{result.seconds:.0f}"}
