"""A run as it lies on the disk, made up; and a checkpoint and files, one a task, that are learned fast."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modernbert import config
from modernbert.recipes.finetune import drawings, evaluated
from modernbert.recipes.finetune.about import About, DataPart, write_about
from modernbert.recipes.finetune.evaluated import Sampling, Shown
from modernbert.recipes.finetune.findings import Findings, write_findings
from modernbert.recipes.finetune.intervals import spread
from modernbert.recipes.finetune.settings import FinetuneRun
from tests.recipes.tuned import write_checkpoint

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


NAMES = ("Ada", "Grace", "Alan", "Edsger")
PLACES = ("London", "Paris", "Rome", "Oslo")
VERBS = ("lives in", "likes", "left", "never saw")
FILLERS = ("today", "again", "for a while", "they say", "with friends")


@dataclass(frozen=True)
class Labelled:
    """Files of each task, and the checkpoint to begin with."""

    folder: Path
    model: Path

    def file(self, task: str) -> Path:
        return next(self.folder.glob(f"{task}.*"))


def sentence(draw: random.Random) -> tuple[str, str, str]:
    """A sentence, the name in it, and the place in it."""
    name, place = draw.choice(NAMES), draw.choice(PLACES)
    parts = [name, draw.choice(VERBS), place, *draw.sample(FILLERS, draw.randint(0, 3)), "."]
    return " ".join(parts), name, place


def rows(task: str) -> list[dict[str, Any]]:
    draw = random.Random(task)
    made = []
    for number in range(72):
        text, name, place = sentence(draw)
        other, _, other_place = sentence(draw)
        made.append(
            {
                "classify": {"text": text, "label": place},
                "pairs": {"premise": text, "hypothesis": other, "label": other_place},
                "sets": {"text": text, "labels": [place, name]},
                "values": {"text": text, "score": PLACES.index(place) + 0.5},
                "prompt": {"text": text, "label": place},
                "tag": {
                    "tokens": text.split(),
                    "tags": [
                        "B-PER" if word == name else "B-LOC" if word == place else "O"
                        for word in text.split()
                    ],
                },
                "answer": {
                    "id": str(number),
                    "question": "Where?",
                    "context": text,
                    "answers": {"text": [place], "answer_start": [text.index(place)]},
                },
                "choose": {
                    "question": text,
                    "choices": list(PLACES),
                    "label": PLACES.index(place),
                },
            }[task]
        )
    return made


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    folder = tmp_path_factory.mktemp("labelled")
    for task in ("classify", "pairs", "sets", "values", "prompt", "tag", "answer", "choose"):
        lines = [json.dumps(row) + "\n" for row in rows(task)]
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
    texts = [row["text"] for row in rows("classify")] * 4 + ["Where? Answer: It is [MASK]."] * 4
    return Labelled(folder, write_checkpoint(folder / "model", texts))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures out of reports, whose drawing takes longer than such a run."""
    monkeypatch.setattr(drawings, "as_svg", lambda figure: "<svg/>")


@pytest.fixture
def plan(labelled: Labelled, tmp_path: Path) -> Callable[..., FinetuneRun]:
    """Make the settings of a run of a task, with overrides."""

    def made(task: str, *overrides: str, data: str | None = None) -> FinetuneRun:
        tree: dict[str, Any] = {
            "folder": str(tmp_path / "run"),
            "task": task,
            "model": str(labelled.model),
            "device": "cpu",
            "data": {"train": str(labelled.file(data or task)), "held_out": 0.25},
            "tuning": {"learning_rate": 3e-3, "epochs": 2, "batch_size": 8},
        }
        return config.build(FinetuneRun, config.override(tree, overrides))

    return made


@pytest.fixture
def records(tmp_path: Path) -> Callable[[Sequence[str]], list[Any]]:
    """Read a run's `metrics.jsonl`."""

    def read(events: Sequence[str] = ("step", "evaluation")) -> list[Any]:
        lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [it for it in map(json.loads, lines) if it["event"] in events]

    return read
