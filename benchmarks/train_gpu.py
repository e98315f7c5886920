"""How fast is a training step on one GPU: eager, compiled, and transformers' compiled one in the same run?

A step is that of pretraining: forward and backward of some packed rows in bf16, 30% masked, loss on masked
tokens alone, StableAdamW. Data are made up and lie in memory. The peer trains on rows of equal length, which
need no padding, with `sparse_prediction` and torch's fused AdamW.

    python -m benchmarks.train_gpu
    python -m benchmarks.train_gpu --device cpu --quick
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from modernbert import runtime, telemetry
from modernbert.data.masking import MaskedBatch
from modernbert.errors import ModernBertError
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.train.feed import StepBatch
from modernbert.train.loop import train
from modernbert.train.optim import OptimizerSettings, build_optimizer
from modernbert.train.parallel import Spread
from modernbert.train.planner import BACKWARD_AND_FORWARD
from modernbert.train.schedule import Clock, Phase, Setting

QUESTION = "How fast is a training step on one GPU: eager, compiled, and transformers' compiled one?"
WARM_UP = 4
MASK_RATE = 0.3
ROWS_A_STEP = 2


@dataclass(frozen=True)
class Case:
    """What is trained, on what."""

    name: str
    preset: str
    row_tokens: int
    lengths: Callable[[torch.Generator], int]
    longest: int

    def layout(self, draw: torch.Generator) -> SequenceLayout:
        """Draw sequences until the row is full; the last is cut."""
        lengths: list[int] = []
        while (left := self.row_tokens - sum(lengths)) > 0:
            lengths.append(min(left, self.lengths(draw)))
        return SequenceLayout(tuple(lengths))


def equal(length: int) -> Callable[[torch.Generator], int]:
    return lambda draw: length


def log_normal(median: int, most: int) -> Callable[[torch.Generator], int]:
    """Many short documents and few long ones, as on the web."""
    return lambda draw: max(16, min(most, int(median * torch.randn((), generator=draw).mul(1.3).exp())))


CASES = (
    Case("base, 1,024", "base", 65_536, equal(1024), 1024),
    Case("base, mixed up to 8,192", "base", 65_536, log_normal(700, 8192), 8192),
    Case("base, 8,192", "base", 65_536, equal(8192), 8192),
    Case("large, 1,024", "large", 32_768, equal(1024), 1024),
)
QUICK = (
    Case("tiny, 32", "tiny", 256, equal(32), 32),
    Case("tiny, mixed", "tiny", 256, log_normal(20, 64), 64),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--attention", nargs="+", default=["varlen"], help="backends, each compiled")
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--fused-optimizer", action="store_true", help="StableAdamW by Triton, besides")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the benchmark itself")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        telemetry.note("not measured: this needs a GPU; `--device cpu --quick` tries it without")
        return
    facts = runtime.machine_facts(torch.device(options.device))
    cases = QUICK if options.quick else [case for case in CASES if case.name in options.cases]
    rows = [row for case in cases for row in measured(case, options)]
    folder = Path(tempfile.gettempdir()) if options.quick else None
    common.write("train_gpu", QUESTION, rows, facts, folder=folder, options=vars(options))


def measured(case: Case, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure one case in all ways; a way that fails is told of, and the others go on."""
    device, steps = torch.device(options.device), WARM_UP + options.steps
    backends = ["auto"] if options.quick else options.attention
    ways: dict[str, Callable[[], Sequence[float]]] = {
        f"eager, {backends[0]}": lambda: ours(case, device, backends[0], steps, compiles=False)
    }
    for backend in backends:
        ways[f"compiled, {backend}"] = lambda name=backend: ours(case, device, name, steps, compiles=True)
    if options.fused_optimizer:
        ways[f"compiled, {backends[-1]}, fused optimizer"] = lambda: ours(
            case, device, backends[-1], steps, compiles=True, fuses_optimizer=True
        )
    if not options.no_peer and case.longest * 2 <= case.row_tokens and "mixed" not in case.name:
        ways["transformers, compiled"] = lambda: peer(case, device, steps)
    for name, run in ways.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            seconds = run()
        except (RuntimeError, ImportError, ModernBertError):  # the other ways are worth having
            telemetry.note(f"{case.name}, {name} failed:\n{traceback.format_exc()}")
            continue
        found = {"case": case.name, "way": name, **figures(case, seconds, device)}
        telemetry.note(json.dumps(found))
        yield found
        gc.collect()
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def figures(case: Case, seconds: Sequence[float], device: torch.device) -> dict[str, Any]:
    """Speed, share of the device's peak by the model's own count of operations, and memory."""
    found: dict[str, Any] = common.spread(case.row_tokens * ROWS_A_STEP, seconds[WARM_UP:])
    if device.type != "cuda":
        return found
    shape, total = EncoderConfig.preset(case.preset), 0
    for batch in rows(case, shape.vocab_size):
        total += BACKWARD_AND_FORWARD * shape.flops(batch.layout.lengths, len(batch.labels))
    rate = found["tokens_per_second"] / (case.row_tokens * ROWS_A_STEP)
    peak = runtime.peak_tflops(torch.cuda.get_device_name(device))
    return {
        **found,
        "mfu": total * rate / (peak * 1e12) if peak else None,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        "begin_seconds": sum(seconds[:WARM_UP]),
    }


