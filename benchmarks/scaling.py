"""Which share of N GPUs' speed does a training step get, and does a run outlive a killed rank?

The peer is one GPU of the same machine in the same run: each GPU does the same work a step (weak scaling), so
that efficiency is its tokens a second beside those of the one alone. Data are made up and lie in memory.
Then a small run is killed with -9 in one rank, restarted by torchrun, and compared with an undisturbed one.

    python -m benchmarks.scaling --gpus 4
    python -m benchmarks.scaling --gpus 2 --device cpu --quick
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from modernbert import process, runtime, telemetry
from modernbert.data.masking import MaskedBatch
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.train.feed import StepBatch
from modernbert.train.loop import train
from modernbert.train.optim import OptimizerSettings, build_optimizer
from modernbert.train.parallel import DistributionSettings, Spread
from modernbert.train.ranks import Ranks, join
from modernbert.train.schedule import Clock, Phase, Setting

QUESTION = "Which share of N GPUs' speed does a training step get, and does a run outlive a killed rank?"
ROOT = Path(__file__).parents[1]
WARM_UP = 3
MASK_RATE = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gpus", type=int, default=max(torch.cuda.device_count(), 1))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--micro-batch-tokens", type=int, default=32_768)
    parser.add_argument("--micro-batches", type=int, default=4, help="of each GPU in a step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the benchmark itself")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.preset, options.lengths, options.micro_batch_tokens = "tiny", [32, 64], 256
        options.micro_batches, options.steps = 2, 2
    if options.worker is not None:
        work(options)
        process.leave(0)
    if options.device == "cuda" and torch.cuda.device_count() < max(options.gpus, 2):
        telemetry.note("not measured: this needs at least two GPUs; `--device cpu --quick` tries it without")
        return
    facts = runtime.machine_facts(torch.device(options.device))
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for size in dict.fromkeys((1, options.gpus))
            for row in measured(size, Path(folder) / str(size))
        ]
        killed = kill_and_resume(options, Path(folder))
    for row in rows:
        (alone,) = (it for it in rows if it["gpus"] == 1 and it["length"] == row["length"])
        row["efficiency"] = row["tokens_per_second"] / (row["gpus"] * alone["tokens_per_second"])
    plain = {key: value for key, value in vars(options).items() if key != "worker"}
    place = Path(tempfile.gettempdir()) if options.quick else None
    common.write("scaling", QUESTION, rows, facts, folder=place, options=plain, kill_and_resume=killed)
    telemetry.note(json.dumps(killed, indent=2))


def measured(size: int, output: Path) -> list[dict[str, Any]]:
    """Measure all cases on `size` GPUs, in processes of their own."""
    arguments = ["-m", "benchmarks.scaling", *sys.argv[1:], "--worker", str(output)]
    done = torchrun(size, arguments, restarts=0)
    if done.wait():
        raise SystemExit(f"the measurement on {size} GPUs failed, see above")
    return list(json.loads(output.read_text(encoding="utf-8")))


def torchrun(size: int, arguments: Sequence[str], *, restarts: int) -> subprocess.Popen[bytes]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {"OMP_NUM_THREADS": "4", **os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", *launcher, f"--max-restarts={restarts}", *arguments]
    return subprocess.Popen(command, env=environment, cwd=ROOT)


def work(options: argparse.Namespace) -> None:
    """Measure, as one of the processes."""
    rows = []
    with join(options.device, timeout_seconds=300) as (ranks, device):
        strategies = options.strategies if ranks.size > 1 else ["alone"]
        for strategy in strategies:
            for length in options.lengths:
                rows.append(measure(options, ranks, device, strategy, length))
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        if ranks.is_first:
            options.worker.write_text(json.dumps(rows), encoding="utf-8")


def measure(
    options: argparse.Namespace, ranks: Ranks, device: torch.device, strategy: str, length: int
) -> dict[str, Any]:
    phase = Phase(
        name="scaling",
        tokens=1 << 40,
        sequence_length=length,
        batch_tokens=options.micro_batch_tokens,
        learning_rate=8e-4,
        global_rope_theta=1e4 if length <= 1024 else 1.6e5,
        local_rope_theta=1e4,
    )
    model = ModernBertForMaskedLM(EncoderConfig.preset(options.preset))
    initialise(model, seed=0)
    settings = DistributionSettings(strategy="ddp" if strategy == "alone" else strategy)
    spread = Spread(model.to(device), device=device, ranks=ranks, settings=settings)
    optimizer = build_optimizer(model, OptimizerSettings(), phase)
    batches = made_up(options, phase, model.config.vocab_size, ranks)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    reports = train(model, optimizer, batches, device=device, spread=spread, seed=0)
    seconds = [report.seconds for report in reports][WARM_UP:]
    tokens = options.micro_batch_tokens * options.micro_batches * ranks.size
    return {
        "gpus": ranks.size,
        "strategy": strategy,
        "length": length,
        **common.spread(tokens, seconds),
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }


def made_up(options: argparse.Namespace, phase: Phase, vocab_size: int, ranks: Ranks) -> Iterator[StepBatch]:
    """Yield the same batch of random tokens for each step; another one on each rank."""
    draw = torch.Generator().manual_seed(ranks.rank)
    tokens, count = options.micro_batch_tokens, options.micro_batches
    rows = []
    for _ in range(count):
        ids = torch.randint(10, vocab_size - 10, (tokens,), generator=draw)
        places = (torch.rand(tokens, generator=draw) < MASK_RATE).nonzero().squeeze(1)
        layout = SequenceLayout((phase.sequence_length,) * (tokens // phase.sequence_length))
        rows.append(MaskedBatch(ids, layout, places, ids[places]))
    total = tokens * count * ranks.size
    for step in range(1, WARM_UP + options.steps + 1):
        setting = Setting(0, phase, 1e-6, total)
        clock = Clock(tokens=step * total, step=step)
        yield StepBatch(setting, tuple(rows), tuple(range(count)), total, total, "made up", clock, {})


def kill_and_resume(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill a rank of a small run after a checkpoint; compare what it comes to with an undisturbed run."""
    text = folder / "text.txt"
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 6))) for _ in range(400)]
    lines = (" ".join(draw.choices(words, k=draw.randint(20, 200))) for _ in range(20_000))
    text.write_text("\n".join(lines), encoding="utf-8")
    calm, killed = folder / "calm", folder / "killed"
    began = time.monotonic()
    if toy_run(options, calm, text).wait():
        raise SystemExit("the undisturbed run failed, see above")
    calm_seconds = time.monotonic() - began
    began = time.monotonic()
    toy = toy_run(options, killed, text)
    victim = kill_one(toy, killed)
    if toy.wait():
        raise SystemExit("the run did not outlive the killed rank, see above")
    one, other = (_steps(place) for place in (calm, killed))
    return {
        "gpus": options.gpus,
        "killed_at_step": victim,
        "last_steps": [list(one)[-1], list(other)[-1]],
        "same_tokens_at_each_step": {s: r["tokens"] for s, r in one.items()}
        == {s: r["tokens"] for s, r in other.items()},
        "largest_difference_of_loss": max(abs(one[step]["loss"] - other[step]["loss"]) for step in one),
        "seconds": [calm_seconds, time.monotonic() - began],
    }


