"""Is fine-tuning here as good as by transformers' `Trainer`, and how much faster?

Each data set is learned from the same weights by `modernbert finetune` and by the `Trainer`, in one process
in turn, with the same epochs, batch size and learning rate; all else is each one's default. Both learn to the
last step and are measured once, on a part that neither has looked at. Rates are those of warm steps and count
examples of the file; minutes are those of everything. RTE and MRPC are learned also from the model that
learned MNLI. The result is written after each data set.

The folder of data sets holds one folder for each, with `train.jsonl` and what it is measured on.

    python -m benchmarks.finetune --data FOLDER --model MODEL
    python -m benchmarks.finetune --data FOLDER --limit 64 --preset tiny --only trec wnut17
    python -m benchmarks.finetune --data FOLDER --model MODEL --cpu-time
    python -m benchmarks.finetune --data FOLDER --model MODEL --anchor BERT --no-peer

`--anchor` names another encoder of transformers, such as that of `benchmarks.plain_bert`, which the `Trainer`
teaches the texts and tags besides.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import math
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import common
from benchmarks.finetune_trainer import Peer, seen, warm_up
from modernbert import files, runtime, telemetry
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ModernBertError
from modernbert.infer.texts import Texts
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.recipes.finetune.data import open_texts, read_splits
from modernbert.recipes.finetune.findings import Findings, read_findings
from modernbert.recipes.finetune.session import finetune
from modernbert.recipes.finetune.settings import FinetuneRun, read_run
from modernbert.recipes.finetune.task import TRAIN, TuningTask
from modernbert.recipes.finetune.tasks import TASKS

QUESTION = "Is fine-tuning here as good as by transformers' Trainer, and how much faster?"
CPU_QUESTION = (
    "How long does fine-tuning on 7,000 sentences take on two CPU cores, and how good is the model?"
)
OURS, THEIRS, ANCHOR = "modernbert", "transformers Trainer", "anchor, transformers Trainer"
AIMED_RATIO = 3.0
BATCH = 32
PEER_PACKAGES = ("transformers", "accelerate")
CPU_THREADS, CPU_SENTENCES = 2, 7000
VOCABULARY, TRAINING_LINES = 50_368, 20_000
"""Of a model with random weights, and of its tokenizer's text."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A data set, and how a small model learns it.

    Attributes:
        name: Of its folder, and in the result.
        metric: By which models are compared.
        test: The file that is measured; None: every fifth example of `train` is held out for it.
        train: The file that is learned from.
        task: The verb's task.
        epochs: Passes over it.
        learning_rate: At the peak.
        max_length: Tokens of a sequence; None: what the model takes.
        is_long: Whether one seed has to do.
        start: The data set that is learned before; None: none.
    """

    name: str
    metric: str
    test: str | None
    train: str = "train"
    task: Literal["classify", "tag", "answer", "choose"] = "classify"
    epochs: int = 3
    learning_rate: float = 2e-4
    max_length: int | None = None
    is_long: bool = False
    start: str | None = None


MNLI = "glue_mnli_7k"
CASES = (
    Case(name=MNLI, metric="accuracy", test="dev"),
    Case(name="glue_cola", metric="mcc", test="dev", epochs=5),
    Case(name="glue_sst2", metric="accuracy", test="dev", epochs=2, is_long=True),
    Case(name="glue_mrpc", metric="accuracy", test="dev", epochs=5),
    Case(name="stsb", metric="spearman", test="dev", epochs=5),
    Case(name="glue_rte", metric="accuracy", test="dev", epochs=5),
    Case(name="conll2003", metric="f1", test="test", task="tag", epochs=3),
    Case(name="wnut17", metric="f1", test="test", task="tag", epochs=5),
    Case(name="trec", metric="accuracy", test="test", epochs=5),
    Case(name="ag_news_small", metric="accuracy", test="test"),
    Case(name="jaquad", metric="character_f1", test="dev", task="answer", max_length=384, is_long=True),
    Case(name="mc_sciq", metric="accuracy", test=None, train="validation", task="choose", epochs=5),
)
SST2 = next(case for case in CASES if case.name == "glue_sst2")


@dataclass(frozen=True)
class Outcome:
    """What one run came to: a score with its interval, warm examples a second, and what it took."""

    score: float
    low: float | None
    high: float | None
    examples_per_second: float
    minutes: float
    peak_gib: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, measure, write the result."""
    given = _parser().parse_intermixed_args(arguments)
    if given.data is None:
        telemetry.note("not measured: `--data FOLDER` must say where the data sets are")
        return
    with tempfile.TemporaryDirectory() as folder:
        Benchmark(given, Path(folder)).measure()


