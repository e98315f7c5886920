"""Does `modernbert encode` give the same file if it is killed ten times, and does memory grow with rows?

Short rows, 200,000, a half and a tenth of them, through the command line with a given model or a tiny random
one. The work that is killed (SIGKILL, at random moments) and started again is compared with the undisturbed
one, byte for byte.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write
from modernbert.data.tokenizer import Tokenizer
from modernbert.model.config import EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.init import initialise
from modernbert.runtime import machine_facts

COMMAND = (sys.executable, "-m", "modernbert", "encode")
WORDS = (
    "the",
    "river",
    "runs",
    "through",
    "a",
    "small",
    "town",
    "where",
    "people",
    "of",
    "many",
    "trades",
    "live",
)
KILLS = 10
SHARES = (1, 5)
"""Tenths of the rows that are encoded too, to see whether memory grows."""


def texts(rows: int) -> Iterator[str]:
    """Texts of 3 to 20 words, the same in every run."""
    choice = random.Random(1)
    for _ in range(rows):
        yield " ".join(choice.choices(WORDS, k=choice.randint(3, 20)))


def tiny_model(folder: Path) -> Path:
    """Write a tiny encoder with random weights, and a tokenizer that fits it."""
    tokenizer = Tokenizer.train(texts(2_000), vocab_size=384)
    config = EncoderConfig.preset(
        "tiny",
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_id,
        cls_token_id=tokenizer.cls_id,
        sep_token_id=tokenizer.sep_id,
    )
    model = ModernBertModel(config)
    initialise(model, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Encode:
    """The command, with a model and further options."""

    def __init__(self, model: str, options: list[str], log: Path) -> None:
        self._end = ["--model", model, *options]
        self._log = log

    def start(self, source: Path, output: Path) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            command = [*COMMAND, str(source), str(output), *self._end]
            return subprocess.Popen(command, stdout=log, stderr=log)

    def wait(self, process: subprocess.Popen[bytes]) -> tuple[int, float]:
        """Wait for the end; return the exit code (below 0: a signal) and the peak memory in MiB."""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)

    def whole(self, source: Path, output: Path) -> dict[str, float]:
        """Run it to its end."""
        began = time.perf_counter()
        code, peak = self.wait(self.start(source, output))
        if code:
            raise SystemExit(
                f"the command ended with {code}:\n{self._log.read_text(errors='replace')[-2000:]}"
            )
        return {"seconds": time.perf_counter() - began, "peak_mib": peak}


def rows_done(output: Path) -> int:
    """Rows that are committed."""
    state = output.with_name(f".{output.name}.partial") / "state.json"
    return json.loads(state.read_text())["rows"] if state.exists() else 0


def killed(
    encode: Encode, source: Path, output: Path, start: float, work: float
) -> tuple[dict[str, Any], list[int]]:
    """Kill the work at random moments, then let it end; return its figures and the rows done at each kill.

    Args:
        encode: The command.
        source: What to read.
        output: What to write.
        start: Seconds that the command takes before its first row.
        work: Seconds that it takes for all rows.
    """
    choice = random.Random(2)
    began = time.perf_counter()
    done: list[int] = []
    while len(done) < KILLS:
        process = encode.start(source, output)
        time.sleep(start + choice.uniform(0, 1.2 * work / KILLS))
        os.kill(process.pid, signal.SIGKILL)
        encode.wait(process)
        if output.exists():  # it was quicker than the kill
            break
        done.append(rows_done(output))
    figures = encode.whole(source, output)
    return {**figures, "seconds": time.perf_counter() - began}, done


def measure(folder: Path, encode: Encode, rows: int, form: str) -> Iterator[dict[str, Any]]:
    for size in (0, *(share * rows // 10 for share in SHARES), rows):
        (folder / f"{size}.txt").write_text("".join(f"{text}\n" for text in texts(size)), encoding="utf-8")
    encode.whole(folder / "0.txt", folder / f"cold.{form}")  # the first one also reads libraries from disk
    start = encode.whole(folder / "0.txt", folder / f"0.{form}")["seconds"]
    fewer = [
        (size, encode.whole(folder / f"{size}.txt", folder / f"{size}.{form}"))
        for size in (share * rows // 10 for share in SHARES)
    ]
    quiet = encode.whole(folder / f"{rows}.txt", folder / f"quiet.{form}")
    work = max(quiet["seconds"] - start, 0.1)
    again, done = killed(encode, folder / f"{rows}.txt", folder / f"killed.{form}", start, work)
    same = filecmp.cmp(folder / f"quiet.{form}", folder / f"killed.{form}", shallow=False)
    for size, figures in (*fewer, (rows, quiet)):
        yield {
            "case": f"{form}, undisturbed",
            "rows": size,
            **figures,
            "kills": 0,
            "identical": "",
            "rows_at_kills": "",
        }
    yield {
        "case": f"{form}, killed",
        "rows": rows,
        **again,
        "kills": len(done),
        "identical": "yes" if same else "NO",
        "rows_at_kills": " ".join(map(str, done)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder or hub id; without it, a tiny random model")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--formats", nargs="+", default=["npy", "parquet"])
    parser.add_argument("options", nargs="*", help="further options of the command, after --")
    arguments = parser.parse_args()
    machine = machine_facts(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or str(tiny_model(folder / "model"))
        encode = Encode(model, arguments.options, folder / "log")
        rows = [row for form in arguments.formats for row in measure(folder, encode, arguments.rows, form)]
    write(
        "encode_files",
        "modernbert encode: killed and restarted against undisturbed, and peak memory by rows",
        rows,
        machine,
        model=arguments.model or "tiny, random weights",
        options=arguments.options,
    )
    if any(row["identical"] == "NO" for row in rows):
        raise SystemExit("a file differs from the undisturbed one")


if __name__ == "__main__":
    main()
