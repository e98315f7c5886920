"""The efficiency table (paper 3.7) of any checkpoint on any device: ours beside peers, in one run.

Everybody loads the same weights and computes hidden states of the same token ids. These lie in the host's
memory when the clock starts, padded already for who pads; bringing them to the device is part of the work,
for us packing too. Only real tokens count. Contenders take turns, so that a drift of the machine hits all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from modernbert import telemetry
from modernbert.errors import BackendError, ConfigError, did_you_mean
from modernbert.evaluate import peers, timing
from modernbert.evaluate.contenders import (
    Checkpoint,
    Contender,
    Prepare,
    Run,
    Shape,
    default_backends,
    dtype_of,
    find_ours,
    shared_checkpoint,
)
from modernbert.evaluate.outcome import BenchOutcome, Largest, Latency, Size, Throughput
from modernbert.evaluate.workloads import (
    LONGEST,
    PUBLISHED_DOCUMENTS,
    SEED,
    SETS,
    Document,
    Workload,
    draw_document,
    draw_workload,
)
from modernbert.infer.loading import ENGINES
from modernbert.runtime import choose_device, machine_facts, timed

Result = TypeVar("Result")

PACKAGES = ("transformers", "sentence-transformers", "flash-attn-4", "flash-attn", "triton")
LATENCY_LENGTHS = (32, 128, 512)
WARM_UP_RUNS = 3
"""Of a single sequence: CUDA graphs are recorded in the second."""


ON_GPU = Size(tokens=524_288, batch_tokens=65_536, repetitions=10, latency_turns=10, latency_runs=10)
ELSEWHERE = Size(tokens=1_024, batch_tokens=1_024, repetitions=3, latency_turns=5, latency_runs=2)


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is measured, and how; None: by the device.

    Attributes:
        device: Where.
        dtype: In which ours compute, and peers if they can; as `modernbert.load` names them.
        backends: Of ours, as `modernbert.load` names them; None: on a GPU all that are fast, else `auto`.
        sets: Of `SETS`.
        peers: Whether others are measured too.
        compiled: Whether peers are measured compiled too; None: on a GPU.
        latency: Whether single sequences are timed.
        largest: Whether the largest batches are looked for, which needs a GPU.
        tokens: About so many places of longest documents in each set.
        batch_tokens: Places of a batch; halved for who lacks the memory.
        repetitions: Of each set.

    Raises:
        ConfigError: An unknown set or backend, or a number out of range.
    """

    device: str | None = None
    dtype: str = "auto"
    backends: tuple[str, ...] | None = None
    sets: tuple[str, ...] = SETS
    peers: bool = True
    compiled: bool | None = None
    latency: bool = True
    largest: bool = True
    tokens: int | None = None
    batch_tokens: int | None = None
    repetitions: int | None = None

    def __post_init__(self) -> None:
        for key, names, known in (("sets", self.sets, SETS), ("backends", self.backends or (), ENGINES)):
            for name in (part for each in names for part in each.split("+")):  # `fa3+varlen` is a pair
                if name not in known:
                    raise ConfigError(f"unknown name `{name}` in `{key}`{did_you_mean(name, known)}")
        for key in ("tokens", "batch_tokens", "repetitions"):
            number = getattr(self, key)
            if number is not None and number < 1:
                raise ConfigError(f"`{key}` is {number}; it must be at least 1")

    def size(self, device: torch.device) -> Size:
        """Return how much is measured on a device."""
        wanted = {key: getattr(self, key) for key in ("tokens", "batch_tokens", "repetitions")}
        size = ON_GPU if device.type == "cuda" else ELSEWHERE
        return replace(size, **{key: number for key, number in wanted.items() if number is not None})


