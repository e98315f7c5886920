from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from modernbert.evaluate import bench_report
from modernbert.evaluate.bench import ON_GPU
from modernbert.evaluate.contenders import Contender
from modernbert.evaluate.outcome import BenchOutcome, Largest, Latency, Throughput


def contender(name: str, dtype: str = "bf16", *, ours: bool) -> Contender:
    return Contender(name=name, dtype=dtype, is_ours=ours, load=lambda: lambda *given: lambda: None)


OURS, PEER, LOSSY = (
    contender("modernbert fused", ours=True),
    contender("transformers sdpa", ours=False),
    contender("modernbert int8", "int8", ours=True),
)


@pytest.fixture
def outcome() -> BenchOutcome:
    outcome = BenchOutcome(
        model="base",
        num_parameters=149_014_272,
        dtype="bf16",
        machine={
            "device": "cuda:0",
            "gpu": "H100",
            "cpu": "x",
            "threads": 2,
            "torch": "2.11",
            "transformers": "5",
        },
        size=ON_GPU,
        product="8,192 x 8,192 x 8,192, bfloat16",
        product_rates=[7e14, 7.5e14],
        date="2026-11-23",
    )
    for who, seconds in ((OURS, (0.4, 0.5, 0.6)), (PEER, (1.0, 1.0, 1.0)), (LOSSY, (0.1, 0.1, 0.1))):
        outcome.throughputs.append(
            Throughput(
                contender=who,
                workload="short-fixed",
                batch_tokens=65_536,
                num_tokens=600_000,
                flops=150 * 10**12,
                seconds=seconds,
            )
        )
    outcome.latencies.append(Latency(contender=OURS, length=32, seconds=(0.001, 0.002, 0.003)))
    outcome.largest.append(Largest(contender=PEER, length=8192, batch=1234))
    return outcome


def test_tables(outcome: BenchOutcome) -> None:
    rates, mfu, latency, largest = bench_report.tables(outcome).values()
    assert [row["short-fixed"] for row in rates] == ["1.2M ±20.8%", "600k ±0.0%", "6M ±0.0%", "2.00"]
    assert rates[-1]["contender"] == "ours over the best peer"  # of one dtype
    assert [row["short-fixed"] for row in mfu] == ["40.0%", "20.0%", "200.0%"]
    assert latency == [{"contender": "modernbert fused", "dtype": "bf16", "32 tokens": "2.00 / 2.80"}]
    assert largest[0]["8,192 tokens"] == "1,234"
    assert largest[0]["512 tokens"] == "–"
    titles = list(bench_report.tables(outcome))
    assert "median of 10" in titles[0]
    assert "750TFLOP/s (8,192 x 8,192 x 8,192, bfloat16)" in titles[1]
    assert bench_report.headline(outcome) == (
        "base: 149M parameters, bf16, on cuda:0 (H100, 2 threads), torch 2.11, transformers 5, 2026-11-23"
    )


def test_tables_without_peers_or_figures(outcome: BenchOutcome) -> None:
    del outcome.throughputs[1]
    rates = next(iter(bench_report.tables(outcome).values()))
    assert [row["contender"] for row in rates] == ["modernbert fused", "modernbert int8"]
    outcome.throughputs, outcome.latencies, outcome.largest = [], [], []
    assert bench_report.tables(outcome) == {}


def test_files(outcome: BenchOutcome, tmp_path: Path) -> None:
    bench_report.save(outcome, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"bench.json", "bench.svg", "bench.png"}
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["largest_batch"][0]["batch"] == 1234
    svg = (tmp_path / "out" / "bench.svg").read_text()
    assert "transformers sdpa" in svg
    assert "1.2M" in svg


def test_without_matplotlib_there_is_a_note(
    outcome: BenchOutcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    bench_report.save(outcome, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["bench.json"]
    (note,) = json.loads((tmp_path / "bench.json").read_text())["notes"]
    assert note.startswith("no picture: ")


def test_nothing_to_draw(outcome: BenchOutcome, tmp_path: Path) -> None:
    outcome.throughputs, outcome.latencies = [], []
    bench_report.save(outcome, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["bench.json"]
