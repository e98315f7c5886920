"""The benchmark of continued pretraining, at toy size."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import continued
from modernbert import config
from modernbert.recipes.pretrain import pretrain
from modernbert.recipes.settings import PretrainRun

PHASE = {"tokens": 1_500, "sequence_length": 64, "batch_tokens": 512, "learning_rate": 1e-3}
THETAS = {"global_rope_theta": 10_000, "local_rope_theta": 10_000}
SMALL = ["micro_batch_tokens=256", "validation.fraction=0.2", "validation.every_tokens=null", "device=cpu"]
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64, "vocab_size": 384}

pytestmark = pytest.mark.slow


def write_lines(path: Path, letters: str) -> Path:
    draw = random.Random(letters)
    words = ["".join(draw.choices(letters, k=draw.randint(1, 6))) for _ in range(60)]
    path.write_text("\n".join(" ".join(draw.choices(words, k=20)) for _ in range(150)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    tree: dict[str, Any] = {
        "folder": str(folder / "run"),
        "model": {"preset": "tiny", **SHAPE},
        "tokenizer": {"vocab_size": 384},
        "data": {"sources": [{"name": "old", "path": str(write_lines(folder / "old.txt", "abcdefgh"))}]},
        "phases": [{"name": "pretrain", **PHASE, **THETAS}],
    }
    tree = config.override(tree, SMALL)
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    pretrain(config.build(PretrainRun, tree))
    return folder / "run"


def measure(what: str, finished: Path, folder: Path, num_phases: int, letters: str) -> dict[str, Any]:
    rows = [f"phases.{i}.{key}={value}" for i in range(num_phases) for key, value in PHASE.items()]
    continued.main(
        [
            *(what, "--run", str(finished), "--output", str(folder)),
            *("--text", str(write_lines(folder / "new.txt", letters)), "--vocab-size", "320"),
            *("--results", str(folder / "results")),
            *("phases.0.warmup_tokens=256", *rows, *SMALL),
        ]
    )
    (result,) = (folder / "results").iterdir()
    return dict(json.loads(result.read_text(encoding="utf-8")))


def test_what_a_domain_gains_and_the_old_one_loses(finished: Path, tmp_path: Path) -> None:
    result = measure("domain", finished, tmp_path, 2, "stuvwxyz")
    old, new = result["rows"]
    assert (old["text"], new["text"]) == ("old", "new")
    assert new["change"] < 0
    assert old["change"] == old["loss_after"] - old["loss_before"]
    assert result["tokens"] == 3_000


def test_what_a_tokenizer_is_worth_to_a_language(finished: Path, tmp_path: Path) -> None:
    result = measure("language", finished, tmp_path, 3, "αβγδεζηθ")
    by_tokenizer = {
        name: [row for row in result["rows"] if row["tokenizer"] == name]
        for name in ("new", "kept", "from nothing")
    }
    assert all(rows for rows in by_tokenizer.values())
    assert by_tokenizer["new"][0]["tokens"] == by_tokenizer["kept"][0]["tokens"] == 0
    words = result["vocabulary"]
    assert words["tokens_per_character"] < words["tokens_per_character_before"]
    last = by_tokenizer["kept"][-1]
    assert last["nats_per_character"] == last["loss"] * words["tokens_per_character_before"]
