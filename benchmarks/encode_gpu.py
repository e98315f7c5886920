"""How many real tokens a second does each encoder process on a GPU, and how soon is one sequence there?

    python -m benchmarks.encode_gpu [--presets base large] [--peers eager compiled] [--only NAME …]
    python -m benchmarks.encode_gpu --device cpu --quick

Ours with the backend `fused` and the plain model (`auto`), beside transformers (SDPA, eager and compiled), on
the same random weights, in turn, in bf16. Token ids lie on the device; hidden states stay there. MFU is by
the model's own count of operations (real tokens, visible pairs) over a matrix product of the same run. Each
row is written as it comes, so that a run that is stopped keeps what it had.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, save, show, spread
from benchmarks.contenders import spread_out
from modernbert import telemetry
from modernbert.infer.gpu.encoder import GpuEncoder
from modernbert.infer.gpu.passes import TorchPasses
from modernbert.infer.verify import draw_sequences
from modernbert.layout import SequenceLayout, pack
from modernbert.model.config import EncoderConfig
from modernbert.model.dialects import to_published
from modernbert.model.encoder import ModernBertModel
from modernbert.model.init import initialise
from modernbert.runtime import choose_device, machine_facts, synchronize, time_in_turn

QUESTION = "How many tokens a second does each encoder process on a GPU, and how soon is one sequence there?"
PEERS = ("eager", "compiled")
SHORT = ("fixed 512", "mixed <= 512")
"""What presets other than base are measured on, with half as many sequences."""

Ids = list[list[int]]
Run = Callable[[], object]
Contender = Callable[[Ids], Run]
"""Takes a batch to the device, and returns what encodes it."""


def workloads(preset: str, *, is_quick: bool, max_length: int) -> dict[str, list[int]]:
    """Lengths by name. The last three are single sequences, whose latency is meant."""
    draw, share = random.Random(0), 16 if is_quick else 1
    batches = {
        "fixed 512": [512] * (128 // share),
        "mixed <= 512": [draw.randint(16, 512) for _ in range(248 // share)],
        "fixed 8192": [8192] * (8 // share or 1),
        "mixed <= 8192": [
            min(8192, max(16, int(draw.lognormvariate(7, 1.2)))) for _ in range(33 // share or 1)
        ],
        "one of 32": [32],
        "one of 128": [128],
        "one of 512": [512],
    }
    if preset == "large":
        batches = {name: batches[name][: len(batches[name]) // 2] for name in SHORT}
    return {name: [min(length, max_length) for length in lengths] for name, lengths in batches.items()}


def build(preset: str, **changes: Any) -> ModernBertModel:
    """Return a model with random weights, each of whose layers counts."""
    model = ModernBertModel(EncoderConfig.preset(preset, **changes))
    initialise(model, seed=0)
    spread_out(model)
    return model.eval()


def fused(model: ModernBertModel, device: torch.device) -> GpuEncoder:
    """Return the fused encoder; on a CPU, where it serves nobody, by plain torch."""
    passes = None if device.type == "cuda" else TorchPasses(model.config, torch.bfloat16)
    return GpuEncoder(model, device, passes)


def ours(model: torch.nn.Module, device: torch.device) -> Contender:
    def prepared(sequences: Ids) -> Run:
        ids, layout = pack(sequences, device)

        def run() -> object:
            with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16):
                return model(ids, SequenceLayout.of(layout.lengths, device))  # a new one, as each batch has

        return run

    return prepared


def transformers_model(model: ModernBertModel, peer: str, device: torch.device) -> Contender:
    """Padded to the longest, in bf16; compiled with CUDA graphs where a single sequence waits."""
    import transformers

    config = transformers.ModernBertConfig(**to_published(model.config, "ModernBertModel"))
    theirs = transformers.ModernBertModel._from_config(config, attn_implementation="sdpa")
    theirs.load_state_dict(model.state_dict())
    theirs = theirs.to(device, torch.bfloat16).eval()

    def prepared(sequences: Ids) -> Run:
        longest = max(map(len, sequences))
        ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = torch.tensor(sequence), 1
        ids, mask = ids.to(device), mask.to(device)
        mode = "reduce-overhead" if len(sequences) == 1 else "default"
        called = torch.compile(theirs, mode=mode, dynamic=False) if peer == "compiled" else theirs

        def run() -> object:
            with torch.inference_mode():
                return called(input_ids=ids, attention_mask=mask).last_hidden_state

        return run

    return prepared


def contenders(model: ModernBertModel, peers: list[str], device: torch.device) -> dict[str, Contender]:
    found = {"modernbert fused": ours(fused(model, device), device)}
    for peer in peers:
        found[f"transformers sdpa {peer}"] = transformers_model(model, peer, device)
    found["modernbert plain"] = ours(model.to(device), device)
    return found


def ceiling(device: torch.device, size: int) -> float:
    """Measure the operations a second of a matrix product in bf16."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    seconds = time_in_turn({"product": lambda: [a @ b for _ in range(10)]}, 5, device)["product"]
    return 10 * 2 * size**3 / statistics.median(seconds)


