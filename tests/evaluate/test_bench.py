"""The efficiency table at toy size: who takes part, what is counted, who fails and how it is said."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modernbert.errors import BackendError, CheckpointError, ConfigError
from modernbert.evaluate import bench, contenders, peers, timing
from modernbert.evaluate.bench import BenchSettings, run_bench
from modernbert.evaluate.contenders import Contender, Run, Shape
from modernbert.evaluate.outcome import BenchOutcome
from modernbert.evaluate.workloads import Document
from modernbert.model.config import EncoderConfig

SMALL = BenchSettings(device="cpu", tokens=64, repetitions=2, peers=False, latency=False)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.PRODUCT_SIZES, "cpu", 64)
    monkeypatch.setattr(bench, "LATENCY_LENGTHS", (4, 32, 512))


@pytest.fixture
def with_peer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a made-up peer, which runs a function on batches, in the place of the real ones."""

    def with_peer(compute: Callable[[Sequence[Document], int, Shape], None], load: Any = None) -> None:
        def prepare(documents: Sequence[Document], places: int, shape: Shape) -> Run:
            return lambda: compute(documents, places, shape)

        peer = Contender(name="made-up", dtype="fp32", is_ours=False, load=load or (lambda: prepare))
        monkeypatch.setattr(peers, "find_peers", lambda *given, compiled: ([peer], ["peers: one"]))

    return with_peer


def test_a_preset_is_measured() -> None:
    kept: list[int] = []
    outcome = run_bench(
        "tiny",
        replace(SMALL, backends=("auto", "portable"), latency=True),
        on_part=lambda outcome: kept.append(len(outcome.throughputs)),
    )
    assert kept == [2, 4, 6, 8, 8, 8]
    assert [it.name for it in dict.fromkeys(it.contender for it in outcome.throughputs)] == [
        "modernbert auto",
        "modernbert portable",
    ]
    first = outcome.throughputs[0]
    assert (first.workload, first.num_tokens, len(first.seconds)) == ("short-fixed", 64, 2)
    assert first.rates[0] <= first.tokens_per_second <= first.rates[-1]
    assert first.contender.dtype == "fp32"
    assert first.mfu(outcome.product_flops) > 0
    assert [(it.length, len(it.seconds)) for it in outcome.latencies] == [(4, 10)] * 2 + [(32, 10)] * 2 + [
        (512, 10)
    ] * 2
    assert all(it.p50 <= it.p90 for it in outcome.latencies)
    assert "`tiny` is a preset: random weights" in outcome.notes
    assert "largest batch: skipped; it is measured on CUDA, not cpu" in outcome.notes
    assert any(note.startswith("long-fixed: 2 documents, 64 tokens (published: ") for note in outcome.notes)
    assert outcome.machine["torch"] == torch.__version__


def test_a_checkpoint_is_measured_on_its_own_weights(folder: Path) -> None:
    outcome = run_bench(folder, replace(SMALL, sets=("short-variable",), latency=True))
    assert outcome.num_parameters == EncoderConfig.preset("tiny").num_parameters()
    assert [it.length for it in outcome.latencies] == [4, 32]  # it takes no 512
    assert not any("preset" in note or "tokenizer" in note for note in outcome.notes)


