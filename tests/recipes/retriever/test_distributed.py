"""A retriever trained by two processes (gloo, CPU): all share their negatives, and it is the run of one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from modernbert import config, files
from modernbert.recipes.retriever.session import train_retriever
from modernbert.recipes.retriever.settings import RetrieverRun

from .conftest import Made, made_pairs

pytestmark = pytest.mark.slow

LAUNCHED = Path(__file__).with_name("launched.py")
SOURCE = LAUNCHED.parents[3] / "src"

RUNS = {"ddp": ["symmetric=true"], "fsdp": ["distribution.strategy=fsdp"]}


def figures(folder: Path) -> list[float]:
    """The losses and the norms of the gradients, which learning has not yet changed at the first step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line[name] for line in lines if line["event"] == "step" for name in ("loss", "gradient_norm")]


def test_two_processes_give_what_one_gives(
    plan: Callable[..., RetrieverRun], made: Made, tmp_path: Path
) -> None:
    # Without dropout, as what is drawn depends on how the texts are spread.
    model = shutil.copytree(made.model, tmp_path / "model")
    tree = files.read_json(model / "config.json")
    files.write_json(model / "config.json", {**tree, "attn_out_dropout": 0.0})
    rows = [
        {**row, "negatives": [made_pairs()[index - 7]["positive"]] * (index % 2)}
        for index, row in enumerate(made_pairs())
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def planned(name: str, where: str) -> RetrieverRun:
        slow = [
            f"model={model}",
            f"data.pairs=[{pairs}]",
            "tuning.learning_rate=1e-4",
            "tuning.batch_size=15",
        ]
        return plan(*slow, *RUNS[name], f"folder={tmp_path / where / name}")

    paths = []
    for name in RUNS:
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(config.to_tree(planned(name, "two"))), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(LAUNCHED), *map(str, paths)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation: loss") == len(RUNS), "one process speaks"
    for name in RUNS:
        one = train_retriever(planned(name, "one"))
        assert one.model is not None
        found, expected = figures(tmp_path / "two" / name), figures(tmp_path / "one" / name)
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
        judged = load_file(one.model / "model.safetensors")
        for key, tensor in load_file(tmp_path / "two" / name / "model" / "model.safetensors").items():
            torch.testing.assert_close(tensor, judged[key], rtol=0, atol=1e-5, msg=key)
