"""Does each fast way of training learn as the plain one does, and what does it gain?

The same run on real text, from the same seed, once in plain bf16 and once with each option of a run file.
How far a loss curve may lie from the plain one is what another seed does to it. Each is a run of `modernbert
pretrain` in a folder of its own: stopped, it goes on where it was.

    python -m benchmarks.train_options RUN.yaml --output FOLDER --steps 500 [path.to.key=value …]
    python -m benchmarks.train_options RUN.yaml --output FOLDER --options compiled fp8 [path.to.key=value …]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.mini_sweep import train_afresh
from modernbert import runtime, telemetry
from modernbert.errors import ModernBertError
from modernbert.recipes.history import read_records
from modernbert.recipes.settings import PretrainRun, read_run

QUESTION = "Does each fast way of training learn as plain bf16 does, and what does it gain?"
PLAIN = "plain"
OTHER_SEED = "plain, another seed"
PLAINLY = ("compile=false", "fp8=false")
"""Unless an option says otherwise, whatever the run file says."""
OPTIONS: Mapping[str, Sequence[str]] = {
    PLAIN: (),
    OTHER_SEED: (),
    "compiled": ("compile=true",),
    "compiled, fa3": ("compile=true", "attention=fa3"),
    "compiled, fa4": ("compile=true", "attention=fa4"),
    "compiled, fused optimizer": ("compile=true", "optimizer.fused=true"),
    "compiled, fp8": ("compile=true", "fp8=true"),
}
WARM_UP = 10
"""Steps whose time does not count: kernels are compiled, memory is found."""
WINDOWS = 10
"""Parts of the run whose mean losses are compared."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, compare, write the result."""
    given = _parser().parse_intermixed_args(arguments)
    plain = _run(given, PLAIN)
    machine = runtime.machine_facts(runtime.choose_device(plain.device))
    courses: dict[str, list[dict[str, Any]]] = {}
    for name in dict.fromkeys((PLAIN, OTHER_SEED, *(given.options or OPTIONS))):
        run = plain if name == PLAIN else _with_shards_of(plain, _run(given, name))
        try:
            history = train_afresh(run)
        except (ModernBertError, RuntimeError, ImportError) as error:
            if name == PLAIN:
                raise
            telemetry.note(f"{name}: {error}")  # the others are worth having
            continue
        if history is None:
            telemetry.note(f"stopped during `{name}`; the same command goes on")
            return
        courses[name] = [
            it for it in read_records(Path(run.folder) / "metrics.jsonl") if it["event"] == "step"
        ]
    common.write(
        "train_options",
        QUESTION,
        compared(courses),
        machine,
        folder=given.results,
        tokens_a_step=plain.phases[0].batch_tokens,
        curves={name: [it["loss"] for it in course] for name, course in courses.items()},
    )


def compared(courses: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row an option: speed, memory, and how far its curve lies from the plain one."""
    plain = windows(courses[PLAIN])
    rows = []
    for name, course in courses.items():
        timed = course[WARM_UP:] or course
        gaps = [abs(mine - its) for mine, its in zip(windows(course), plain, strict=True)]
        rows.append(
            {
                "option": name,
                "steps": len(course),
                "tokens_per_second": statistics.median(it["tokens_per_second"] for it in timed),
                "mfu": statistics.median(it["mfu"] for it in timed) if timed[0]["mfu"] else None,
                "memory_gib": max(it["memory_bytes"] or 0 for it in course) / 2**30,
                "loss_at_the_end": windows(course)[-1],
                "mean_gap_to_plain": statistics.mean(gaps),
                "largest_gap_to_plain": max(gaps),
            }
        )
    return rows


def windows(course: Sequence[Mapping[str, Any]]) -> list[float]:
    """The mean loss of each of `WINDOWS` parts of a run."""
    edges = [len(course) * part // WINDOWS for part in range(WINDOWS + 1)]
    parts = (course[first:last] for first, last in itertools.pairwise(edges))
    return [statistics.mean(it["loss"] for it in part) for part in parts if part]


def _run(given: argparse.Namespace, name: str) -> PretrainRun:
    """The run file's first phase, for so many steps of full batches."""
    folder = f"folder={given.output / name.replace(', ', '-').replace(' ', '_')}"
    run = read_run(given.run, [*given.overrides, *PLAINLY, *OPTIONS[name], folder])
    first = run.phases[0]
    phase = replace(
        first,
        tokens=given.steps * first.batch_tokens,
        batch_warmup_start=None,
        batch_warmup_tokens=0,
        warmup_tokens=min(first.warmup_tokens, given.steps * first.batch_tokens // 5),
        decay_tokens=None,
    )
    return replace(run, phases=(phase,), seed=run.seed + (name == OTHER_SEED))


def _with_shards_of(plain: PretrainRun, run: PretrainRun) -> PretrainRun:
    """Let a run take the plain one's tokenizer and its text, made into tokens already."""
    folder = Path(plain.folder)
    tokenizer = replace(run.tokenizer, path=str(folder / "tokenizer"), vocab_size=None)
    made = {path.name: str(path) for path in (folder / "shards").glob("*")}  # not of what were shards before
    sources = tuple(replace(it, path=made.get(it.name, it.path)) for it in run.data.sources)
    return replace(run, tokenizer=tokenizer, data=replace(run.data, sources=sources))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="run file; its first phase is trained")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--options", nargs="+", choices=list(OPTIONS), help="besides the plain ones; all")
    parser.add_argument("--results", type=Path, help="another folder for the result")
    parser.add_argument("overrides", nargs="*", help="path.to.key=value")
    return parser


if __name__ == "__main__":
    main()
