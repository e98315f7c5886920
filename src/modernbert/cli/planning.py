"""The verb that says what a run will take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modernbert import telemetry
from modernbert.cli import human
from modernbert.cli.options import AsJson
from modernbert.cli.training import Overrides


def plan(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.")],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs.")] = 1,
    memory: Annotated[str, typer.Option(help="Memory of each: 80GB, 141GB, 24GiB.")] = "80GB",
    gpu: Annotated[str, typer.Option(help="Which kind, for its speed: H100, A100, RTX 4090 …")] = "H100",
    mfu: Annotated[float, typer.Option(help="Share of the GPU's speed that the model gets.")] = 0.3,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Of all GPUs, if you have measured it; then --mfu does not count.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run will take before it starts: steps, batches, memory by part, operations and hours."""
    from modernbert.recipes import plan as plans
    from modernbert.recipes import settings
    from modernbert.train.planner import Machines

    run = settings.read_run(run_file, overrides or [])
    machines = Machines(
        num_gpus=gpus,
        memory_bytes=plans.parse_size(memory),
        peak_tflops=run.log.peak_tflops or plans.peak_of(gpu),
        mfu=mfu,
        tokens_per_second=tokens_per_second,
    )
    found = plans.plan(run, machines)
    if as_json:
        telemetry.result_json(found.to_tree())
        return
    tables = {"Phases": settings.phase_rows(run), **plans.cost_tables(found)}
    telemetry.result(human.report(plans.headline(found), tables, ["\n\n".join(plans.remarks(found))]))
