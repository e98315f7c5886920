"""What the tests of tuning share: a checkpoint to begin with, ways to start and stop, what comes out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from modernbert import config, files
from modernbert.data.tokenizer import Tokenizer
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.recipes.tuning import session
from modernbert.recipes.tuning.settings import TuningRun
from modernbert.train.supervised import tune
from tests.recipes.commands import SOURCE


def write_checkpoint(folder: Path, texts: Iterable[str]) -> Path:
    """Write a tiny model with random weights, and a tokenizer of these texts."""
    words = Tokenizer.train(texts, vocab_size=384)
    shape = EncoderConfig.preset(
        "tiny",
        vocab_size=words.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        max_position_embeddings=64,
        window=8,
        pad_token_id=words.pad_id,
        cls_token_id=words.cls_id,
        sep_token_id=words.sep_id,
    )
    model = ModernBertForMaskedLM(shape)
    initialise(model, seed=0)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def without_dropout(model: Path, folder: Path) -> Path:
    """Copy a model that then has none, as what is drawn depends on how the examples are spread."""
    shutil.copytree(model, folder)
    tree = files.read_json(folder / "config.json")
    files.write_json(folder / "config.json", {**tree, "attn_out_dropout": 0.0})
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read those of the model that came out."""
    return load_file(folder / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-5, msg=name)


def stopping_after(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Send this process a signal after a step."""

    def stopped(*arguments: Any, **options: Any) -> Iterator[Any]:
        for report in tune(*arguments, **options):
            if report.step.number == step:
                os.kill(os.getpid(), number)
            yield report

    monkeypatch.setattr(session, "tune", stopped)


def write_run(run: TuningRun, path: Path) -> Path:
    """Write a run file."""
    path.write_text(yaml.safe_dump(config.to_tree(run)), encoding="utf-8")
    return path


def launch_two(script: Path, *arguments: str | Path) -> str:
    """Let two processes run a script by torchrun; return what they print."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout
