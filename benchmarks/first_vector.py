"""How long from a fresh process to the first vector: import, load and encode, ours and sentence-transformers?

A base-size fp32 checkpoint on disk, its pages in memory; the clock starts before Python does and stops when
the process has said that the vector is there. Python may keep its compiled modules, as after an installation.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.common import save, show
from benchmarks.contenders import save_checkpoint
from modernbert import telemetry
from modernbert.runtime import machine_facts

QUESTION = "seconds from a fresh process to the first vector on a CPU"
OURS = "import modernbert; modernbert.load({folder!r}, device='cpu', dtype={dtype!r}).encode('x'); print()"
PEER = (
    "from sentence_transformers import SentenceTransformer; "
    "SentenceTransformer({folder!r}, device='cpu').encode('x'); print()"
)
PROGRAMS = {
    "import torch, and no more": "import torch; print()",
    **{
        f"modernbert {dtype}": OURS.replace("{dtype!r}", repr(dtype))
        for dtype in ("float32", "bfloat16", "int8")
    },
    "sentence-transformers float32": PEER,
}


def seconds_of(program: str, folder: Path) -> float:
    """Run a program in a process of its own up to the line that it prints."""
    command = [sys.executable, "-W", "ignore", "-c", program.format(folder=str(folder))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
    if not line:
        raise SystemExit(f"`{program}` ended with {process.returncode} and no vector")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small shape, once, into the temporary folder")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    machine = machine_facts(torch.device("cpu"))
    preset, repetitions = ("17m", 1) if arguments.quick else ("base", arguments.repetitions)
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as name:
        save_checkpoint(Path(name), preset)
        for repetition in range(repetitions + 1):  # the first, uncounted, brings all files into memory
            for program, code in PROGRAMS.items():
                took = seconds_of(code, Path(name))
                telemetry.note(f"{program}: {took:.2f} s")
                if repetition:
                    seconds[program].append(took)
    rows = [
        {
            "engine": program,
            "seconds": statistics.median(times),
            "fastest": min(times),
            "slowest": max(times),
            "repetitions": len(times),
        }
        for program, times in seconds.items()
    ]
    folder = Path(tempfile.gettempdir()) if arguments.quick else None
    peer = f"sentence-transformers {metadata.version('sentence-transformers')}"
    path = save("first_vector", QUESTION, rows, machine, folder, preset=preset, peer=peer)
    show(QUESTION, rows)
    telemetry.note(f"written to {path}")


if __name__ == "__main__":
    main()
