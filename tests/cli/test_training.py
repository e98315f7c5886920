"""The verbs of training. What they train, and how they fail: tests/recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from modernbert import config, files
from modernbert.data.tokenizer import Tokenizer
from modernbert.recipes.settings import PretrainRun, read_run
from modernbert.train.state import Checkpoints

TEXT = "the [MASK] of words"


@pytest.fixture
def run_file(text_file: Path, tmp_path: Path) -> Path:
    phase = {"tokens": 512, "batch_tokens": 256, "learning_rate": "1e-3", "local_rope_theta": "1e4"}
    short = {**phase, "name": "short", "sequence_length": 32, "global_rope_theta": "1e4"}
    long = {**phase, "name": "long", "sequence_length": 64, "global_rope_theta": "160e3"}
    shape = {"preset": "tiny", "vocab_size": 384, "hidden_size": 32, "max_position_embeddings": 64}
    tree = {
        "folder": str(tmp_path / "run"),
        "device": "cpu",
        "micro_batch_tokens": 256,
        "model": shape,
        "tokenizer": {"vocab_size": 384},
        "data": {"sources": [{"name": "text", "path": str(text_file)}]},
        "phases": [short, {**long, "decay": "one_minus_sqrt"}],
        "validation": {"fraction": 0.1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("where", ["last", "first"])
def test_a_dry_run_prints_the_run_and_does_nothing(
    where: str, run_file: Path, tmp_path: Path, command: Any
) -> None:
    before = sorted(tmp_path.rglob("*"))
    changes = ["phases.1.learning_rate=5e-4", "seed=3"]
    order = ["--dry-run", run_file, *changes] if where == "first" else [run_file, *changes, "--dry-run"]
    printed = command("pretrain", *order)
    assert sorted(tmp_path.rglob("*")) == before
    run = config.build(PretrainRun, yaml.safe_load(printed))
    assert run == read_run(run_file, changes)
    assert (run.seed, run.phases[1].learning_rate, run.phases[1].decay_floor) == (3, 5e-4, 0.001)
    again = tmp_path / "again.yaml"
    again.write_text(printed, encoding="utf-8")
    assert command("pretrain", again, "--dry-run") == printed
    table = printed.err.splitlines()
    assert table[0].strip() == "Phases"
    assert any("short" in line and "512" in line and "32" in line for line in table)
    assert any("long" in line and "160k" in line for line in table)
    assert any("parameters, stable_adamw, 1 GPU of" in line for line in table)
    assert {"Memory of a GPU (GB)", "Time"} <= {line.strip() for line in table}


def test_a_dry_run_needs_neither_the_text_nor_the_device(run_file: Path, command: Any) -> None:
    elsewhere = ["data.sources.0.path=/none/text.txt", "device=cuda:7", "folder=/none"]
    assert "cuda:7" in command("pretrain", run_file, *elsewhere, "--dry-run")


def test_a_run_prints_how_it_ended(run_file: Path, tmp_path: Path, command: Any) -> None:
    printed = command("pretrain", run_file)
    first, second = printed.splitlines()
    assert first.startswith("held-out masked loss ")
    assert second == f"the model is in {tmp_path}/run/model"
    assert "Phases" in printed.err
    assert "train tokenizer: " in printed.err
    assert "pretrain: " in printed.err
    proposals = json.loads(command("fill-mask", TEXT, "-m", tmp_path / "run" / "model", "--json"))
    assert len(proposals) == 5


def test_text_becomes_token_shards_once(
    text_file: Path, model: Path, tokenizer: Tokenizer, tmp_path: Path, command: Any
) -> None:
    shards = tmp_path / "shards"
    arguments = ("tokenize", text_file, "--model", model, "--output", shards)
    printed = command(*arguments)
    tokens = sum(map(len, tokenizer.encode_batch(text_file.read_text("utf-8").splitlines(), special=False)))
    assert printed == f"{shards}: 100 documents, {tokens} tokens\n"
    assert "tokenize shards: " in printed.err
    assert command(*arguments) == printed  # all is there
    other = command(*arguments[:-1], shards, "--text-key", "body", code=1)
    assert "body" in other.err


def test_what_a_document_is_may_be_said(text_file: Path, model: Path, tmp_path: Path, command: Any) -> None:
    verbs = {"shards": ["tokenize", text_file, "-m", model], "bpe": ["tokenizer", "train", text_file]}
    for name, verb in verbs.items():
        arguments = [*verb, "-o", tmp_path / name, "--text-unit"]
        assert "`text_unit` is 'lines'" in command(*arguments, "lines", code=1).error
        refused = command(*arguments, "file", "--max-document-bytes", 100, code=1)
        assert "it must be at most 100; split it" in refused.error
    printed = command(*verbs["shards"], "-o", tmp_path / "one", "--text-unit", "file")
    assert ": 1 documents, " in printed


def test_checkpoints_are_averaged(
    tokenizer: Tokenizer, write_model: Callable[..., Path], tmp_path: Path, command: Any
) -> None:
    folders = [write_model(tmp_path / str(seed), tokenizer, seed=seed) for seed in (1, 2, 3)]
    output = tmp_path / "mean"
    assert command("average", *folders, "-o", output) == f"{output}\n"
    found = load_file(output / "model.safetensors")
    tensors = [load_file(folder / "model.safetensors") for folder in folders]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, torch.stack([each[name] for each in tensors]).mean(0))
    assert len(json.loads(command("fill-mask", TEXT, "-m", output, "--json"))) == 5
    transformers.AutoModelForMaskedLM.from_pretrained(output)
    assert "exists already; it must be new" in command("average", *folders, "-o", output, code=1).error


def test_checkpoints_are_merged_in_other_ways(
    tokenizer: Tokenizer, write_model: Callable[..., Path], tmp_path: Path, command: Any
) -> None:
    base, *folders = (write_model(tmp_path / str(seed), tokenizer, seed=seed) for seed in (1, 2, 3))
    command("average", *folders, "-o", tmp_path / "smooth", "--how", "exponential", "--decay", 0.25)
    found, one, two = (
        load_file(each / "model.safetensors")["decoder.bias"] for each in (tmp_path / "smooth", *folders)
    )
    torch.testing.assert_close(found, (one + 4 * two) / 5)
    merged = ("average", *folders, "-o", tmp_path / "merged", "--how")
    command(*merged, "ties", "--base", base, "--density", 0.5)
    assert len(json.loads(command("fill-mask", TEXT, "-m", tmp_path / "merged", "--json"))) == 5
    assert "`how` is 'tie'; did you mean `ties`?" in command(*merged, "tie", code=1).error
    assert "`base` is None and `how` is 'ties'" in command(*merged, "ties", code=1).error


def test_averages_that_cannot_be(model: Path, tmp_path: Path, command: Any) -> None:
    missing = command("average", model, tmp_path / "none", "-o", tmp_path / "out", code=1).error
    assert f"`{tmp_path}/none` holds neither" in missing
    assert not (tmp_path / "out").exists()


def test_a_runs_own_checkpoints_are_averaged(run_file: Path, tmp_path: Path, command: Any) -> None:
    command("pretrain", run_file, "checkpoint.every_tokens=128", "checkpoint.keep_last=9")
    other, *_, first, last = Checkpoints(tmp_path / "run" / "checkpoints", lambda *_: None).folders()
    refused = command("average", other, last, "--output", tmp_path / "mean", code=1).error
    assert "`global_rope_theta`: 10000.0 → 160000.0" in refused
    command("average", first, last, "--output", tmp_path / "mean")
    theta = files.read_json(tmp_path / "mean" / "config.json")["global_rope_theta"]
    assert theta == 160_000
    assert len(json.loads(command("fill-mask", TEXT, "-m", tmp_path / "mean", "--json"))) == 5


def test_a_run_is_drawn(run_file: Path, tmp_path: Path, command: Any) -> None:
    command("pretrain", run_file)
    folder = tmp_path / "run"
    assert command("report", folder) == f"{folder}/report.html\n{folder}/report.png\n"
    both = tmp_path / "both"
    assert command("report", folder, folder, "-o", both) == f"{both}.html\n{both}.png\n"
    assert "could not be read" in command("report", tmp_path, code=1).error
