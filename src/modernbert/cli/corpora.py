"""The verbs of `modernbert data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modernbert import telemetry
from modernbert.cli.options import AsJson
from modernbert.cli.training import Overrides

app = typer.Typer(no_args_is_help=True, help="Look at token shards, and at what a run wants of them.")


@app.command()
def inspect(
    folders: Annotated[list[Path], typer.Argument(help="Folders of token shards.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare each file with its checksum.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say how many documents and tokens there are, how long they are, and whether all is whole."""
    from modernbert.data.shards import TokenShards

    rows = [_describe(folder, TokenShards.open(folder, verify=verify)) for folder in folders]
    if as_json:
        telemetry.result_json(rows)
    else:
        for row in rows:
            facts = ", ".join(f"{name} {_short(value)}" for name, value in row.items() if name != "folder")
            telemetry.result(f"{row['folder']}: {facts}")


@app.command()
def shares(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say how many tokens each phase wants of each source, and how many there are."""
    from modernbert import config
    from modernbert.recipes.prepare import find_shards
    from modernbert.recipes.settings import read_run
    from modernbert.recipes.supply import supplies

    run = read_run(run_file, overrides or [])
    shards = {source.name: find_shards(Path(run.folder), source) for source in run.data.sources}
    found = list(supplies(run, shards))
    if as_json:
        telemetry.result_json([{**config.to_tree(it), "epochs": it.epochs} for it in found])
        return
    for it in found:
        there = "not tokenised yet"
        if it.available is not None:
            there = f"{telemetry.human(it.available)} there: {it.epochs:.3g} epochs"
        wanted = telemetry.human(it.wanted)
        telemetry.result(f"{it.phase}: {it.source} {it.share:.1%}, {wanted} wanted, {there}")


def _describe(folder: Path, shards: Any) -> dict[str, Any]:
    lengths = shards.lengths
    return {
        "folder": str(folder),
        "documents": shards.num_documents,
        "tokens": shards.num_tokens,
        "mean length": float(lengths.mean()),
        "longest": int(lengths.max()),
        "vocabulary": shards.vocab_size,
        "tokenizer": shards.tokenizer_fingerprint[:12],
    }


def _short(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)