def run_bench(
    model: str | Path,
    settings: BenchSettings = BenchSettings(),
    *,
    on_part: Callable[[BenchOutcome], None] = lambda outcome: None,
) -> BenchOutcome:
    """Measure a model.

    Args:
        model: Folder or hub id; or a preset's name, which gives random weights.
        settings: What is measured.
        on_part: Called after each part, so that what is measured can be kept if a later part is stopped.

    Raises:
        CheckpointError: The model cannot be found or read.
        BackendError: There is no such device, or none of our backends serves on it.
    """
    device = choose_device(settings.device)
    machine = machine_facts(device, PACKAGES)
    compiled = device.type == "cuda" if settings.compiled is None else settings.compiled
    with shared_checkpoint(model) as checkpoint, peers.room_to_compile(settings.peers and compiled):
        dtype = dtype_of(settings.dtype, device)
        multiplied = peers.DTYPES.get(dtype, torch.bfloat16 if device.type == "cuda" else torch.float32)
        side = timing.PRODUCT_SIZES[device.type]
        outcome = BenchOutcome(
            model=str(model),
            num_parameters=checkpoint.config.num_parameters(),
            dtype=dtype,
            machine=machine,
            size=settings.size(device),
            product=f"{side:,} x {side:,} x {side:,}, {str(multiplied).removeprefix('torch.')}",
            notes=list(checkpoint.remarks),
        )
        bench = _Bench(settings, checkpoint, device, compiled, outcome)
        parts: list[Callable[[str], None]] = [
            *(partial(bench.measure_set, name, multiplied) for name in settings.sets),
            *([bench.measure_latency] if settings.latency else []),
            *([bench.find_largest] if settings.largest else []),
        ]
        for number, part in enumerate(parts, start=1):
            part(f"bench {number}/{len(parts)}")
            on_part(outcome)
    return outcome


