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

from modernbert import files, load
from modernbert.evaluate import predictions
from tests.evaluate.layouts import write_ner, write_original, write_superglue
from tests.evaluate.vectors import write_candidates, write_lines, write_retrieval

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


# Measures of vectors. What they do: tests/evaluate/test_retrieval.py and its neighbours.


def test_retrieval(model: Path, models: Any, tmp_path: Path, command: Any) -> None:
    data, output = write_retrieval(tmp_path / "set"), tmp_path / "out"
    others = ("-m", models("Model"), "--output", output, "--device", "cpu")
    printed = command("evaluate", "retrieval", data, "-m", model, *others, "--k1", 0.9, "--b", 0.4)
    assert printed.startswith("Retrieval: set\n\nset, % (3 documents, 2 queries, 3 judgements)\n  system")
    assert f"\n  {model} + BM25 " in printed
    assert f"\n  {models('Model')} + BM25 " in printed
    assert "BM25: bm25s, k1 0.9, b 0.4, English stop words and stems" in printed
    assert f"set: {model}: 3/3 documents" in printed.err
    table = (output / "results.md").read_text()
    assert table.startswith("# Retrieval: set\n\n## set, %")
    tree = json.loads(command("evaluate", "retrieval", data, "-o", output, "--bm25", "plain", "--json"))
    assert [it["system"] for it in tree["sets"][0]["systems"]] == ["BM25"]
    assert files.read_json(output / "results.json") == tree


def test_retrieval_is_that_of_the_model(models: Any, tmp_path: Path, command: Any) -> None:
    """With one query and one relevant document, the reciprocal rank tells at which place that is."""
    texts = ["the words of abcd", "of words", "über naïve words", "words the of the", "abcd"]
    write_lines(
        tmp_path / "set" / "corpus.jsonl", [{"id": str(row), "text": it} for row, it in enumerate(texts)]
    )
    write_lines(tmp_path / "set" / "queries.jsonl", [{"id": "q", "text": "the words"}])
    write_lines(tmp_path / "set" / "qrels.jsonl", [{"qid": "q", "did": "2", "rel": 1}])
    encoder = load(models("Model"), device="cpu")
    scores = encoder.similarity(encoder.encode_query("the words"), encoder.encode_document(texts))[0]
    rank = 1 + int((scores > scores[2]).sum())
    given = ("-m", models("Model"), "-o", tmp_path / "out", "--bm25", "none", "--device", "cpu", "--json")
    tree = json.loads(command("evaluate", "retrieval", tmp_path / "set", *given))
    (system,) = tree["sets"][0]["systems"]
    assert system["figures"]["MRR@10"] == pytest.approx(1 / rank)


def test_rerank(model: Path, models: Any, tmp_path: Path, command: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    ranker = models("ForSequenceClassification", labels=("relevant",))
    data = write_candidates(tmp_path / "set")
    printed = command("evaluate", "rerank", data, "-m", model, "-m", ranker, "--device", "cpu")
    assert printed.startswith("Re-ranking: set\n\nset, % (2 queries, 5 documents)\n")
    for wanted in ("order given", "BM25", str(model), str(ranker)):
        assert f"\n  {wanted} " in printed
    rows = [
        (row["query"], row["docs"])
        for row in map(json.loads, (data / "test.jsonl").read_text().split("\n")[:2])
    ]
    right = ["wings of planes", "the weather"]
    encoder = load(ranker, device="cpu")
    ranked = [[it["text"] for it in encoder.rank(*row, return_documents=True)] for row in rows]
    tree = files.read_json(tmp_path / "rerank-results" / "results.json")
    expected = sum(1 / (1 + texts.index(text)) for texts, text in zip(ranked, right)) / 2
    assert tree["sets"][0]["systems"][-1]["figures"]["MRR@10"] == pytest.approx(expected)


def test_sts(model: Path, tmp_path: Path, command: Any) -> None:
    rows = [{"a": "the words", "b": text, "how": row} for row, text in enumerate(["of", "abcd", "words"])]
    path = write_lines(tmp_path / "sts" / "dev.jsonl", rows)
    given = ("-m", model, "--device", "cpu", "-o", tmp_path / "out")
    refused = command("evaluate", "sts", path, *given, code=1)
    assert "set `columns.text` to one of them" in refused.error
    printed = command("evaluate", "sts", path, *given, "--text", "a", "--text-pair", "b", "--label", "how")
    assert printed.startswith("Sentence similarity: sts/dev.jsonl\n\nsts/dev.jsonl, % (3 pairs)\n  system")
    assert (tmp_path / "out" / "results.md").exists()


def test_wrong_use_of_measures(tmp_path: Path, command: Any) -> None:
    data = write_retrieval(tmp_path / "set")
    refused = command("evaluate", "retrieval", data, "--bm25", "none", code=1)
    assert "there is no model, and BM25 is left out; there must be one of them" in refused.error
    refused = command("evaluate", "retrieval", data, "--bm25", "german", code=1)
    assert "`words` is 'german'; it must be `english` or `plain`" in refused.error
