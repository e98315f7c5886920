"""A run that goes through everything in a second: two sources, three phases, eight steps."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from modernbert.data.tokenizer import Tokenizer

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


@pytest.fixture
def run_file(plan: dict[str, Any], tmp_path: Path) -> Path:
    """The run file, for a run in `tmp_path / "run"`."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"folder": str(tmp_path / "run"), **plan}), encoding="utf-8")
    return path
