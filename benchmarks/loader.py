"""How many tokens a second come packed and masked from token shards, and how long does a GPU wait for them?

The training's own path: one thread ahead of the consumer, rows of 98,304 tokens, the published batch (4,608
sequences of 1,024 tokens, 576 of 8,192). The consumer takes batches as fast as they come, then at the rate of
a GPU (`--rate`): the share of its time that it waits is printed. With `--ranks 8`, this is one process of
eight: it packs the rows of all and reads its own; the rates are then those of one GPU.

The text is `--text` (with `--tokenizer`), or `--shards`, or else documents of random tokens whose lengths are
log-normal (median 500). All of it has been read once: the figures are those of a warm page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import spread, write
from modernbert import telemetry
from modernbert.data.masking import Masker, MaskingSettings
from modernbert.data.prefetch import prefetch
from modernbert.data.shards import TokenShards, write_shards
from modernbert.data.source import Source
from modernbert.data.tokenizer import Tokenizer
from modernbert.runtime import machine_facts
from modernbert.train.feed import StepBatch, step_batches
from modernbert.train.ranks import Ranks
from modernbert.train.schedule import Clock, Phase, Schedule

QUESTION = (
    "tokens/s delivered packed and masked from token shards, and the share of its time that a GPU waits"
)
BATCH_TOKENS = 4608 * 1024
ROW_TOKENS = 98_304
WINDOWS = 5


class RandomWords:
    """A tokenizer and a vocabulary: a text that is a number becomes as many random tokens."""

    fingerprint, vocab_size = "random", 50_368
    cls_id, sep_id, mask_id = 50_281, 50_282, 50_284
    special_ids = frozenset(range(50_280, 50_285))
    ordinary_ids = np.arange(50_280)

    def encode_batch(self, texts: list[str], *, special: bool, literal: bool) -> list[list[int]]:
        draw = np.random.default_rng(len(texts))
        return [draw.integers(0, 50_280, int(text)).tolist() for text in texts]


def random_shards(folder: Path, num_tokens: int) -> TokenShards:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(500), 1.2, num_tokens // 900), 8, 100_000).astype(int)
    (folder / "lengths.txt").write_text("\n".join(map(str, lengths)), encoding="utf-8")
    return write_shards(folder / "lengths.txt", RandomWords(), folder / "shards")


def batches(
    shards: TokenShards, vocabulary: RandomWords | Tokenizer, length: int, batch: int, ranks: Ranks
) -> Iterator[StepBatch]:
    """The steps of an endless phase."""
    phase = Phase(
        name="measured",
        tokens=10**15,
        sequence_length=length,
        batch_tokens=batch,
        learning_rate=1e-3,
        global_rope_theta=1e4,
        local_rope_theta=1e4,
    )
    special = {"cls_id": vocabulary.cls_id, "sep_id": vocabulary.sep_id}
    source = Source("text", shards, sequence_length=length, seed=17, **special)
    masker = Masker(vocabulary, MaskingSettings(), seed=17)
    return step_batches(
        Schedule([phase]),
        lambda _: ([source], [1.0]),
        masker,
        row_tokens=min(ROW_TOKENS, batch),
        clock=Clock(),
        ranks=ranks,
    )


def own_tokens(batch: StepBatch) -> int:
    return sum(row.num_tokens for row in batch.rows)


def at_full_speed(steps: Iterator[StepBatch], seconds: float) -> dict[str, float]:
    """Take batches as they come: tokens a second by wall and by CPU time, and how full the rows are."""
    next(steps)  # opening, and the first look-ahead
    seconds_a_token, filled, total, cpu = [], [], 0, time.process_time()
    for _ in range(WINDOWS):
        began, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds / WINDOWS:
            batch = next(steps)
            count += own_tokens(batch)
            filled.append(batch.num_tokens / batch.capacity)
        seconds_a_token.append(elapsed / count)
        total += count
    per_cpu_second = total / (time.process_time() - cpu)
    return {**spread(1, seconds_a_token), "per_cpu_second": per_cpu_second, "filled": float(np.mean(filled))}


def at_the_rate_of_a_gpu(steps: Iterator[StepBatch], rate: float, seconds: float) -> float:
    """Return the share of its time that a consumer of `rate` tokens a second waits, after the first batch."""
    batch = next(steps)
    waited, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        time.sleep(own_tokens(batch) / rate)
        asked = time.perf_counter()
        batch = next(steps)
        waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - began)


def open_text(arguments: argparse.Namespace, folder: Path) -> tuple[TokenShards, RandomWords | Tokenizer]:
    tokenizer = Tokenizer.from_pretrained(arguments.tokenizer) if arguments.tokenizer else None
    if arguments.shards:
        return TokenShards.open(arguments.shards), tokenizer or RandomWords()
    if arguments.text:
        if tokenizer is None:
            raise SystemExit("--text needs --tokenizer, the folder of the one to cut it with")
        return write_shards(arguments.text, tokenizer, folder / "shards"), tokenizer
    return random_shards(folder, 300_000 if arguments.quick else 50_000_000), RandomWords()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", nargs="+", help="text files, folders or URLs")
    parser.add_argument("--tokenizer", help="folder of a tokenizer of at most 65,536 entries")
    parser.add_argument("--shards", type=Path, help="folder of token shards")
    parser.add_argument("--rate", type=float, default=1e6, help="tokens a second of the consumer")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the batches")
    parser.add_argument("--cores", type=int, help="use only so many CPU cores")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="small and short, into the temporary folder")
    arguments = parser.parse_args()
    if arguments.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    seconds, batch = (0.2, 65_536) if arguments.quick else (arguments.seconds, BATCH_TOKENS)
    machine, ranks = machine_facts(torch.device("cpu")), Ranks(0, arguments.ranks)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        shards, vocabulary = open_text(arguments, Path(name))
        for length in (1024, 8192):
            with contextlib.closing(prefetch(batches(shards, vocabulary, length, batch, ranks))) as steps:
                row = {"sequence_length": length, **at_full_speed(steps, seconds)}
            telemetry.note(f"{length:,}: {row['tokens_per_second']:,.0f} tokens/s")
            with contextlib.closing(prefetch(batches(shards, vocabulary, length, batch, ranks))) as steps:
                row["wait_share"] = at_the_rate_of_a_gpu(steps, arguments.rate, seconds)
            rows.append(row)
        corpus = {
            "text": "own" if arguments.text or arguments.shards else "random",
            "documents": shards.num_documents,
            "tokens": shards.num_tokens,
        }
    more = {"consumer_rate": arguments.rate, "ranks": arguments.ranks, "corpus": corpus}
    more["cores"] = len(os.sched_getaffinity(0))
    folder = Path(tempfile.gettempdir()) if arguments.quick else None
    write("loader", QUESTION, rows, machine, folder=folder, **more)


if __name__ == "__main__":
    main()
