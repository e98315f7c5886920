from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modernbert.errors import ConfigError
from modernbert.recipes import plan as plans
from modernbert.recipes.plan import RunPlan, parse_size, peak_of, plan
from modernbert.recipes.settings import read_run
from modernbert.train.planner import Machines

RUNS = Path(__file__).parents[2] / "runs"
EIGHT = Machines(num_gpus=8)


def planned(name: str, *overrides: str, machines: Machines = EIGHT) -> RunPlan:
    return plan(read_run(RUNS / f"{name}.yaml", overrides), machines)


def test_a_whole_run_is_planned() -> None:
    found = planned("base", machines=Machines(num_gpus=8, tokens_per_second=2.5e6))
    assert found.hours == pytest.approx(2019e9 / 2.5e6 / 3600)
    assert all(found.fits(phase) for phase in found.phases)
    assert found.micro_batch == found.run.micro_batch_tokens == 98_304
    assert plans.remarks(found) == []
    (remark,) = plans.remarks(planned("base", "fp8=true"))
    assert remark.startswith("fp8 counts as bf16 here")
    assert plans.headline(found) == (
        "150M parameters, stable_adamw, 8 GPUs (ddp) of 80GB, 2.5M tokens/s as measured: 224.3 hours"
    )
    one = planned("starter", machines=Machines(memory_bytes=24e9, mfu=0.1))
    assert "1 GPU of 24GB, 10% of 989.4 TFLOP/s each: 0.08 hours" in plans.headline(one)


def test_settings_of_the_run_count() -> None:
    usual = planned("ettin/1b").phases[0].keeping
    again = planned("ettin/1b", "distribution.activation_checkpointing=true")
    assert again.setup.recomputes_layers
    assert again.micro_batch == planned("ettin/1b").micro_batch
    sharded = planned("ettin/1b", "distribution.strategy=fsdp").phases[0].keeping
    assert sharded.memory.optimizer == pytest.approx(usual.memory.optimizer / 8, rel=1e-6)
    muon = planned("ettin/1b", "optimizer.name=muon").phases[0].keeping
    assert muon.memory.optimizer < usual.memory.optimizer


@pytest.mark.parametrize(
    ("settings", "num_gpus", "num_shards"),
    [
        (["distribution.strategy=fsdp"], 16, 16),
        (["distribution.strategy=hybrid"], 16, 8),
        (["distribution.strategy=hybrid"], 4, 4),
        (["distribution={strategy: hybrid, shard_ranks: 2}"], 16, 2),
        ([], 16, 1),
    ],
)
def test_weights_are_shared_by_as_many_gpus_as_the_strategy_says(
    settings: list[str], num_gpus: int, num_shards: int
) -> None:
    assert planned("base", *settings, machines=Machines(num_gpus=num_gpus)).setup.num_shards == num_shards


def test_what_does_not_fit_is_said_with_what_would() -> None:
    small = Machines(memory_bytes=24e9)
    found = planned("base", machines=small)
    assert not any(found.fits(phase) for phase in found.phases)
    assert plans.remarks(found) == [
        "Rows of 98,304 tokens do not fit; set micro_batch_tokens=24576; recomputing layers saves most."
    ]
    mended = planned("base", "micro_batch_tokens=24576", machines=small)
    assert plans.remarks(mended) == []
    again = planned("base", "distribution.activation_checkpointing=true", machines=small)
    assert plans.remarks(again) == ["Rows of 131,072 tokens would fit too: micro_batch_tokens=131072."]
    tiny = planned("base", machines=Machines(memory_bytes=4e9))
    assert "set" not in plans.remarks(tiny)[0]
    assert "no row that divides all batches would; recomputing layers saves most" in plans.remarks(tiny)[0]


def test_gpus_that_wait_are_named() -> None:
    assert "Of 308 rows a step, 4 of the GPUs get one less, and wait." in plans.remarks(planned("large"))


def test_tables_have_equal_keys_and_all_phases() -> None:
    found = planned("large")
    tables = plans.cost_tables(found)
    assert list(tables) == ["Batches", "Memory of a GPU (GB)", "Time"]
    for rows in tables.values():
        assert all(row.keys() == rows[0].keys() for row in rows)
    assert [row["phase"] for row in tables["Time"]] == ["pretrain", "restart", "extend", "decay"]
    kept, again = tables["Memory of a GPU (GB)"]
    assert (kept["phase"], kept["layers"], again["layers"]) == (
        "pretrain, restart, extend, decay",
        "kept",
        "recomputed",
    )
    parts = [float(kept[part]) for part in vars(found.phases[0].keeping.memory)]
    assert float(kept["peak"]) == pytest.approx(sum(parts), abs=0.1)
    assert [row["rows a GPU"] for row in tables["Batches"]][-1] == "39"


def test_the_figures_are_plain_values() -> None:
    tree = json.loads(json.dumps(planned("base").to_tree()))
    assert tree["parameters"] == 149_655_232
    assert tree["machines"]["num_gpus"] == 8
    first = tree["phases"][0]
    assert (first["phase"]["name"], first["steps"], first["fits"]) == ("pretrain", 374_901, True)
    assert first["keeping"]["memory"]["weights"] == 4 * 149_655_232


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80e9),
        ("80 gb", 80e9),
        ("79.6GiB", 79.6 * 2**30),
        ("24g", 24e9),
        ("512M", 512e6),
        ("1000", 1e3),
    ],
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert parse_size(text) == pytest.approx(size)


@pytest.mark.parametrize("text", ["", "GB", "80 bananas", "-3GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size; it must read as `80GB` or `80GiB`"):
        parse_size(text)


def test_gpus_are_known_by_name() -> None:
    assert peak_of("H100") == 989.4
    assert peak_of("A100") == 311.9
    with pytest.raises(ConfigError, match="unknown GPU `H10`"):
        peak_of("H10")


def test_the_machine_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name = "NVIDIA A100-SXM4-40GB"
        total_memory = 42 * 10**9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties())
    assert plans.machines_here() == Machines(num_gpus=4, memory_bytes=42e9, peak_tflops=311.9)
    assert plans.machines_here(peak_tflops=100).peak_tflops == 100
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plans.machines_here() == Machines()


def test_a_run_of_one_batch_size_needs_no_table_of_them(run_file: Path) -> None:
    run = read_run(run_file, ["phases.0.batch_warmup_start=null", "phases.0.batch_warmup_tokens=0"])
    assert list(plans.cost_tables(plans.plan(run, EIGHT))) == ["Memory of a GPU (GB)", "Time"]