class _Bench:
    """One run: who takes part, and what is known by now."""

    def __init__(
        self,
        settings: BenchSettings,
        checkpoint: Checkpoint,
        device: torch.device,
        compiled: bool,
        outcome: BenchOutcome,
    ) -> None:
        self._config = checkpoint.config
        self._device = device
        self._outcome = outcome
        backends = default_backends(device) if settings.backends is None else settings.backends
        named = find_ours(checkpoint, device, settings.dtype, backends)
        if settings.peers:
            others, missing = peers.find_peers(checkpoint, device, outcome.dtype, compiled=compiled)
            named += others
            outcome.notes += missing
            if others and not compiled:
                outcome.notes.append("peers: not compiled; `--compiled` measures them so too")
        self._loaded = self._load(named)
        workloads = [self._draw(name) for name in settings.sets]
        outcome.notes += [workload.describe() for workload in workloads]
        self._workloads = {workload.name: workload for workload in workloads}

    def measure_set(self, name: str, dtype: torch.dtype, title: str) -> None:
        """Measure all contenders on one set."""
        workload, outcome = self._workloads[name], self._outcome
        outcome.product_rates += timing.product_rate(self._device, dtype)
        warm: dict[Contender, tuple[Run, int]] = self._each(
            f"{title} {name}, warming up", name, partial(self._warm, workload)
        )
        num_tokens, turns = workload.num_tokens, outcome.size.repetitions
        with telemetry.progress(f"{title} {name}", len(warm) * turns * num_tokens, "tokens") as meter:
            seconds = self._time(
                name,
                {contender: run for contender, (run, _) in warm.items()},
                turns,
                on_turn=lambda contender: meter.advance(num_tokens, contender=contender.name),
            )
        flops = self._config.flops(workload.lengths)
        outcome.throughputs += [
            Throughput(
                contender=contender,
                workload=name,
                batch_tokens=warm[contender][1],
                num_tokens=num_tokens,
                flops=flops,
                seconds=tuple(measured),
            )
            for contender, measured in seconds.items()
        ]

    def measure_latency(self, title: str) -> None:
        """Time single sequences."""
        size, draw = self._outcome.size, np.random.default_rng(SEED)
        lengths = [it for it in LATENCY_LENGTHS if it <= self._config.max_position_embeddings]
        warm: dict[int, dict[Contender, Run]] = {}
        for length in lengths:
            document = draw_document(length, self._config.vocab_size, draw)
            part = _latency_of(length)
            warm[length] = self._each(f"{title} {part}, warming up", part, partial(self._warm_one, document))
        turns = size.latency_turns * sum(map(len, warm.values()))
        with telemetry.progress(f"{title} latency", turns, "turns") as meter:
            for length, runs in warm.items():
                seconds = self._time(
                    _latency_of(length),
                    runs,
                    size.latency_turns,
                    in_a_row=size.latency_runs,
                    on_turn=lambda contender: meter.advance(1, contender=contender.name),
                )
                self._outcome.latencies += [
                    Latency(contender=contender, length=length, seconds=tuple(measured))
                    for contender, measured in seconds.items()
                ]

    def find_largest(self, title: str) -> None:
        """Find the largest batches: each contender alone on the GPU, and last, as failures may disturb it."""
        contenders = [contender for contender in self._loaded if not contender.is_compiled]
        if any(contender.is_compiled for contender in self._loaded):
            torch.compiler.reset()  # what was compiled keeps its model
        self._loaded.clear()
        if self._device.type != "cuda":
            self._outcome.notes.append(f"largest batch: skipped; it is measured on CUDA, not {self._device}")
            return
        self._outcome.notes.append("largest batch: of the memory that is free; peers not compiled")
        limit = self._config.max_position_embeddings
        lengths = [length for length in LONGEST.values() if length <= limit]
        total = len(contenders) * len(lengths)
        with telemetry.progress(f"{title} largest batch", total, "batches") as meter:
            for contender in contenders:
                timing.free_memory()
                prepare, why = timing.attempt(contender.load)
                for length in lengths:
                    if why is None:
                        batch, why = timing.attempt(self._largest, prepare, length)
                    if why is None:
                        found = Largest(contender=contender, length=length, batch=batch)
                        self._outcome.largest.append(found)
                    else:
                        self._note(f"largest batch of {length:,} tokens", contender, why)
                    meter.advance(1, contender=contender.name)
                del prepare

    def _load(self, named: Sequence[Contender]) -> dict[Contender, Prepare]:
        """Load who can be loaded.

        Raises:
            BackendError: None of ours can.
        """
        loaded = {}
        for contender in named:
            prepare, why = timing.attempt(contender.load)
            if why is None:
                loaded[contender] = prepare
            else:
                self._note("loading", contender, why)
        if not any(contender.is_ours for contender in loaded):
            raise BackendError(
                f"none of our backends serves on {self._device}: {'; '.join(self._outcome.notes)}"
            )
        return loaded

    def _draw(self, name: str) -> Workload:
        limit = self._config.max_position_embeddings
        return draw_workload(name, self._config.vocab_size, tokens=self._outcome.size.tokens, limit=limit)

    def _each(
        self, title: str, part: str, action: Callable[[Contender, Prepare], Result]
    ) -> dict[Contender, Result]:
        """Let each contender do something once, and show it; who fails is noted, and left out."""
        results = {}
        with telemetry.progress(title, len(self._loaded), "contenders") as meter:
            for contender, prepare in self._loaded.items():
                result, why = timing.attempt(action, contender, prepare)
                if why is None:
                    results[contender] = result
                else:
                    self._note(part, contender, why)
                meter.advance(1, last=contender.name)
        return results

    def _warm(self, workload: Workload, contender: Contender, prepare: Prepare) -> tuple[Run, int]:
        """Compute the whole set once, which compiles for all shapes; return the run, and places a batch.

        Who lacks the memory gets smaller batches, as long as they hold a document.
        """
        shape: Shape = "fixed" if workload.is_fixed else "variable"
        wanted = places = max(self._outcome.size.batch_tokens, workload.longest)
        while True:
            run = prepare(workload.documents, places, shape)
            try:
                timed(run, self._device)
                break
            except (RuntimeError, MemoryError) as error:
                if not timing.is_out_of_memory(error) or places // 2 < workload.longest:
                    raise
            places //= 2
            timing.free_memory()
        if places < wanted:
            told = f"out of memory with batches of {wanted:,} places; measured with {places:,}"
            self._note(workload.name, contender, told)
        return run, places

    def _warm_one(self, document: Document, contender: Contender, prepare: Prepare) -> Run:
        run = prepare([document], len(document), "single")
        for _ in range(WARM_UP_RUNS):
            timed(run, self._device)
        return run

    def _largest(self, prepare: Prepare, length: int) -> int:
        document = draw_document(length, self._config.vocab_size, np.random.default_rng(SEED))
        return timing.largest_batch(
            lambda count: prepare([document] * count, count * length, "fixed"),
            length,
            PUBLISHED_DOCUMENTS,
            self._device,
        )

    def _time(
        self,
        part: str,
        runs: Mapping[Contender, Run],
        turns: int,
        *,
        in_a_row: int = 1,
        on_turn: Callable[[Contender], None],
    ) -> dict[Contender, list[float]]:
        """Time contenders in turn; who fails is noted, and has no seconds."""
        seconds, failures = timing.time_rivals(runs, turns, self._device, in_a_row=in_a_row, on_turn=on_turn)
        for contender, why in failures.items():
            self._note(part, contender, why)
        return seconds

    def _note(self, part: str, contender: Contender, why: str) -> None:
        """Write down who did not do a part as planned, and why."""
        self._outcome.notes.append(f"{contender.name}, {part}: {why}")


def _latency_of(length: int) -> str:
    return f"latency of {length} tokens"
