"""The verb that measures how fast a model is, beside others."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from modernbert import telemetry
from modernbert.cli import human
from modernbert.cli.options import AsJson, Device, Dtype, ModelName


def bench(
    model: ModelName,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backends: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME…", help="Of ours. On a GPU all that serve, else what load chooses."),
    ] = None,
    sets: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME…",
            help="short-fixed, short-variable, long-fixed, long-variable; all if not given, `none` for none.",
        ),
    ] = None,
    peers: Annotated[
        bool, typer.Option(help="Measure transformers and sentence-transformers too, where installed.")
    ] = True,
    compiled: Annotated[
        bool | None, typer.Option(help="Measure peers compiled too. On a GPU it is done if not given.")
    ] = None,
    latency: Annotated[bool, typer.Option(help="Time single sequences.")] = True,
    largest: Annotated[bool, typer.Option(help="Find the largest batches, on CUDA.")] = True,
    tokens: Annotated[int | None, typer.Option(help="About so many places a set.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Places of a batch.")] = None,
    repetitions: Annotated[int | None, typer.Option(help="Of each set, after one that warms up.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Gets bench.json, bench.svg and bench.png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure tokens a second, MFU, latency and largest batches of a model, beside its peers (paper 3.7)."""
    from modernbert.evaluate import bench_report
    from modernbert.evaluate.bench import BenchSettings, run_bench
    from modernbert.evaluate.workloads import SETS

    settings = BenchSettings(
        device=device,
        dtype=dtype,
        backends=_names(backends),
        sets=SETS if sets is None else () if sets == "none" else _names(sets) or (),
        peers=peers,
        compiled=compiled,
        latency=latency,
        largest=largest,
        tokens=tokens,
        batch_tokens=batch_tokens,
        repetitions=repetitions,
    )

    on_part = (lambda outcome: None) if output is None else partial(bench_report.write_json, folder=output)
    outcome = run_bench(model, settings, on_part=on_part)
    if output is not None:
        bench_report.save(outcome, output)
    if as_json:
        telemetry.result_json(outcome.to_json())
        return
    shown = bench_report.headline(outcome), bench_report.tables(outcome), outcome.notes
    telemetry.result(human.report(*shown))


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
