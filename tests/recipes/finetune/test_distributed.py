"""Fine-tuning by two processes (gloo, CPU): the losses and weights of one, whoever goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modernbert import files
from modernbert.recipes.finetune import outcome
from modernbert.recipes.finetune.session import finetune
from modernbert.recipes.finetune.settings import FinetuneRun
from tests.recipes.tuned import check_near, launch_two, stopping_after, weights, without_dropout, write_run

from .conftest import Labelled

pytest.importorskip("sklearn", reason="needs the extra `finetune`")
pytest.importorskip("seqeval", reason="needs the extra `finetune`")
pytest.importorskip("peft", reason="needs the extra `finetune`")
pytestmark = pytest.mark.slow

LAUNCHED = Path(__file__).with_name("launched.py")

Plan = Callable[..., FinetuneRun]

RUNS: dict[str, tuple[str, list[str]]] = {
    "classify by ddp": ("classify", []),
    "classify by fsdp": ("classify", ["distribution.strategy=fsdp", "tuning.frozen_layers=1"]),
    "tag by ddp": ("tag", ["tuning.layer_decay=0.8"]),
    "tag by fsdp": ("tag", ["distribution.strategy=fsdp", "head.class_weights=balanced"]),
    "lora by ddp": ("classify", ["adapter.kind=lora", "adapter.rank=4"]),
    "stopped as two": ("classify", ["distribution.strategy=fsdp"]),
    "stopped as one": ("classify", ["distribution.strategy=fsdp"]),
    "two seeds": ("classify", ["trials.seeds=2"]),
}
STOP = 9


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line["loss"] for line in lines if line["event"] == "step"]


def check_equal(folder: Path, other: Path) -> None:
    assert losses(folder) == pytest.approx(losses(other), abs=1e-5)
    check_near(weights(other), weights(folder))


def stopped(run: FinetuneRun) -> None:
    """Carry a run on in this process up to a step."""
    with pytest.MonkeyPatch.context() as patch:
        stopping_after(STOP, patch)
        assert finetune(run).stopped_by == "SIGTERM"


@pytest.fixture
def model(labelled: Labelled, tmp_path: Path) -> Path:
    return without_dropout(labelled.model, tmp_path / "model")


def test_two_processes_give_what_one_gives(
    plan: Plan, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "write_report", print)  # whose drawings take time

    def planned(name: str, where: str) -> FinetuneRun:
        task, overrides = RUNS[name]
        # Learning at a rate at which what rounding changes stays small.
        slow = [f"model={model}", "tuning.learning_rate=1e-4", "micro_batch_tokens=48", "tuning.batch_size=7"]
        return plan(task, *slow, *overrides, f"folder={tmp_path / where / name}")

    wanted = []
    for name in RUNS:
        run = planned(name, "two")
        if name == "stopped as one":
            stopped(run)
        path = write_run(run, tmp_path / f"{name}.yaml")
        wanted.append(f"{path}@{STOP}" if name == "stopped as two" else str(path))
    printed = launch_two(LAUNCHED, *wanted)
    assert printed.count("validation: accuracy") == 5, "one process speaks"

    for name in RUNS:
        if name == "two seeds":
            continue
        one, two = planned(name, "one"), tmp_path / "two" / name
        figures = finetune(one).figures["validation"]
        if name == "stopped as two":
            assert len(losses(two)) == STOP
            finetune(planned(name, "two"))
        check_equal(two, Path(one.folder))
        found = files.read_json(two / "findings" / "validation.json")
        assert found["figures"] == pytest.approx(figures, abs=1e-4)
        abouts = [files.read_json(folder / "about.json") for folder in (two, Path(one.folder))]
        assert abouts[0]["num_trained"] == abouts[1]["num_trained"]
    assert files.read_json(tmp_path / "two" / "tag by ddp" / "facts.json")["processes"] == 2
    adapters = [
        load_file(tmp_path / where / "lora by ddp" / "adapter" / "adapter_model.safetensors")
        for where in ("one", "two")
    ]
    assert adapters[0].keys() == adapters[1].keys()

    seeds = tmp_path / "two" / "two seeds"
    assert files.read_json(seeds / "facts.json")["processes"] == 2
    best = files.read_json(seeds / "trials.json")["best_first"][0]["trial"]
    assert len(list((seeds / "trials").iterdir())) == 2
    assert all(
        torch.equal(tensor, weights(seeds / "trials" / best)[name]) for name, tensor in weights(seeds).items()
    )