def rows(case: Case, vocab_size: int) -> list[MaskedBatch]:
    """Make up the rows of a step, the same each time."""
    draw, made = torch.Generator().manual_seed(0), []
    for _ in range(ROWS_A_STEP):
        layout = case.layout(draw)
        ids = torch.randint(10, vocab_size - 10, (layout.num_tokens,), generator=draw)
        places = (torch.rand(len(ids), generator=draw) < MASK_RATE).nonzero().squeeze(1)
        made.append(MaskedBatch(ids, layout, places, ids[places]))
    return made


def ours(
    case: Case,
    device: torch.device,
    backend: str,
    steps: int,
    *,
    compiles: bool,
    fuses_optimizer: bool = False,
) -> Sequence[float]:
    """Train by our loop; return the seconds of each step."""
    phase = Phase(
        name="benchmark",
        tokens=1 << 40,
        sequence_length=case.longest,
        batch_tokens=case.row_tokens * ROWS_A_STEP,
        learning_rate=8e-4,
        global_rope_theta=1e4 if case.longest <= 1024 else 1.6e5,
        local_rope_theta=1e4,
    )
    model = ModernBertForMaskedLM(EncoderConfig.preset(case.preset), backend=backend)
    initialise(model, seed=0)
    spread = Spread(model.to(device), device=device, precision="auto", compiles=compiles)
    optimizer = build_optimizer(model, OptimizerSettings(fused=fuses_optimizer), phase)
    made = tuple(rows(case, model.config.vocab_size))
    total = case.row_tokens * ROWS_A_STEP
    batches = (
        StepBatch(
            Setting(0, phase, 1e-6, total),
            made,
            tuple(range(len(made))),
            total,
            total,
            "made up",
            Clock(tokens=step * total, step=step),
            {},
        )
        for step in range(1, steps + 1)
    )
    return [
        report.seconds for report in train(model, optimizer, batches, device=device, spread=spread, seed=0)
    ]


def peer(case: Case, device: torch.device, steps: int) -> Sequence[float]:
    """Train transformers' model; return the seconds of each step."""
    from transformers import ModernBertConfig
    from transformers import ModernBertForMaskedLM as Theirs

    shape = EncoderConfig.preset(case.preset)
    config = ModernBertConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        attn_implementation="sdpa",
        sparse_prediction=True,
    )
    model = Theirs(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    compiled = torch.compile(model)
    batches = [_padded(row, case.longest, device) for row in rows(case, min(config.vocab_size, 50_000))]
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        for inputs in itertools.islice(batches, ROWS_A_STEP):
            with torch.autocast(device.type, torch.bfloat16):
                loss = compiled(**inputs).loss
            (loss / ROWS_A_STEP).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        runtime.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return seconds


def _padded(row: MaskedBatch, length: int, device: torch.device) -> dict[str, torch.Tensor]:
    labels = torch.full_like(row.input_ids, -100)
    labels[row.masked_positions] = row.labels
    shape = (-1, length)
    return {"input_ids": row.input_ids.view(shape).to(device), "labels": labels.view(shape).to(device)}


if __name__ == "__main__":
    main()
