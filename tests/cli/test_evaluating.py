"""The verbs of `evaluate`, with a stand-in for fine-tuning. What they do: tests/evaluate/test_runner.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modernbert import files
from modernbert.evaluate import predictions
from tests.evaluate.layouts import write_ner, write_original, write_superglue

MEASURED = {"f1": 0.5, "precision": 0.5, "recall": 0.5}


@dataclass(frozen=True, kw_only=True)
class Run:
    folder: str
    task: str
    model: str
    seed: int
    data: dict[str, str | int | dict[str, str] | None]
    tuning: dict[str, float]
    selection: dict[str, str | int | None]
    head: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Tuned:
    model: Path
    figures: Mapping[str, Mapping[str, float]] = field(
        default_factory=lambda: {split: dict(MEASURED) for split in ("validation", "test")}
    )
    seconds: float = 1.0
    stopped_by: str | None = None


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Put a stand-in in the place of fine-tuning, which is right always; return what it was asked."""
    asked: list[Run] = []

    def finetune(run: Run) -> Tuned:
        asked.append(run)
        return Tuned(model=Path(run.folder) / "model")

    recipe = "modernbert.recipes.finetune"
    for name, content in {"session": {"finetune": finetune}, "settings": {"FinetuneRun": Run}}.items():
        module = ModuleType(f"{recipe}.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    if recipe not in sys.modules:
        monkeypatch.setitem(sys.modules, recipe, ModuleType(recipe))
    monkeypatch.setattr(
        predictions, "predict", lambda task, model, examples: [example["label"] for example in examples]
    )
    return asked


def test_tables_are_printed_and_files_written(
    model: Path, tmp_path: Path, command: Any, tuned: list[Run]
) -> None:
    data, output = write_original(tmp_path / "glue"), tmp_path / "out"
    options = ("-m", model, "--data", data, "-o", output, "--tasks", "rte,cola", "--seeds", 2)
    printed = command("evaluate", "glue", *options, "--limit", 2, "finetune.tuning.batch_size=8")
    assert [Path(run.folder).parent.name for run in tuned] == ["mnli", "cola", "cola", "rte", "rte"]
    assert tuned[0].tuning["batch_size"] == 8
    assert printed.startswith(f"GLUE of {model}: ")
    for wanted in (
        "\nScores, %",
        "ModernBERT-base",
        "mean of 2 of 8",
        "100.0 ±0.0",
        "\nRuns",
        "accuracy 100",
    ):
        assert wanted in printed
    assert "GLUE 5/5: rte/lr5e-05-wd1e-05-ep3-seed42, from mnli/lr5e-05" in printed.err
    assert {"results.json", "results.md", "data", "runs"} <= {path.name for path in output.iterdir()}
    command("evaluate", "glue", *options, "--limit", 2, "finetune.tuning.batch_size=8")
    assert len(tuned) == 5


def test_a_run_file_with_options_before_it(
    model: Path, tmp_path: Path, command: Any, tuned: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(__file__).parents[2] / "runs" / "glue" / "large.yaml"
    data = write_original(tmp_path / "glue")
    given = ("--run", file, "-m", model, "--data", data, "--tasks", "sst2", "--mnli", "none", "--json")
    tree = json.loads(command("evaluate", "glue", *given))
    assert (tree["model"], tree["size"]) == (str(model), "large")
    assert len(tuned) == 3
    assert (tuned[0].tuning["learning_rate"], tuned[0].tuning["epochs"]) == (1e-5, 3)
    assert files.read_json(tmp_path / "glue-large" / "results.json") == tree
    assert {"torch", "cpu", "commit"} <= {*tree["machine"]}


@pytest.mark.parametrize(("suite", "write"), [("superglue", write_superglue), ("ner", write_ner)])
def test_other_suites(
    suite: str, write: Any, model: Path, tmp_path: Path, command: Any, tuned: list[Run]
) -> None:
    data = write(tmp_path / "data")
    printed = command("evaluate", suite, "-m", model, "--data", data, "-o", tmp_path / "out")
    assert "this package's own" in printed
    assert len(tuned) == {"superglue": 5, "ner": 3}[suite]


def test_wrong_use(model: Path, tmp_path: Path, command: Any, tuned: list[Run]) -> None:
    refused = command("evaluate", "glue", "-m", model, code=1)
    assert "`data` is missing; it must be a string" in refused.error
    data = write_original(tmp_path / "glue")
    refused = command("evaluate", "glue", "-m", model, "--data", data, "--tasks", "copa", code=1)
    assert "unknown task `copa` of GLUE" in refused.error
    refused = command("evaluate", "glue", "-m", model, "--data", data, "--values", "huge", code=1)
    assert "`values` is 'huge'" in refused.error
    ner = tmp_path / "ner.yaml"
    ner.write_text("suite: ner\n")
    refused = command("evaluate", "glue", "--run", ner, "-m", model, "--data", data, code=1)
    assert f"`{ner}` is a run of ner, not of glue; use `modernbert evaluate ner`" in refused.error
    assert tuned == []