class Benchmark:
    """What is wanted, and what was found of it so far."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.device = runtime.choose_device("cpu" if given.cpu_time else given.device)
        self.machine = runtime.machine_facts(self.device)
        self.began = time.monotonic()
        wanted = [SST2.name] if given.cpu_time else given.only
        self.cases = [case for case in CASES if wanted is None or case.name in wanted]
        self.model = given.model or str(self._random_model())
        self.has_trainer = _has_trainer()
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[str] = []

    def measure(self) -> None:
        """Measure everything; what was found so far is on the disk at any time."""
        if self.given.cpu_time:
            self._measure_cpu()
            return
        for case in self.cases:
            seeds = 1 if case.is_long else self.given.seeds
            self._compare(case, seeds)
            if case.name in ("glue_rte", "glue_mrpc"):
                self._begin_with_mnli(case, seeds)
        self._write("finetune", QUESTION, ratios=list(ratios_of(self.rows)), skipped=self.skipped)
        common.show(QUESTION, self.rows)
        common.show("ours beside the peer", list(ratios_of(self.rows)))

    def _compare(self, case: Case, seeds: int, model: str | None = None) -> None:
        """Train both in turn, seed after seed, and add their rows."""
        ways = {OURS: self._ours}
        if self.has_trainer and not case.start:
            if not self.given.no_peer:
                ways[THEIRS] = self._theirs
            if self.given.anchor and case.task in ("classify", "tag"):
                ways[ANCHOR] = self._anchor
        if self._is_late():
            self.skipped.append(case.name)
            return
        found: dict[str, list[Outcome]] = {way: [] for way in ways}
        for seed, (way, run) in itertools.product(range(seeds), ways.items()):
            try:
                found[way].append(run(case, seed, model or self.model))
            except (RuntimeError, ValueError, ModernBertError):  # the other ways are worth having
                telemetry.note(f"{case.name}, {way} failed:\n{traceback.format_exc()}")
        for way, outcomes in found.items():
            row = _row(case, way, outcomes) if outcomes else {"set": case.name, "engine": way, "seeds": 0}
            telemetry.note(json.dumps(row))
            self.rows.append(row)
        self._write("finetune", QUESTION, ratios=list(ratios_of(self.rows)), skipped=self.skipped)

    def _begin_with_mnli(self, case: Case, seeds: int) -> None:
        """Learn MNLI, unless that was done, then the case from there."""
        mnli = next(it for it in CASES if it.name == MNLI)
        start = self._folder(mnli, OURS, 0) / "model"
        if not start.exists() and (self.given.data / MNLI).is_dir() and not self._is_late():
            self._ours(mnli, 0, self.model)
        if start.exists():
            self._compare(replace(case, start=MNLI), seeds, str(start))

    def _measure_cpu(self) -> None:
        """Train on few sentences with two threads and, where there is one, on a GPU."""
        torch.set_num_threads(CPU_THREADS)
        self.machine |= {"threads": torch.get_num_threads()}
        limit = min(self.given.limit or CPU_SENTENCES, CPU_SENTENCES)
        names = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
        for name in names:
            self.device = torch.device(name)
            outcome = self._ours(SST2, 0, self.model, limit)
            where = f"{CPU_THREADS} CPU threads" if name == "cpu" else torch.cuda.get_device_name()
            row = _row(SST2, f"{OURS}, {where}", [outcome])
            self.rows.append({**row, "sentences": limit})
            self._write("finetune_cpu", CPU_QUESTION)
        common.show(CPU_QUESTION, self.rows)

    def _ours(self, case: Case, seed: int, model: str, limit: int | None = None) -> Outcome:
        run = self._run(case, OURS, seed, model, limit)
        self._clear()
        began = time.perf_counter()
        finetune(run)
        minutes = (time.perf_counter() - began) / 60
        return self._outcome(case, read_findings(Path(run.folder))[0], _our_rate(run), minutes)

    def _theirs(self, case: Case, seed: int, model: str) -> Outcome:
        return self._by_trainer(case, self._run(case, THEIRS, seed, model))

    def _anchor(self, case: Case, seed: int, model: str) -> Outcome:
        return self._by_trainer(case, self._run(case, ANCHOR, seed, str(self.given.anchor)))

    def _by_trainer(self, case: Case, run: FinetuneRun) -> Outcome:
        self._clear()
        began = time.perf_counter()
        peer = Peer(run, _task(run))
        rate = peer.train()
        found = peer.evaluate(Path(run.folder) / "model")
        return self._outcome(case, found, rate, (time.perf_counter() - began) / 60)

    def _outcome(self, case: Case, found: Findings, rate: float, minutes: float) -> Outcome:
        interval = found.intervals.get(case.metric)
        peak = runtime.peak_memory(self.device) if self.device.type == "cuda" else None
        return Outcome(
            score=found.figures[case.metric],
            low=None if interval is None else interval.low,
            high=None if interval is None else interval.high,
            examples_per_second=rate,
            minutes=minutes,
            peak_gib=None if peak is None else peak / 2**30,
        )

    def _clear(self) -> None:
        """Give memory back, so that the next run's peak is its own."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _run(self, case: Case, way: str, seed: int, model: str, limit: int | None = None) -> FinetuneRun:
        folder = self._folder(case, way, seed)
        train, test = self._files(case, limit or self.given.limit)
        tuning = {
            "epochs": self.given.epochs or case.epochs,
            "learning_rate": self.given.learning_rate or case.learning_rate,
            "batch_size": BATCH,
        }
        data = {
            "train": str(train),
            "test": str(test),
            "held_out": 0,  # the last step's model is measured, as the peer's is
            "max_length": case.max_length,
        }
        given = {"folder": str(folder), "task": case.task, "model": model, "data": data, "tuning": tuning}
        return read_run(None, {**given, "seed": seed, "device": self.device.type}, self.given.overrides)

    def _folder(self, case: Case, way: str, seed: int) -> Path:
        name = f"{case.name}-{case.start}" if case.start else case.name
        return self.folder / self.device.type / name / way.replace(" ", "-") / str(seed)

    def _files(self, case: Case, limit: int | None) -> tuple[Path, Path]:
        """Write what is learned from, at most `limit` examples, and what is measured."""
        train = _lines(self.given.data / case.name / f"{case.train}.jsonl")
        if case.test is None:
            test, train = train[::5], [line for place, line in enumerate(train) if place % 5]
        else:
            test = _lines(self.given.data / case.name / f"{case.test}.jsonl")
        folder = self.folder / "data" / case.name
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "train.jsonl", folder / "test.jsonl"
        paths[0].write_text("".join(_thinned(train, limit)), encoding="utf-8")
        paths[1].write_text("".join(_thinned(test, self.given.limit)), encoding="utf-8")
        return paths

    def _random_model(self) -> Path:
        """Write random weights, and a tokenizer of the training texts."""
        files = (self.given.data / case.name / f"{case.train}.jsonl" for case in self.cases)
        texts = itertools.chain.from_iterable(_thinned(_lines(path), TRAINING_LINES) for path in files)
        words = Tokenizer.train(texts, vocab_size=self.given.vocab_size)
        ids = {"pad_token_id": words.pad_id, "cls_token_id": words.cls_id, "sep_token_id": words.sep_id}
        size = max(words.vocab_size, self.given.vocab_size)
        model = ModernBertForMaskedLM(EncoderConfig.preset(self.given.preset, vocab_size=size, **ids))
        initialise(model, seed=0)
        folder = self.folder / "random"
        folder.mkdir(parents=True)
        model.save_pretrained(folder)
        words.save_pretrained(folder, model_max_length=model.config.max_position_embeddings)
        return folder

    def _is_late(self) -> bool:
        return time.monotonic() - self.began > 60 * self.given.minutes

    def _write(self, name: str, question: str, **more: Any) -> None:
        facts = {"model": self.given.model or f"random weights, {self.given.preset}", **more}
        if self.given.anchor:
            facts["anchor"] = str(self.given.anchor)
        if self.has_trainer:
            facts["versions"] = {name: importlib.metadata.version(name) for name in PEER_PACKAGES}
        common.save(name, question, self.rows, self.machine, self.given.results, **facts)


