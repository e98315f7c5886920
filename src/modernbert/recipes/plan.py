"""What a run file will cost on given GPUs, before anything starts: the figures of `modernbert plan`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from modernbert import config, runtime
from modernbert.errors import ConfigError, did_you_mean
from modernbert.recipes.distillation import read_teacher
from modernbert.recipes.settings import PretrainRun
from modernbert.telemetry import human
from modernbert.train.memory import StepSetup
from modernbert.train.planner import Footprint, Machines, PhasePlan, fitting_row, plan_phase

GPUS_A_MACHINE = 8

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

Rows = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a whole run will take.

    Attributes:
        run: Its settings.
        machines: What it is planned for.
        setup: What trains, and how.
        phases: What each phase takes.
        micro_batch: The longest row that fits in every phase and divides every batch; None if none does.
        micro_batch_recomputing: The same if layers are recomputed in backward.
    """

    run: PretrainRun
    machines: Machines
    setup: StepSetup
    phases: tuple[PhasePlan, ...]
    micro_batch: int | None
    micro_batch_recomputing: int | None

    @property
    def hours(self) -> float:
        """Of all phases."""
        return sum(phase.hours for phase in self.phases)

    def fits(self, phase: PhasePlan) -> bool:
        """Whether a phase fits as the run is set."""
        footprint = phase.recomputing if self.setup.recomputes_layers else phase.keeping
        return self.run.micro_batch_tokens <= footprint.largest_row

    def to_tree(self) -> dict[str, Any]:
        """Return all figures as plain values, for machines."""
        return {
            "machines": config.to_tree(self.machines),
            "parameters": self.setup.shape.num_parameters(head=True),
            "optimizer": self.setup.optimizer,
            "strategy": self.setup.strategy,
            "micro_batch_tokens": self.run.micro_batch_tokens,
            "largest_micro_batch": self.micro_batch,
            "largest_micro_batch_recomputing": self.micro_batch_recomputing,
            "hours": self.hours,
            "phases": [{**config.to_tree(phase), "fits": self.fits(phase)} for phase in self.phases],
        }


def plan(run: PretrainRun, machines: Machines) -> RunPlan:
    """Plan a run for CUDA GPUs that compute in bf16, whatever device its file names.

    Raises:
        CheckpointError: The run's teacher cannot be found or read.
        ConfigError: It does not fit the run.
    """
    spread, teaching = run.distribution, run.distillation
    by_strategy = {"ddp": 1, "fsdp": machines.num_gpus, "hybrid": spread.shard_ranks or GPUS_A_MACHINE}
    setup = StepSetup(
        shape=run.model,
        optimizer=run.optimizer.name,
        strategy=spread.strategy,
        num_shards=min(machines.num_gpus, by_strategy[spread.strategy]),
        recomputes_layers=spread.activation_checkpointing,
        teacher=None if teaching is None else read_teacher(teaching, run.model, run.longest_sequence),
        learns_hidden=teaching is not None and teaching.hidden_weight > 0,
    )
    phases = tuple(
        plan_phase(phase, setup, machines, row_tokens=run.micro_batch_tokens) for phase in run.phases
    )
    return RunPlan(
        run=run,
        machines=machines,
        setup=setup,
        phases=phases,
        micro_batch=fitting_row(run.phases, min(it.keeping.largest_row for it in phases)),
        micro_batch_recomputing=fitting_row(run.phases, min(it.recomputing.largest_row for it in phases)),
    )


def machines_here(peak_tflops: float | None = None) -> Machines:
    """Return the GPUs of this machine; where it has none, one H100 of 80 GB.

    Args:
        peak_tflops: What each does at most, if not what is known of it, as `log.peak_tflops` says.
    """
    if not torch.cuda.is_available():
        return Machines(peak_tflops=peak_tflops or Machines.peak_tflops)
    first = torch.cuda.get_device_properties(0)
    return Machines(
        num_gpus=torch.cuda.device_count(),
        memory_bytes=first.total_memory,
        peak_tflops=peak_tflops or runtime.peak_tflops(first.name) or Machines.peak_tflops,
    )


def headline(found: RunPlan) -> str:
    """Say in a line what is planned, for what, and how long it takes."""
    machines = found.machines
    gpus = "1 GPU" if machines.num_gpus == 1 else f"{machines.num_gpus} GPUs ({found.setup.strategy})"
    speed = f"{machines.mfu:.0%} of {machines.peak_tflops:g} TFLOP/s each"
    if machines.tokens_per_second is not None:
        speed = f"{human(machines.tokens_per_second)} tokens/s as measured"
    teacher = found.setup.teacher
    learns = f", a teacher of {human(teacher.num_parameters(head=True))}" if teacher else ""
    return (
        f"{human(found.setup.shape.num_parameters(head=True))} parameters{learns}, {found.setup.optimizer}, "
        f"{gpus} of {human(machines.memory_bytes)}B, {speed}: {_decimal(found.hours)} hours"
    )


