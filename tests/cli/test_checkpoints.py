"""The verbs that look at a checkpoint, prove it, or write it in another form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modernbert import load
from modernbert.infer.verify import BOUNDS, Bound


def test_inspect(model: Path, tmp_path: Path, command: Any) -> None:
    printed = command("inspect", model)
    assert "ModernBertForMaskedLM" in printed
    assert "Readers" in printed
    report = json.loads(command("inspect", model, "--json"))
    assert report["facts"]["hidden_size"] == 32
    assert report["problems"] == []
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    assert json.loads(command("inspect", tmp_path, "--json", code=1))["problems"]
    assert f"`{tmp_path}/none` is no folder" in command("inspect", tmp_path / "none", code=1).error


def test_verify(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["verify", "-m", "tiny", "--length", 2, "--length", 20, "--device", "cpu"]
    printed = command(*arguments)
    assert printed.startswith("passed: all ")
    assert "portable" in printed.err
    outcome = json.loads(command(*arguments, "--json"))
    assert outcome["passed"]
    assert {each["length"] for each in outcome["measurements"]} == {2, 20}
    refused = command("verify", "-m", "tiny", "--length", 8193, code=1).error
    assert "a length is 8193; it must be from 1 to 8,192" in refused
    monkeypatch.setitem(BOUNDS, "fp32", Bound(deviation=1e-12, cosine=0.99, why="to fail"))
    failed = command(*arguments, code=1)
    assert failed.startswith("failed: ")
    assert "!" in failed.err


def test_export(models: Callable[..., Path], tmp_path: Path, command: Any) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    texts = ["the words", "of über"]
    printed = command("export", tmp_path / "out", *texts, "-m", models("Model"), "--pooling", "cls", "--int8")
    assert printed.startswith(f"{tmp_path}/out/onnx/model_int8.onnx\n")
    assert "deviation from torch" in printed
    assert "int8: cosine to float32  mean 0.9" in printed
    found = command("embed", *texts, "-m", tmp_path / "out", "--backend", "onnx", "--dtype", "int8", "--json")
    expected = load(models("Model"), device="cpu").encode(texts, pooling="cls")
    np.testing.assert_allclose(json.loads(found), expected, atol=0.5)


def test_exports_that_cannot_be(models: Callable[..., Path], tmp_path: Path, command: Any) -> None:
    def refused(*options: object) -> str:
        return str(command("export", tmp_path / "out", "-m", models("Model"), *options, code=1).error)

    assert "unknown pooling `men`" in refused("--pooling", "men")
    assert "`opset` is 9" in refused("--opset", 9)
    assert not (tmp_path / "out").exists()


def test_perplexity(model: Path, text_file: Path, command: Any) -> None:
    arguments = ["perplexity", text_file, "-m", model, "--length", 16, "--length", 8, "--device", "cpu"]
    printed = command(*arguments).splitlines()
    assert [line.split(",")[0] for line in printed] == ["length 8", "length 16"]
    assert all("pseudo-perplexity " in line and "masked at once 1 in 8" in line for line in printed)
    short, long = json.loads(command(*arguments, "--stride", 0, "--json"))
    assert (short["stride"], long["length"]) == (None, 16)
    assert short["num_tokens"] == long["num_tokens"]
    assert "`stride` is 1; it must be at least 2" in command(*arguments, "--stride", 1, code=1).error
