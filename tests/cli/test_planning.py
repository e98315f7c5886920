"""The verb `plan`. What it says: tests/recipes/test_plan.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RUNS = Path(__file__).parents[2] / "runs"


def test_a_plan_is_printed(command: Any) -> None:
    printed = command("plan", RUNS / "base.yaml", "--gpus", 8, "--memory", "80GB")
    assert printed.startswith(
        "150M parameters, stable_adamw, 8 GPUs (ddp) of 80GB, 30% of 989.4 TFLOP/s each"
    )
    for title in ("Phases", "Batches", "Memory of a GPU (GB)", "Time"):
        assert f"\n\n{title}\n" in printed
    assert "52,982" in printed
    assert re.search(r"pretrain +3.33G +1,572,864 +4,239 +16 +2\n", printed)


def test_a_plan_for_machines(command: Any) -> None:
    arguments = ("--gpu", "A100", "--memory", "40GB", "--mfu", 0.5, "micro_batch_tokens=49152", "--json")
    tree = json.loads(command("plan", RUNS / "base.yaml", *arguments))
    assert tree["machines"]["peak_tflops"] == 311.9
    assert (tree["machines"]["num_gpus"], tree["micro_batch_tokens"]) == (1, 49_152)
    assert tree["largest_micro_batch"] == 49_152
    measured = json.loads(command("plan", RUNS / "base.yaml", "--tokens-per-second", 1e6, "--json"))
    assert measured["phases"][1]["hours"] == 250e9 / 1e6 / 3600
    own = json.loads(command("plan", RUNS / "base.yaml", "log.peak_tflops=100", "--json"))
    assert own["machines"]["peak_tflops"] == 100


def test_what_cannot_be_planned(command: Any) -> None:
    assert (
        "`8 hundred` is not a size"
        in command("plan", RUNS / "base.yaml", "--memory", "8 hundred", code=1).error
    )
    assert "unknown GPU `C64`" in command("plan", RUNS / "base.yaml", "--gpu", "C64", code=1).error
    assert "`num_gpus` is 0" in command("plan", RUNS / "base.yaml", "--gpus", 0, code=1).error
    assert (
        "did you mean `phases.0.mask_rate`"
        in command("plan", RUNS / "base.yaml", "phases.0.maskrate=0.1", code=1).error
    )
