"""How fast is each attention backend alone on a GPU, forward and backward, and how near to its limit?

65,536 tokens in bf16, 12 heads of width 64, by the device's clock. TFLOP/s counts two products of each
visible pair forward and five backward, beside a matrix product of 8,192³ in the same run. What cannot serve
is left out; `--beside FILE` takes its rows from an earlier result of the same kind of GPU, where the kernels
do not fit into one installation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, write
from modernbert import telemetry
from modernbert.layout import SequenceLayout
from modernbert.ops.attention import BACKENDS, RIVALS
from modernbert.ops.contest import AttentionFunction, device_clock
from modernbert.runtime import choose_device, machine_facts, time_in_turn

TOKENS, HEADS, WIDTH = 65_536, 12, 64
WINDOW = 64
ROUNDS, CLOCK = 7, partial(device_clock, calls=5)
CEILING = 8192


def mixed(longest: int) -> tuple[int, ...]:
    """Lengths drawn evenly from 1 to `longest`, the last one cut to the budget."""
    generator = torch.Generator().manual_seed(longest)
    drawn = torch.randint(1, longest + 1, (2 * TOKENS // longest + 200,), generator=generator).tolist()
    kept = [it for it, total in zip(drawn, itertools.accumulate(drawn)) if total <= TOKENS]
    return (*kept, TOKENS - sum(kept)) if sum(kept) < TOKENS else tuple(kept)


LENGTHS: Mapping[str, tuple[int, ...]] = {
    "512": (512,) * (TOKENS // 512),
    "1,024": (1024,) * (TOKENS // 1024),
    "8,192": (8192,) * (TOKENS // 8192),
    "mixed to 512": mixed(512),
    "mixed to 8,192": mixed(8192),
}


def visible_pairs(lengths: Sequence[int], window: int | None) -> int:
    """Count the pairs of a query and a key that it sees."""
    if window is None:
        return sum(length**2 for length in lengths)
    return sum(
        length * (2 * min(window, length - 1) + 1) - min(window, length - 1) * (min(window, length - 1) + 1)
        for length in lengths
    )


def measure(
    names: Sequence[str], case: str, window: int | None, device: torch.device
) -> list[dict[str, Any]]:
    layout = SequenceLayout.of(LENGTHS[case], device)
    q, k, v, grad_out = (
        torch.randn(TOKENS, HEADS, WIDTH, device=device).to(torch.bfloat16) for _ in range(4)
    )
    leaves = [x.requires_grad_() for x in (q, k, v)]
    outs = {name: BACKENDS[name].run(*leaves, layout, window) for name in names}

    def forward(run: AttentionFunction) -> None:
        with torch.no_grad():
            run(q, k, v, layout, window)

    def backward(out: Tensor) -> None:
        torch.autograd.grad(out, leaves, grad_out, retain_graph=True)

    forwards = {name: (lambda run=BACKENDS[name].run: forward(run)) for name in names}
    backwards = {name: (lambda out=out: backward(out)) for name, out in outs.items()}
    times = [time_in_turn(runs, ROUNDS, device, clock=CLOCK) for runs in (forwards, backwards)]
    work = 2 * HEADS * WIDTH * visible_pairs(layout.lengths, window) / 1e9  # of one product, for ms
    return [
        {
            "lengths": case,
            "window": "global" if window is None else f"{window} each side",
            "backend": name,
            **_columns("forward", times[0][name], 2 * work),
            **_columns("backward", times[1][name], 5 * work),
        }
        for name in names
    ]


def _columns(part: str, times: list[float], work: float) -> dict[str, float]:
    median = statistics.median(times)
    return {
        f"{part}_ms": median,
        f"{part}_ms_least": min(times),
        f"{part}_ms_most": max(times),
        f"{part}_tflops": work / median,
    }


def ceiling(device: torch.device) -> float:
    """TFLOP/s of a large bf16 matrix product."""
    a, b = (torch.randn(CEILING, CEILING, device=device).to(torch.bfloat16) for _ in range(2))
    times = time_in_turn({"product": lambda: a @ b}, ROUNDS, device, clock=CLOCK)["product"]
    return 2 * CEILING**3 / 1e9 / statistics.median(times)


def missing(rows: Sequence[Mapping[str, Any]], earlier: Path | None, gpu: str) -> list[Mapping[str, Any]]:
    """Return the rows of an earlier result whose backends have none in this one."""
    if earlier is None:
        return []
    record = json.loads(earlier.read_text(encoding="utf-8"))
    if record["machine"]["gpu"] != gpu:
        raise SystemExit(f"{earlier} is of a {record['machine']['gpu']}; this is a {gpu}")
    present = {row["backend"] for row in rows}
    return [row for row in record["rows"] if row["backend"] not in present]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, help="earlier result, for backends that cannot serve here")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the result goes")
    arguments = parser.parse_args()
    device = choose_device("cuda")
    torch.manual_seed(0)
    machine = machine_facts(device)
    names = []
    for name in RIVALS:
        why = BACKENDS[name].refusal(device, torch.bfloat16, WIDTH)
        if why is None:
            names.append(name)
        else:
            telemetry.note(f"not {name}: {why}")
    best = ceiling(device)
    rows = [
        row
        for case, window in itertools.product(LENGTHS, (None, WINDOW))
        for row in measure(names, case, window, device)
    ]
    write(
        "attention_gpu",
        "attention alone, 65,536 tokens, 12 heads of 64, bf16: ms and TFLOP/s of each backend",
        [*rows, *missing(rows, arguments.beside, machine["gpu"])],
        machine,
        folder=arguments.folder,
        product_tflops=best,
    )


if __name__ == "__main__":
    main()
