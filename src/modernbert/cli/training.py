"""The verbs of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modernbert import telemetry
from modernbert.cli.options import MaxDocumentBytes, TextFiles, TextKey, TextUnit, TokenizerName

Overrides = Annotated[list[str] | None, typer.Argument(help="Changes of settings: path.to.key=value …")]


def pretrain(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved run and what it takes, and stop.")
    ] = False,
) -> None:
    """Pretrain an encoder as a run file says; the same command goes on where a run was stopped."""
    from modernbert import config
    from modernbert.recipes import plan as plans
    from modernbert.recipes import settings
    from modernbert.recipes.pretrain import pretrain as carry_out

    run = settings.read_run(run_file, overrides or [])
    telemetry.table("Phases", settings.phase_rows(run))
    if dry_run:
        found = plans.plan(run, plans.machines_here(run.log.peak_tflops))
        telemetry.note(plans.headline(found))
        for title, rows in plans.cost_tables(found).items():
            telemetry.table(title, rows)
        telemetry.result(config.dump(run).rstrip())
        return
    outcome = carry_out(run)
    telemetry.result(outcome.summary())
    if outcome.stopped_by is not None:
        raise typer.Exit(1)


def tokenize(
    files: TextFiles,
    model: TokenizerName,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; a part of it goes on.")],
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after so many tokens.")] = None,
    shard_tokens: Annotated[
        int, typer.Option(help="Tokens of a shard; 1e8 and more for corpora beyond 1e11.")
    ] = 10_000_000,
) -> None:
    """Turn text into token shards, which a run file's sources may name as their `path`."""
    from modernbert.data.tokenizer import Tokenizer
    from modernbert.recipes import prepare

    shards = prepare.tokenize(
        files,
        Tokenizer.from_pretrained(model),
        output,
        text_key=text_key,
        text_unit=text_unit,
        max_document_bytes=max_document_bytes,
        max_tokens=max_tokens,
        shard_tokens=shard_tokens,
    )
    telemetry.result(f"{output}: {shards.num_documents} documents, {shards.num_tokens} tokens")


def average(
    folders: Annotated[
        list[Path], typer.Argument(help="Models or checkpoints of one shape, the newest last.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, new.")],
    how: Annotated[str, typer.Option(help="mean, exponential or ties.")] = "mean",
    decay: Annotated[
        float, typer.Option(help="For exponential: what each weighs relative to the next.")
    ] = 0.5,
    base: Annotated[
        Path | None, typer.Option(help="For ties: folder of the model that all of them began as.")
    ] = None,
    density: Annotated[float, typer.Option(help="For ties: share of each one's changes that counts.")] = 0.2,
) -> None:
    """Average the weights of several checkpoints into a model, or merge them in another way."""
    from modernbert import config
    from modernbert.train.merging import MergeSettings, merge_checkpoints

    given = {"how": how, "decay": decay, "base": base, "density": density}
    merge_checkpoints(folders, output, config.build(MergeSettings, given))
    telemetry.result(str(output))


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or going on.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write to this name with .html and .png; else `report` in the first folder.",
        ),
    ] = None,
) -> None:
    """Draw runs: loss, accuracy, learning rate, throughput … against tokens, as a page and a picture."""
    from modernbert.recipes.report import write_report

    page, picture = write_report(folders, output)
    telemetry.result(f"{page}\n{picture}")


def tour(
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("tour"),
) -> None:
    """Pretrain a tiny encoder on Python's own documentation, and fill masks with it: a few minutes."""
    from modernbert.recipes.tour import tour as carry_out

    outcome = carry_out(folder, overrides or [])
    telemetry.result(outcome.summary())
    if outcome.training.stopped_by is not None:
        raise typer.Exit(1)
