"""Which shape and which settings of `mini` learn most in equal time on this device?

Each variant is the run file with a few settings changed. Its speed is measured first, over some steps of each
phase; then its phases are shortened, all by one factor, so that its steps take as long as every other
variant's, and it is trained to the end of its decay by `modernbert pretrain`. Compiling, validation and
saving do not count. A row is written as soon as it is there, and kept: the same command goes on. Losses of
two vocabularies are compared in nats a byte: masked loss over bytes a token. That is rough, for a masked
token of more bytes is harder.

    python -m benchmarks.mini_sweep --output mini/sweep --seconds 40
    python -m benchmarks.mini_sweep --output mini/sweep --seconds 40 --only as-it-is muon --minutes 9
"""

from __future__ import annotations

import argparse
import gc
import math
import shutil
import statistics
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import save, show
from modernbert import files, runtime, telemetry
from modernbert.data.shards import TokenShards
from modernbert.data.tokenizer import Tokenizer
from modernbert.data.vocabulary import bytes_per_token
from modernbert.errors import ModernBertError
from modernbert.recipes.history import History, read_history
from modernbert.recipes.prepare import find_shards
from modernbert.recipes.pretrain import pretrain
from modernbert.recipes.settings import PretrainRun, read_run
from modernbert.train.schedule import Phase

QUESTION = "Which shape and which settings of `mini` learn most in equal time on this device?"
RUN_FILE = Path(__file__).parents[1] / "runs" / "mini" / "mini.yaml"
STEPS, COLD_STEPS = 10, 5
"""Steps of each phase by which its speed is measured, and how many of them do not count."""
WARM_UP_SHARE = 0.05
"""Of the first phase: scaled with it, the learning rate would rise in a handful of steps."""
SAMPLED_BYTES = 200_000
"""Of each source, to know how many bytes a token has."""