def prepare(entrants: Mapping[str, Contender], sequences: Ids, device: torch.device) -> dict[str, Run | str]:
    """Return what encodes, or why a peer does not: a failure is a result too."""
    ready: dict[str, Run | str] = {}
    for name, contender in entrants.items():
        try:
            run = contender(sequences)
            for _ in range(3):  # compiles, and captures
                run()
            synchronize(device)
            ready[name] = run
        except (RuntimeError, NotImplementedError) as error:
            ready[name] = f"failed: {str(error).strip()[:200]}"
            torch.cuda.empty_cache()
    return ready


def measure(preset: str, options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield a row for each workload and contender of a preset."""
    model, is_quick = build(preset), options.quick
    config, most = model.config, ceiling(device, 256 if is_quick else 8192)
    entrants = contenders(model, options.peers, device)
    for workload, lengths in workloads(
        preset, is_quick=is_quick, max_length=64 if is_quick else config.max_position_embeddings
    ).items():
        if options.only and workload not in options.only:
            continue
        ready = prepare(entrants, draw_sequences(config, lengths), device)
        runs = {name: run for name, run in ready.items() if not isinstance(run, str)}
        repetitions = 200 if len(lengths) == 1 and lengths[0] <= 512 else 10
        seconds = time_in_turn(runs, 2 if is_quick else repetitions, device)
        for name, run in ready.items():
            row = {"preset": preset, "workload": workload, "contender": name, "tokens": sum(lengths)}
            if isinstance(run, str):
                yield {**row, "failure": run}
                continue
            median = statistics.median(seconds[name])
            yield {
                **row,
                **spread(sum(lengths), seconds[name]),
                "milliseconds": 1e3 * median,
                "mfu": config.flops(lengths) / median / most,
                "ceiling_tflops": most / 1e12,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--presets", nargs="+", default=["base", "large"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--only", nargs="*", help="names of workloads")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the result goes")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the benchmark itself")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        telemetry.note("not measured: this needs a GPU; `--device cpu --quick` tries it without")
        return
    device = choose_device(options.device)
    machine = machine_facts(device)
    warnings.filterwarnings("ignore", module="torch._inductor")
    torch._dynamo.config.cache_size_limit = 64
    folder = Path(tempfile.gettempdir()) if options.quick else options.folder
    rows: list[dict[str, Any]] = []
    for preset in ["tiny"] if options.quick else options.presets:
        for row in measure(preset, options, device):
            rows.append(row)
            telemetry.note(json.dumps(row))
            path = save("encode_gpu", QUESTION, rows, machine, folder)
        gc.collect()
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    if not rows:
        raise SystemExit(f"no workload is named {options.only}; see `workloads`")
    show(QUESTION, rows)
    telemetry.note(f"written to {path}")


if __name__ == "__main__":
    main()
