"""The verbs of `modernbert evaluate`: a model fine-tuned on benchmarks' tasks, or measured as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from modernbert.cli import measuring
from modernbert.cli.options import AsJson
from modernbert.cli.training import Overrides

app = typer.Typer(no_args_is_help=True, help="Measure a model, as it is or fine-tuned on tasks.")

RunFile = Annotated[
    Path | None, typer.Option("--run", metavar="RUN.yaml", help="A run file; options and changes go before.")
]
ModelToTune = Annotated[
    str | None, typer.Option("--model", "-m", help="Folder or hub id of what is fine-tuned.")
]
DataFolder = Annotated[str | None, typer.Option("--data", help="A folder with a folder a task, or `hub`.")]
Output = Annotated[
    str | None, typer.Option("--output", "-o", help="Gets models and results; the same command goes on.")
]
TaskNames = Annotated[
    list[str] | None,
    typer.Option("--tasks", metavar="NAME,NAME…", help="All whose data are there, if not given."),
]
Seeds = Annotated[int | None, typer.Option(help="Runs of each task, for the spread.")]
Grid = Annotated[bool, typer.Option("--grid", help="Sweep rates, decays and epochs; take the best on dev.")]
ValuesOf = Annotated[str | None, typer.Option("--values", help="Best values of base or large; or auto.")]
Limit = Annotated[int | None, typer.Option(help="Only so many rows of each split, for a try.")]
Mnli = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL|auto|none",
        help="What RTE, MRPC and STS-B start from: a model tuned on MNLI; auto: tune one first.",
    ),
]


@app.command(rich_help_panel="Fine-tuned on tasks")
def glue(
    overrides: Overrides = None,
    run_file: RunFile = None,
    model: ModelToTune = None,
    data: DataFolder = None,
    output: Output = None,
    tasks: TaskNames = None,
    seeds: Seeds = None,
    grid: Grid = False,
    values: ValuesOf = None,
    mnli: Mnli = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """GLUE as the paper does it: its values or its grid, RTE, MRPC and STS-B from MNLI (App. E.1)."""
    given = {"model": model, "data": data, "folder": output, "seeds": seeds, "limit": limit}
    _evaluate("glue", run_file, overrides, tasks, grid, {**given, "values": values, "mnli": mnli}, as_json)


@app.command(rich_help_panel="Fine-tuned on tasks")
def superglue(
    overrides: Overrides = None,
    run_file: RunFile = None,
    model: ModelToTune = None,
    data: DataFolder = None,
    output: Output = None,
    tasks: TaskNames = None,
    seeds: Seeds = None,
    grid: Grid = False,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """SuperGLUE's BoolQ, CB, COPA, MultiRC and WiC."""
    given = {"model": model, "data": data, "folder": output, "seeds": seeds, "limit": limit}
    _evaluate("superglue", run_file, overrides, tasks, grid, given, as_json)


@app.command(rich_help_panel="Fine-tuned on tasks")
def ner(
    overrides: Overrides = None,
    run_file: RunFile = None,
    model: ModelToTune = None,
    data: DataFolder = None,
    output: Output = None,
    tasks: TaskNames = None,
    seeds: Seeds = None,
    grid: Grid = False,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Named entities: CoNLL-2003, WNUT-17 and WikiANN, entity F1 on the test sets."""
    given = {"model": model, "data": data, "folder": output, "seeds": seeds, "limit": limit}
    _evaluate("ner", run_file, overrides, tasks, grid, given, as_json)


def _evaluate(
    suite: str,
    run_file: Path | None,
    overrides: list[str] | None,
    tasks: list[str] | None,
    grid: bool,
    given: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Carry out a benchmark, write and show what it found."""
    from modernbert import config
    from modernbert.errors import ConfigError
    from modernbert.evaluate import finetuned_report
    from modernbert.evaluate.finetuned import EvaluationRun
    from modernbert.evaluate.predictions import predict
    from modernbert.evaluate.runner import Result, evaluate
    from modernbert.recipes.finetune.session import finetune
    from modernbert.recipes.finetune.settings import FinetuneRun

    def finetune_tree(tree: dict[str, Any]) -> Result:
        return finetune(config.build(FinetuneRun, tree))

    tree = {"suite": suite, "folder": f"{suite}-results", **(config.load(run_file) if run_file else {})}
    if tree["suite"] != suite:
        other = tree["suite"]
        raise ConfigError(
            f"`{run_file}` is a run of {other}, not of {suite}; use `modernbert evaluate {other}`"
        )
    tree.update({key: value for key, value in given.items() if value is not None})
    if tasks is not None:
        tree["tasks"] = [name.strip() for name in ",".join(tasks).split(",") if name.strip()]
    if grid:
        tree["grid"] = True
    run = config.build(EvaluationRun, config.override(tree, overrides or []))
    outcome = evaluate(run, finetune=finetune_tree, predict=predict)
    measuring.show(finetuned_report.report(outcome), Path(run.folder), as_json)


for verb in (
    measuring.masked,
    measuring.needle,
    measuring.cloze,
    measuring.retrieval,
    measuring.rerank,
    measuring.sts,
):
    app.command(rich_help_panel="As it is")(verb)