def ratios_of(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Compare ours with the peer, set by set.

    Quality is met if ours is not lower than theirs by more than the larger deviation of both over seeds; of
    one seed nothing is said.
    """
    found = {(row["set"], row["engine"]): row for row in rows if row["seeds"]}
    for name, engine in found:
        mine, other = found.get((name, OURS)), found.get((name, THEIRS))
        if engine != OURS or mine is None or other is None:
            continue
        apart = [row["deviation"] for row in (mine, other) if row["deviation"] is not None]
        difference = mine["score"] - other["score"]
        ratio = mine["examples_per_second"] / other["examples_per_second"]
        yield {
            "set": name,
            "metric": mine["metric"],
            "difference": difference,
            "deviation": max(apart, default=None),
            "quality": ("met" if difference >= -max(apart) else "missed") if apart else None,
            "speed_ratio": ratio,
            "speed": "met" if ratio >= AIMED_RATIO else "missed",
        }


def _row(case: Case, engine: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Sum up the seeds: means of scores, of the ends of their intervals, and of rates; all minutes."""
    scores = [outcome.score for outcome in outcomes]
    peaks = [outcome.peak_gib for outcome in outcomes if outcome.peak_gib is not None]
    return {
        "set": f"{case.name}, from {case.start}" if case.start else case.name,
        "engine": engine,
        "seeds": len(scores),
        "metric": case.metric,
        "score": statistics.mean(scores),
        "low": _mean(outcome.low for outcome in outcomes),
        "high": _mean(outcome.high for outcome in outcomes),
        "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
        "scores": scores,
        "examples_per_second": statistics.mean(outcome.examples_per_second for outcome in outcomes),
        "peak_gib": max(peaks, default=None),
        "minutes": sum(outcome.minutes for outcome in outcomes),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _task(run: FinetuneRun) -> TuningTask[Any]:
    kind, words = TASKS[run.task], Tokenizer.from_pretrained(run.model)
    settings = files.read_json(Path(run.model) / "config.json") if Path(run.model).is_dir() else {}
    if settings.get("model_type", "modernbert") == "modernbert":
        texts = open_texts(run, words)
    else:  # the anchor
        texts = Texts(words, run.data.max_length or settings["max_position_embeddings"])
    return kind(run, texts, read_splits(run, kind))


def _our_rate(run: FinetuneRun) -> float:
    """Return examples of the file a second, of warm steps, from what a run wrote down."""
    lines = (Path(run.folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [it["examples_per_second"] for it in map(json.loads, lines) if it["event"] == "step"]
    task = _task(run)
    num_examples, size = len(task.examples(TRAIN)), run.tuning.batch_size
    counts = [
        seen(step + 1, num_examples, size) - seen(step, num_examples, size) for step in range(len(rates))
    ]
    warm = list(zip(counts, rates, strict=True))[warm_up(len(rates)) :]
    share = len(task.splits[TRAIN].records) / num_examples
    return share * sum(count for count, _ in warm) / sum(count / rate for count, rate in warm)


def _lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return list(file)


def _thinned(lines: Sequence[str], limit: int | None) -> list[str]:
    """Take at most so many lines, from all over the file."""
    if limit is None or len(lines) <= limit:
        return list(lines)
    return [lines[place * len(lines) // limit] for place in range(limit)]


def _has_trainer() -> bool:
    missing = [name for name in PEER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        telemetry.note(f"the peer is left out: it needs `pip install {' '.join(missing)}`")
    return not missing


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--model", help="a masked-LM checkpoint, folder or hub id; none: random weights")
    parser.add_argument("--preset", default="17m", help="shape of random weights")
    parser.add_argument("--vocab-size", type=int, default=VOCABULARY, help="of random weights")
    parser.add_argument(
        "--only", nargs="+", choices=[case.name for case in CASES], help="data sets; none: all"
    )
    parser.add_argument("--device", help="where to train; none: the best there is")
    parser.add_argument("--seeds", type=int, default=3, help="of each set, but for the long ones")
    parser.add_argument("--epochs", type=float, help="in place of each set's own")
    parser.add_argument(
        "--learning-rate", type=float, help="in place of each set's own: large models like less"
    )
    parser.add_argument("--limit", type=int, help="examples of each file, for a try")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no data set after so many")
    parser.add_argument("--anchor", type=Path, help="folder of another encoder of transformers, besides")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--cpu-time", action="store_true", help="7,000 sentences on two CPU threads instead")
    parser.add_argument("--results", type=Path, help="folder of the result; none: benchmarks/results")
    parser.add_argument("overrides", nargs="*", help="changes of our run's settings, such as compile=true")
    return parser


if __name__ == "__main__":
    main()
