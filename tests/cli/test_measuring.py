"""The verbs of `evaluate` that measure a model as it is. What they do: tests/evaluate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def text(tmp_path: Path, text_file: Path) -> Path:
    lines = text_file.read_text(encoding="utf-8").splitlines()
    records = [{"text": line, "source": f"part {number % 2}"} for number, line in enumerate(lines)]
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_masked(model: Path, text: Path, tmp_path: Path, command: Any) -> None:
    arguments = ["evaluate", "masked", text, "-m", model, "--device", "cpu", "--length", 32, "--bins", 2]
    printed = command(*arguments, "--join", "-o", tmp_path / "out")
    assert printed.startswith(f"masked loss of {model}: 15% of the tokens masked, seed 0")
    for wanted in ("\nBy source\n", "  part 1 ", "\nBy place in the window\n", "  15–29 ", "joined", "rise"):
        assert wanted in printed
    written = json.loads((tmp_path / "out" / "masked.json").read_text())
    again = json.loads(command(*arguments, "--join", "-o", tmp_path / "out", "--json"))
    assert again == written
    assert [it["source"] for it in written["sources"]] == ["part 0", "part 1"]
    by_file = json.loads(command(*arguments, "--source-key", "none", "-o", tmp_path, "--json"))
    assert [it["source"] for it in by_file["sources"]] == ["text.jsonl"]


def test_needle(model: Path, text: Path, tmp_path: Path, command: Any) -> None:
    arguments = ["evaluate", "needle", text, "-m", model, "--device", "cpu", "-o", tmp_path / "out"]
    refused = command(*arguments, "--length", 64, code=1).error
    assert "a length is 64; a needle and its question have" in refused


def test_cloze(model: Path, text: Path, tmp_path: Path, command: Any) -> None:
    facts = tmp_path / "facts.jsonl"
    lines = [
        {"relation": "words", "template": "{subject} words {answer}"},
        {"relation": "words", "subject": "naïve", "answer": "the"},
    ]
    facts.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["evaluate", "cloze", "-m", model, "--device", "cpu", "-o", tmp_path / "out"]
    printed = command(*arguments, "--facts", facts, "--corpus", text)
    assert printed.startswith(f"cloze questions to {model}: 1 on 1 facts\n\nAll facts\n")
    assert "Subjects that the text names at least 20 times" in printed
    assert "Tokyo is not one token of this tokenizer" in printed
    found = json.loads(command(*arguments, "--facts", facts, "--json"))
    assert found["card"] is None
    assert json.loads((tmp_path / "out" / "cloze.json").read_text()) == found
    assert "capital " in command(*arguments)  # the facts of the package


def test_another_head_is_refused(models: Callable[..., Path], text: Path, command: Any) -> None:
    folder = models("Model")
    refused = command("evaluate", "masked", text, "-m", folder, code=1).error
    assert refused.startswith(f"`{folder}` is a `ModernBertModel`; to be measured it must fill masks")
