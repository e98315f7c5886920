"""A run of fine-tuning as it lies on the disk, made up: nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modernbert.recipes.finetune import evaluated
from modernbert.recipes.finetune.about import About, DataPart, write_about
from modernbert.recipes.finetune.evaluated import Sampling, Shown
from modernbert.recipes.finetune.findings import Findings, write_findings
from modernbert.recipes.finetune.intervals import spread

WriteRun = Callable[..., Path]


def found_classes() -> Findings:
    draw = np.random.default_rng(3)
    gold, logits = draw.integers(3, size=60), draw.normal(size=(60, 3))
    logits[np.arange(60), gold] += 1.5
    labels = [f"label {index}" for index in range(3)]
    shown = [Shown(text=f"a text {index}", place=f"dev.csv, line {index + 2}") for index in range(60)]
    return evaluated.of_classes(
        "validation", gold, logits, labels, shown, temperature=1.25, sampling=Sampling(resamples=20)
    )


@pytest.fixture
def about() -> About:
    return About(
        task="classify",
        model="sorter",
        base_model="someone/encoder",
        num_parameters=17_000_000,
        num_trained=17_000_000,
        labels=("label 0", "label 1", "label 2"),
        data=(
            DataPart(split="train", source="train.csv", num_examples=600, num_tokens=9000),
            DataPart(split="validation", source="dev.csv", num_examples=60, num_tokens=900),
        ),
        remarks=("2 texts are empty, the first in train.csv, line 7",),
        best_step=4,
        num_steps=6,
        seconds=61,
        language="en",
    )


def write_course(folder: Path, steps: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            record = {
                "event": "step",
                "step": step,
                "epoch": step / 3,
                "loss": 2 / step,
                "learning_rate": 1e-4,
            }
            record |= {"examples_per_second": 90.0, "tokens_per_second": 900.0}
            file.write(json.dumps(record) + "\n")
            if step % 2 == 0:
                figures = {"accuracy": 1 - 1 / step, "log_loss": 2 / step}
                record = {"event": "evaluation", "step": step, "epoch": step / 3, "split": "validation"}
                file.write(json.dumps({**record, "figures": figures}) + "\n")


@pytest.fixture
def write_run(tmp_path: Path, about: About) -> WriteRun:
    """Write a run's folder; `seeds` of which it has that many, `changes` of its `About`."""

    def write(*findings: Findings, seeds: int = 1, name: str = "run", **changes: object) -> Path:
        folder = tmp_path / name
        runs = tuple("." if seeds == 1 else f"seed-{seed}" for seed in range(seeds))
        for run in runs:
            write_course(folder / run)
        for found in findings or (found_classes(),):
            spreads = {
                name: both
                for name, value in found.figures.items()
                if (both := spread([value + seed / 100 for seed in range(seeds)])) is not None
            }
            write_findings(folder, replace(found, spread=spreads))
        write_about(folder, replace(about, runs=runs, seeds=tuple(range(seeds)), **changes))  # type: ignore[arg-type]
        (folder / "facts.json").write_text('{"cpu": "Abacus 9000", "torch": "2.13"}')
        (folder / "run.yaml").write_text("task: classify\nlearning_rate: 0.00005\n")
        return folder

    return write
