"""The verb that trains retrievers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modernbert import telemetry
from modernbert.cli.training import Overrides


def train_retriever(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Train a checkpoint on pairs of texts whose vectors are to find each other; the same command goes on."""
    from modernbert.recipes.retriever import settings
    from modernbert.recipes.retriever.session import train_retriever as carry_out

    outcome = carry_out(settings.read_run(run_file, overrides or []))
    if as_json:
        telemetry.result_json(outcome.facts())
    else:
        telemetry.result(outcome.summary())
    if outcome.stopped_by is not None:
        raise typer.Exit(1)