def test_a_checkpoint_without_tokenizer_is_measured_all_the_same(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for file in bare.glob("*token*"):
        file.unlink()
    outcome = run_bench(bare, replace(SMALL, sets=("short-fixed",)))
    assert len(outcome.throughputs) == 1
    assert any("has no tokenizer of its own" in note for note in outcome.notes)
    assert not list(bare.glob("*token*"))


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        run_bench(tmp_path / "none", SMALL)
    with pytest.raises(ConfigError, match="unknown name `short-fixd` in `sets`; did you mean `short-fixed`"):
        BenchSettings(sets=("short-fixd",))
    with pytest.raises(ConfigError, match="unknown name `varlne` in `backends`; did you mean `varlen`"):
        BenchSettings(backends=("varlne",))
    with pytest.raises(ConfigError, match="`repetitions` is 0; it must be at least 1"):
        BenchSettings(repetitions=0)


def test_a_named_backend_that_cannot_serve_is_said_and_not_replaced() -> None:
    outcome = run_bench("tiny", replace(SMALL, sets=("short-fixed",), backends=("varlen", "portable")))
    assert [it.contender.name for it in outcome.throughputs] == ["modernbert portable"]
    assert any(it.startswith("modernbert varlen, loading: ") and "CUDA" in it for it in outcome.notes)
    with pytest.raises(
        BackendError, match=r"none of our backends serves on cpu: .*runs on CUDA devices only"
    ):
        run_bench("tiny", replace(SMALL, sets=("short-fixed",), backends=("varlen",)))


def test_a_peer_that_raises_is_said_and_the_others_go_on(with_peer: Any) -> None:
    def fail(documents: Sequence[Document], places: int, shape: Shape) -> None:
        if shape != "single":
            raise ZeroDivisionError("by the peer")

    with_peer(fail)
    outcome = run_bench("tiny", replace(SMALL, sets=("short-fixed",), peers=True, latency=True))
    assert [it.contender.name for it in outcome.throughputs] == ["modernbert auto"]
    assert {it.contender.name for it in outcome.latencies} == {"modernbert auto", "made-up"}
    assert "made-up, short-fixed: ZeroDivisionError: by the peer" in outcome.notes
    with_peer(fail, load=lambda: 1 / 0)
    outcome = run_bench("tiny", replace(SMALL, sets=("short-fixed",), peers=True))
    assert "made-up, loading: ZeroDivisionError: division by zero" in outcome.notes


def test_who_lacks_the_memory_gets_smaller_batches(with_peer: Any) -> None:
    def hungry(most: int) -> Callable[..., None]:
        def compute(documents: Sequence[Document], places: int, shape: Shape) -> None:
            if places > most:
                raise torch.OutOfMemoryError("no")

        return compute

    settings = replace(SMALL, sets=("short-fixed",), peers=True, batch_tokens=256)
    with_peer(hungry(64))
    outcome = run_bench("tiny", settings)
    assert [it.batch_tokens for it in outcome.throughputs] == [256, 64]
    told = "made-up, short-fixed: out of memory with batches of 256 places; measured with 64"
    assert told in outcome.notes
    with_peer(hungry(16))
    outcome = run_bench("tiny", settings)
    assert "made-up, short-fixed: out of memory" in outcome.notes
    assert len(outcome.throughputs) == 1


def test_largest_batches_are_of_who_is_not_compiled(with_peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(prepare: Callable[[int], Run], length: int, most: int, device: torch.device) -> int:
        prepare(2)()
        if length > 512:
            raise torch.OutOfMemoryError("no")
        return 7

    monkeypatch.setattr(timing, "largest_batch", fake)
    run = bench._Bench.find_largest

    def on_a_gpu(self: Any, title: str) -> None:
        self._device = torch.device("cuda")  # but nothing is asked of it
        run(self, title)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(bench._Bench, "find_largest", on_a_gpu)
    with_peer(lambda documents, places, shape: None)
    outcome = run_bench("tiny", replace(SMALL, sets=(), peers=True))
    found = [(it.contender.name, it.length, it.batch) for it in outcome.largest]
    assert found == [("modernbert auto", 512, 7), ("made-up", 512, 7)]
    assert "made-up, largest batch of 8,192 tokens: out of memory" in outcome.notes


def test_absent_peers_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    outcome = run_bench("tiny", replace(SMALL, sets=("short-fixed",), peers=True))
    absent = [note for note in outcome.notes if note.startswith("peers: ")]
    assert absent == ["peers: transformers is not installed (`pip install transformers`)"]


def test_on_a_gpu_every_engine_but_the_definition_takes_part() -> None:
    on_gpu = contenders.default_backends(torch.device("cuda"))
    assert {"auto", "fused", "varlen", "portable"} <= set(on_gpu)
    assert not {"plain", "onnx"} & set(on_gpu)
    assert contenders.default_backends(torch.device("cpu")) == ("auto",)
    assert contenders.dtype_of("bfloat16", torch.device("cpu")) == "bf16"


def test_plain_values() -> None:
    import json

    outcome = run_bench("tiny", replace(SMALL, sets=("short-fixed",), latency=True))
    tree = json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    assert tree["throughput"][0]["contender"] == "modernbert auto"
    assert tree["throughput"][0]["ours"] is True
    assert tree["product"]["what"] == "64 x 64 x 64, float32"
    assert [it["tokens"] for it in tree["latency"]] == [4, 32, 512]
    nothing = BenchOutcome(
        model="x", num_parameters=1, dtype="fp32", machine={}, size=bench.ELSEWHERE, product="none"
    )
    assert json.loads(json.dumps(nothing.to_json(), allow_nan=False))["product"] is None


@pytest.mark.gpu
def test_on_a_gpu_all_parts_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.PRODUCT_SIZES, "cuda", 256)
    monkeypatch.setattr(bench, "PUBLISHED_DOCUMENTS", 64)
    settings = replace(
        SMALL, device="cuda", backends=("auto", "portable"), latency=True, sets=("short-variable",)
    )
    outcome = run_bench("tiny", settings)
    assert {it.contender.dtype for it in outcome.throughputs} == {"bf16"}
    assert len(outcome.latencies) == 6
    assert [(it.length, it.batch) for it in outcome.largest] == [(512, 64), (8192, 64)] * 2
