"""A tiny checkpoint, pairs that are learned fast, and a corpus that gives pairs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modernbert import config
from modernbert.recipes.retriever.settings import RetrieverRun
from tests.recipes.tuned import write_checkpoint

ANIMALS = ("cat", "dog", "cow", "hen", "fox", "owl", "bee", "ant", "elk", "yak", "rat", "eel")
VERBS = ("sees", "likes", "meets", "hears")


@dataclass(frozen=True)
class Made:
    """What there is to train with."""

    model: Path
    pairs: Path
    corpus: Path


def made_pairs(count: int = 96) -> list[dict[str, str]]:
    draw = random.Random(0)
    return [
        {
            "query": f"who {draw.choice(VERBS)} the {one} and the {other}",
            "positive": f"the {other} {draw.choice(VERBS)} the {one} {number}",
        }
        for number in range(count)
        for one, other in [draw.sample(ANIMALS, 2)]
    ]


def made_documents(count: int = 60) -> list[dict[str, str]]:
    draw = random.Random(1)
    documents = []
    for number in range(count):
        one, other = draw.sample(ANIMALS, 2)
        said = " ".join(f"The {one} {draw.choice(VERBS)} the {other} {place}." for place in range(8))
        documents.append({"text": f"The {one} and the {other} {number}\n\n{said}"})
    return documents


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("retriever")
    for name, rows in (("pairs", made_pairs()), ("corpus", made_documents())):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    model = write_checkpoint(folder / "model", (text for row in made_pairs() for text in row.values()))
    return Made(model, folder / "pairs.jsonl", folder / "corpus.jsonl")


@pytest.fixture
def plan(made: Made, tmp_path: Path) -> Callable[..., RetrieverRun]:
    """Make the settings of a run, with overrides."""

    def planned(*overrides: str) -> RetrieverRun:
        tree: dict[str, Any] = {
            "folder": str(tmp_path / "run"),
            "model": str(made.model),
            "device": "cpu",
            "data": {
                "pairs": [str(made.pairs)],
                "held_out": 0.2,
                "query_length": 32,
                "document_length": 64,
                "drawn": {"passage_characters": 60},
            },
            "prompts": {"query": "query: "},
            "tuning": {"learning_rate": 3e-3, "epochs": 2, "batch_size": 16},
            "micro_batch_tokens": 128,
        }
        return config.build(RetrieverRun, config.override(tree, overrides))

    return planned