def cost_tables(found: RunPlan) -> dict[str, Rows]:
    """Return what the phases take, each table by its title: rows of equal keys, all text."""
    shown = {
        "Batches": batch_rows(found),
        "Memory of a GPU (GB)": memory_rows(found),
        "Time": time_rows(found),
    }
    return {title: rows for title, rows in shown.items() if rows}


def memory_rows(found: RunPlan) -> Rows:
    """Show the memory of one GPU in GB, by part, with layers kept and with layers recomputed.

    Phases that differ in nothing of it share their rows.
    """
    shared: dict[tuple[Footprint, Footprint], list[str]] = {}
    for phase in found.phases:
        shared.setdefault((phase.keeping, phase.recomputing), []).append(phase.phase.name)
    return [
        {
            "phase": ", ".join(names),
            "layers": layers,
            **{part: _decimal(value / 1e9) for part, value in vars(footprint.memory).items()},
            "peak": _decimal(footprint.memory.peak / 1e9),
            "longest row": f"{footprint.largest_row:,}",
        }
        for both, names in shared.items()
        for layers, footprint in zip(("kept", "recomputed"), both, strict=True)
    ]


def time_rows(found: RunPlan) -> Rows:
    """Show operations and time: a row a phase."""
    return [
        {
            "phase": phase.phase.name,
            "steps": f"{phase.steps:,}",
            "FLOP a token": human(phase.flops_a_token),
            "FLOP": f"{phase.flops:.3g}",
            "tokens/s": human(phase.tokens_per_second),
            "hours": _decimal(phase.hours),
        }
        for phase in found.phases
    ]


def batch_rows(found: RunPlan) -> Rows:
    """Show where the batches grow: a row a size, of the phases that have several."""
    return [
        {
            "phase": phase.phase.name,
            "from tokens": human(batch.from_tokens),
            "batch (tokens)": f"{batch.batch_tokens:,}",
            "steps": f"{batch.steps:,}",
            "rows": f"{batch.rows:,}",
            "rows a GPU": f"{batch.rows_a_gpu:,}",
        }
        for phase in found.phases
        if len(phase.batches) > 1
        for batch in phase.batches
    ]


def remarks(found: RunPlan) -> list[str]:
    """Say what stands out: rows that do not fit, longer ones that would, GPUs that wait, fp8."""
    row = found.run.micro_batch_tokens
    best = found.micro_batch_recomputing if found.setup.recomputes_layers else found.micro_batch
    lines = []
    if not all(found.fits(phase) for phase in found.phases):
        instead = f"set micro_batch_tokens={best}" if best else "no row that divides all batches would"
        hint = "" if found.setup.recomputes_layers else "; recomputing layers saves most"
        lines.append(f"Rows of {row:,} tokens do not fit; {instead}{hint}.")
    elif best is not None and best > row:
        lines.append(f"Rows of {best:,} tokens would fit too: micro_batch_tokens={best}.")
    for count in dict.fromkeys(phase.batches[-1].rows for phase in found.phases):
        if rest := count % found.machines.num_gpus:
            waiting = found.machines.num_gpus - rest
            lines.append(f"Of {count:,} rows a step, {waiting} of the GPUs get one less, and wait.")
    if found.run.fp8:
        lines.append("fp8 counts as bf16 here; for the time it takes, measure and give --tokens-per-second.")
    return lines


def parse_size(text: str) -> float:
    """Read a number of bytes: `80GB`, `79.6GiB`.

    Raises:
        ConfigError: It is no such number.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"`{text}` is not a size; it must read as `80GB` or `80GiB`; correct it")
    number, unit, binary = match.groups()
    return float(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()])


def peak_of(gpu: str) -> float:
    """Return a GPU's dense bf16 peak in TFLOP/s by its name.

    Raises:
        ConfigError: The name is not known.
    """
    peak = runtime.peak_tflops(gpu)
    if peak is None:
        raise ConfigError(f"unknown GPU `{gpu}`{did_you_mean(gpu, runtime.PEAK_TFLOPS)}")
    return peak


def _decimal(number: float) -> str:
    """Write a number with one decimal, a small one with two."""
    return f"{number:,.1f}" if number >= 10 else f"{number:.2f}"