def toy_run(options: argparse.Namespace, folder: Path, text: Path) -> subprocess.Popen[bytes]:
    size = {"preset": "tiny" if options.quick else "17m", "tokens": 40_000 if options.quick else 12_000_000}
    batch = 1024 if options.quick else 131_072
    phase = "{name: one, sequence_length: 256, learning_rate: 1e-3, global_rope_theta: 1e4, "
    phase += (
        f"local_rope_theta: 1e4, tokens: {size['tokens']}, batch_tokens: {batch}, warmup_tokens: {batch}}}"
    )
    settings = [
        f"folder={folder}",
        f"device={options.device}",
        f"data.sources.0.path={text}",
        f"model.preset={size['preset']}",
        "model.vocab_size=1024",
        "tokenizer.vocab_size=1024",
        f"micro_batch_tokens={batch // 4}",
        f"phases=[{phase}]",
        f"checkpoint.every_tokens={8 * batch}",
        "validation.every_tokens=null",
        "distribution.strategy=fsdp",
    ]
    arguments = ["-m", "modernbert", "pretrain", str(ROOT / "runs" / "starter.yaml"), *settings]
    return torchrun(options.gpus, arguments, restarts=2)


def kill_one(toy: subprocess.Popen[bytes], folder: Path) -> int:
    """Kill the last rank once the run has a checkpoint and some steps after it; return that step."""
    while toy.poll() is None:
        steps = list(_steps(folder)) if (folder / "metrics.jsonl").exists() else []
        if list((folder / "checkpoints").glob("step-*")) and steps and steps[-1] % 8 >= 4:
            children = Path(f"/proc/{toy.pid}/task/{toy.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
            return steps[-1]
        time.sleep(0.05)
    raise SystemExit("the run ended before a rank could be killed, see above")


def _steps(folder: Path) -> dict[int, dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {record["step"]: record for record in records if record["event"] == "step"}


if __name__ == "__main__":
    main()
