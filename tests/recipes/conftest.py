"""A run that goes through everything in a second: two sources, three phases, eight steps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modernbert.data.tokenizer import Tokenizer
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise

NUM_DOCUMENTS = 150


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `a.txt` and `b.txt`: lines of made-up words."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 6))) for _ in range(60)]
    for name in ("a", "b"):
        lines = [" ".join(draw.choices(words, k=draw.randint(4, 60))) for _ in range(NUM_DOCUMENTS)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer with 384 entries."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [(corpus / f"{name}.txt").read_text(encoding="utf-8") for name in ("a", "b")]
    Tokenizer.train(texts, vocab_size=384).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plan(corpus: Path, tokenizer: Path) -> dict[str, Any]:
    """The run file as plain values, but for `folder`. Not to be changed: give overrides."""
    common = {"local_rope_theta": 10_000, "learning_rate": 3e-3, "mask_rate": 0.3}
    short = {
        "name": "short",
        "tokens": 1_800,
        "sequence_length": 32,
        "batch_tokens": 768,
        "batch_warmup_start": 256,
        "batch_warmup_tokens": 768,
        "warmup_tokens": 512,
        "global_rope_theta": 10_000,
    }
    long = {"tokens": 1_000, "sequence_length": 64, "batch_tokens": 512, "global_rope_theta": 40_000}
    return {
        "device": "cpu",
        "micro_batch_tokens": 256,
        "model": {
            "preset": "tiny",
            "vocab_size": 384,
            "hidden_size": 32,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "window": 8,
        },
        "tokenizer": {"path": str(tokenizer)},
        "data": {
            "sources": [
                {"name": "a", "path": str(corpus / "a.txt")},
                {"name": "b", "path": str(corpus / "b.txt"), "weight": 2},
            ]
        },
        "phases": [
            {**common, **short},
            {**common, **long, "name": "long"},
            {**common, **long, "name": "decay", "decay": "one_minus_sqrt", "mixture": {"a": 3, "b": 1}},
        ],
        "validation": {"fraction": 0.1, "max_tokens": 512},
    }


@pytest.fixture(scope="session")
def teacher(plan: dict[str, Any], tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another width and depth than the run's, with the run's tokenizer."""
    folder = tmp_path_factory.mktemp("teacher")
    shape = {**plan["model"], "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
    model = ModernBertForMaskedLM(EncoderConfig.from_tree(shape, "model"))
    initialise(model, seed=9)
    model.save_pretrained(folder)
    Tokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def run_file(plan: dict[str, Any], tmp_path: Path) -> Path:
    """The run file, for a run in `tmp_path / "run"`."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"folder": str(tmp_path / "run"), **plan}), encoding="utf-8")
    return path


@pytest.fixture
def write_course(tmp_path: Path) -> Callable[..., Path]:
    """Write what a run leaves behind of its course: 20 steps of `long`, 10 of `decay`, 100 tokens each."""

    def write(name: str = "run", *, loss: float = 5.0, seed: int = 1, **facts: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        records: list[dict[str, Any]] = []
        for step in range(1, 31):
            phase = "long" if step <= 20 else "decay"
            where = {"step": step, "tokens": 100 * step, "phase": phase, "time": 1e9 + step}
            figures = {"steps": 1, "loss": loss - 0.1 * step, "accuracy": 0.01 * step, "gradient_norm": 1.0}
            figures |= {"learning_rate": 1e-3 / step, "batch_tokens": 100, "masked_tokens": 30}
            figures |= {"utilisation": 0.9875, "seconds": 2.0, "wait_seconds": 0.1, "tokens_per_second": 50.0}
            figures |= {"mfu": None, "memory_bytes": 3e9 if phase == "long" else 4e9, "seconds_left": 1.0}
            records.append({"event": "step", **where, **figures})
            if step % 10 == 0:
                held_out = {"loss": loss - 0.1 * step - 0.5, "accuracy": 0.02 * step, "num_masked": 50}
                records.append(
                    {"event": "validation", **where, **held_out, "commonest_accuracy": 0.04, **facts}
                )
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
        phases = [{"name": "long", "tokens": 2_000}, {"name": "decay", "tokens": 2_000}]
        settings = {"folder": str(folder), "seed": seed, "phases": phases}
        (folder / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        machine = {"cpu": "Abacus 9000", "torch": "2.13.0", "commit": "0123456789ab"}
        (folder / "facts.json").write_text(json.dumps(machine), encoding="utf-8")
        return folder

    return write
