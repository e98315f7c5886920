"""Do lengths that change with every batch compile anything anew, or take memory, in the fused GPU encoder?

    python -m benchmarks.changing_lengths [--preset base] [--batches 500]
    python -m benchmarks.changing_lengths --device cpu --quick

Batches of one to many sequences, no two alike: every other small enough for a CUDA graph, the rest of up to
65,536 tokens. Counted are kernels that Triton compiles, graphs that are captured, and memory that torch holds
of the device: after a warm-up, and then after each fifth of the batches.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, save, show
from benchmarks.encode_gpu import build, fused
from modernbert import telemetry
from modernbert.infer.gpu.encoder import GpuEncoder
from modernbert.infer.gpu.graphs import Size
from modernbert.infer.gpu.tiles import FEW_TOKENS
from modernbert.infer.verify import draw_sequences
from modernbert.layout import pack
from modernbert.runtime import choose_device, machine_facts, synchronize

QUESTION = "Do lengths that change with every batch compile anything anew, or take memory?"
WARM_UP, PARTS = 200, 5
MANY_TOKENS = 65_536


def batches(longest: int, *, is_quick: bool) -> Iterator[list[int]]:
    """Draw lengths without end, small and large batches in turn."""
    draw = random.Random(0)
    for most in itertools.cycle((64, 128) if is_quick else (FEW_TOKENS, MANY_TOKENS)):
        wanted, lengths = draw.randint(1, most), []
        while sum(lengths) < wanted:
            length = max(1, min(longest, int(draw.lognormvariate(6, 1.4))))
            lengths.append(min(length, wanted - sum(lengths)))
        yield lengths


class Counts:
    """How many kernels Triton has compiled, and graphs a model captured, since this was made."""

    def __init__(self, model: GpuEncoder) -> None:
        self.compiled = self.captured = 0
        if model._graphs is None:
            return
        import triton

        capture = model._graphs._captured

        def captured(size: Size) -> Any:
            self.captured += 1
            return capture(size)

        def compiled(**_: Any) -> None:
            self.compiled += 1

        model._graphs._captured = captured  # type: ignore[method-assign]
        triton.knobs.runtime.jit_post_compile_hook = compiled


def measure(
    model: GpuEncoder, lengths: Iterator[list[int]], counts: Counts, num_batches: int, device: torch.device
) -> dict[str, Any]:
    """Encode some batches; say what there is of everything then."""
    tokens = 0
    for one in itertools.islice(lengths, num_batches):
        ids, layout = pack(draw_sequences(model.config, one), device)
        model(ids, layout)
        tokens += layout.num_tokens
    synchronize(device)
    memory = {}
    if device.type == "cuda":
        memory = {
            "reserved_mib": torch.cuda.memory_reserved(device) / 2**20,
            "allocated_mib": torch.cuda.memory_allocated(device) / 2**20,
        }
    return {
        "tokens": tokens,
        "kernels_compiled": counts.compiled,
        "graphs_captured": counts.captured,
        **memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the result goes")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the benchmark itself")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        telemetry.note("not measured: this needs a GPU; `--device cpu --quick` tries it without")
        return
    device = choose_device(options.device)
    machine = machine_facts(device)
    model = fused(build("tiny" if options.quick else options.preset), device)
    counts = Counts(model)
    lengths = batches(64 if options.quick else model.config.max_position_embeddings, is_quick=options.quick)
    warm_up, total = (2, 5) if options.quick else (WARM_UP, options.batches)
    rows, done = [], 0
    for count in (warm_up, *[total // PARTS] * PARTS):
        done += count
        rows.append({"batches": done, **measure(model, lengths, counts, count, device)})
        telemetry.note(str(rows[-1]))
    folder = Path(tempfile.gettempdir()) if options.quick else options.folder
    path = save("changing_lengths", QUESTION, rows, machine, folder, preset=options.preset, warm_up=warm_up)
    show(QUESTION, rows)
    telemetry.note(f"written to {path}")


if __name__ == "__main__":
    main()
