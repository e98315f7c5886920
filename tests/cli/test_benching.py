"""The verb `bench`. What it measures: tests/evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL = (
    "--device",
    "cpu",
    "--tokens",
    64,
    "--repetitions",
    2,
    "--no-peers",
    "--sets",
    "short-fixed,long-variable",
)


def test_tables_are_printed_and_files_written(model: Path, tmp_path: Path, command: Any) -> None:
    output = tmp_path / "out"
    printed = command("bench", "-m", model, *SMALL, "--backends", "auto,portable", "--output", output)
    assert printed.startswith(f"{model}: ")
    for wanted in (
        "\nTokens a second",
        "\nMFU",
        "\nLatency",
        "modernbert portable",
        "largest batch: skipped",
    ):
        assert wanted in printed
    assert {file.name for file in output.iterdir()} == {"bench.json", "bench.svg", "bench.png"}
    assert "short-fixed" in printed.err  # how far it is


def test_plain_values(model: Path, command: Any) -> None:
    tree = json.loads(command("bench", "-m", model, *SMALL, "--no-latency", "--json"))
    assert [it["set"] for it in tree["throughput"]] == ["short-fixed", "long-variable"]
    assert tree["latency"] == []


def test_wrong_names(model: Path, command: Any) -> None:
    assert "unknown name `x` in `sets`" in command("bench", "-m", model, "--sets", "x", code=1).error
    refused = command("bench", "-m", model, *SMALL, "--backends", "varlen", code=1)
    assert "none of our backends serves on cpu" in refused.error