PHASES = ("pretrain", "extend", "decay")
VARIANTS: Mapping[str, Sequence[str]] = {
    "as-it-is": (),
    # optimizer and learning rate
    "muon": ("optimizer.name=muon",),
    "muon-4e-3": ("optimizer.name=muon", *(f"phases.{phase}.learning_rate=4e-3" for phase in PHASES)),
    "adamw": ("optimizer.name=adamw", "optimizer.clip_norm=1.0"),
    "rate-1e-3": tuple(f"phases.{phase}.learning_rate=1e-3" for phase in PHASES),
    "rate-4e-3": tuple(f"phases.{phase}.learning_rate=4e-3" for phase in PHASES),
    # shape, each of at most 40 MB in bf16
    "deep-narrow": (
        *("model.num_hidden_layers=13", "model.hidden_size=320"),
        *("model.num_attention_heads=5", "model.intermediate_size=512"),
    ),
    "shallow": ("model.num_hidden_layers=7", "model.intermediate_size=576"),
    # vocabulary, with its own tokenizer and token shards
    "words-16k": (
        *("model.vocab_size=16384", "model.intermediate_size=576"),
        *("tokenizer.path=mini/tokenizer-16k", "data.root=mini/shards-16k"),
    ),
    "words-32k": (
        *("model.vocab_size=32768", "model.hidden_size=320"),
        *("model.num_attention_heads=5", "model.intermediate_size=480"),
        *("tokenizer.path=mini/tokenizer-32k", "data.root=mini/shards-32k"),
    ),
    # masks, batch, dropout, shares of the phases
    "mask-20": ("phases.pretrain.mask_rate=0.2", "phases.extend.mask_rate=0.2"),
    "mask-40": ("phases.pretrain.mask_rate=0.4",),
    "batch-131k": (
        *("phases.pretrain.batch_warmup_start=null", "phases.pretrain.batch_warmup_tokens=0"),
        *(f"phases.{phase}.batch_tokens=131072" for phase in PHASES),
    ),
    "no-dropout": ("model.attn_out_dropout=0.0",),
    "long-decay": ("phases.pretrain.tokens=960e6", "phases.decay.tokens=480e6"),
    # a larger model to learn from, made by runs/mini/teacher.yaml, whose own time does not count
    "taught": ("distillation.teacher=mini/teacher/model",),
    "taught-hidden": ("distillation.teacher=mini/teacher/model", "distillation.hidden_weight=1.0"),
    # speed alone
    "fp8": ("fp8=true",),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train each variant that has no row yet, write the result after each."""
    given = _parser().parse_intermixed_args(arguments)
    began, rows = time.monotonic(), []
    for name in given.only or VARIANTS:
        variant = Variant(name, given)
        row = variant.kept()
        if row is None and time.monotonic() - began < 60 * given.minutes:
            try:
                row = variant.measure()
            except (RuntimeError, ModernBertError):  # the other variants are worth having
                telemetry.note(f"{name} failed:\n{traceback.format_exc()}")
        if row is not None:
            rows.append(row)
            machine = runtime.machine_facts(variant.device)
            facts = {"run": given.run.name, "seconds_wanted": given.seconds}
            save("mini_sweep", QUESTION, rows, machine, given.results, **facts)
        if variant.is_stopped:
            break
    columns = [{key: value for key, value in row.items() if key != "overrides"} for row in rows]
    show(QUESTION, sorted(columns, key=lambda row: row["nats_per_byte"]))


class Variant:
    """One variant of the run file.

    Args:
        name: Which one.
        given: The command line.
    """

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.name = name
        self.seconds = given.seconds
        self.path = given.output / f"{name}.json"
        self.overrides = [*VARIANTS[name], *given.overrides]
        folder = given.output / name
        self.run = replace(read_run(given.run, self.overrides), folder=str(folder))
        self.device = runtime.choose_device(self.run.device)
        self.is_stopped = False

    def kept(self) -> dict[str, Any] | None:
        """Return the row that was measured before with these settings; None if there is none."""
        row: dict[str, Any] = files.read_json(self.path) if self.path.exists() else {}
        is_same = row.get("overrides") == self.overrides and row.get("seconds_wanted") == self.seconds
        return row if is_same else None

    def measure(self) -> dict[str, Any] | None:
        """Train it and write its row; None if a signal came before its end."""
        folder = Path(self.run.folder)
        shutil.rmtree(folder, ignore_errors=True)
        rates = self._rates()
        if rates is None:
            return None
        history = self._train(_resized(self.run, _factor(self.run, rates, self.seconds)))
        if history is None:
            return None
        row = {**self._row(history), "overrides": self.overrides, "seconds_wanted": self.seconds}
        files.write_json(self.path, row)
        shutil.rmtree(folder)
        return row

    def _rates(self) -> list[float] | None:
        """Return the tokens a second of each phase, of warm steps."""
        short = [
            replace(
                phase,
                tokens=STEPS * phase.batch_tokens,
                warmup_tokens=0,
                decay_tokens=None,
                batch_warmup_start=None,
                batch_warmup_tokens=0,
            )
            for phase in self.run.phases
        ]
        folder = str(Path(self.run.folder) / "speed")
        history = self._train(replace(self.run, folder=folder, phases=tuple(short)))
        return None if history is None else _rates_of(history)

    def _train(self, run: PretrainRun) -> History | None:
        """Train to the end, and look at held-out text there alone; None if a signal came before."""
        history = train_afresh(
            replace(
                run,
                validation=replace(run.validation, every_tokens=None),
                checkpoint=replace(run.checkpoint, every_tokens=None, average_best=0),
            )
        )
        self.is_stopped = history is None
        return history

    def _row(self, history: History) -> dict[str, Any]:
        found, shape = history.validations[-1], self.run.model
        tokens = history.spans[-1].end_tokens
        seconds = sum(
            (span.end_tokens - span.start_tokens) / rate
            for span, rate in zip(history.spans, _rates_of(history))
        )
        return {
            "variant": self.name,
            "loss": found["loss"],
            "accuracy": found["accuracy"],
            "nats_per_byte": self._nats_per_byte(found, Path(history.folder)),
            "parameters": shape.num_parameters(head=True),
            "bf16_megabytes": 2e-6 * shape.num_parameters(head=True),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "steps": int(history.columns["step"][-1]),
            "commit": history.facts.get("commit"),
        }

    def _nats_per_byte(self, found: Mapping[str, Any], folder: Path) -> float:
        """Divide what the held-out tokens cost by the bytes that tokens of their sources have."""
        words = Tokenizer.from_pretrained(folder / "tokenizer")
        only = {"source": self.run.data.sources[0].name, **found}
        nats = size = 0.0
        for part in found.get("by_source", [only]):
            source = next(it for it in self.run.data.sources if it.name == part["source"])
            shards = find_shards(folder, source)
            assert shards is not None  # the run read them
            rate = bytes_per_token({"own": words}, _texts(shards, words), max_bytes=SAMPLED_BYTES)["own"]
            nats += part["loss"] * part["num_masked"]
            size += part["num_masked"] * rate
        return nats / size


def train_afresh(run: PretrainRun) -> History | None:
    """Train to the end, each step with a record of its own, as if no run had been before in this process.

    Returns:
        Its course; None if a signal came before its end.
    """
    torch._dynamo.reset()
    gc.collect()
    device = runtime.choose_device(run.device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    runtime.peak_memory(device)  # what it says next is the run's own
    result = pretrain(replace(run, log=replace(run.log, every_steps=1)))
    return None if result.stopped_by else read_history(Path(run.folder))


def _texts(shards: TokenShards, words: Tokenizer) -> Iterator[str]:
    return (words.decode(shards.read(number), skip_special=False) for number in range(shards.num_documents))


def _rates_of(history: History) -> list[float]:
    """Return the median tokens a second of each phase's steps, but for its first ones."""
    rates = history.columns["tokens_per_second"]
    return [
        statistics.median(rates[min(span.first + COLD_STEPS, span.stop - 1) : span.stop].tolist())
        for span in history.spans
    ]


def _factor(run: PretrainRun, rates: Sequence[float], seconds: float) -> float:
    """Return by what to multiply the tokens of each phase for them to take so many seconds."""
    return seconds / sum(phase.tokens / rate for phase, rate in zip(run.phases, rates, strict=True))


def _resized(run: PretrainRun, factor: float) -> PretrainRun:
    """Return the run with phases of other lengths, each at least one batch."""
    return replace(run, phases=tuple(_resized_phase(phase, factor) for phase in run.phases))


def _resized_phase(phase: Phase, factor: float) -> Phase:
    tokens = max(int(phase.tokens * factor), phase.batch_tokens)
    scaled = {
        "tokens": tokens,
        "warmup_tokens": int(max(phase.warmup_tokens * factor, WARM_UP_SHARE * tokens))
        if phase.warmup_tokens
        else 0,
        "decay_tokens": None if phase.decay_tokens is None else max(1, int(phase.decay_tokens * factor)),
    }
    if phase.batch_warmup_start is not None:
        scaled["batch_warmup_tokens"] = max(1, int(phase.batch_warmup_tokens * factor))
    return replace(phase, **scaled)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN_FILE, help="the run file that is varied")
    parser.add_argument("--output", type=Path, default=Path("mini/sweep"), help="folder for runs and rows")
    parser.add_argument("--seconds", type=float, default=40.0, help="of training steps, for each variant")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="variants; none: all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no variant after so many")
    parser.add_argument("--results", type=Path, help="folder of the result; none: benchmarks/results")
    parser.add_argument("overrides", nargs="*", help="changes of the run file for all variants")
    return parser


if __name__ == "__main__":
    main()
