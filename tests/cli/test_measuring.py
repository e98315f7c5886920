"""The verbs of `evaluate` that measure a model as it is. What they do: tests/evaluate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modernbert import files, load
from tests.evaluate.vectors import write_candidates, write_lines, write_retrieval


@pytest.fixture
def text(tmp_path: Path, text_file: Path) -> Path:
    lines = text_file.read_text(encoding="utf-8").splitlines()
    records = [{"text": line, "source": f"part {number % 2}"} for number, line in enumerate(lines)]
    return write_lines(tmp_path / "text.jsonl", records)


def test_masked(model: Path, text: Path, tmp_path: Path, command: Any) -> None:
    arguments = ["evaluate", "masked", text, "-m", model, "--device", "cpu", "--length", 32, "--bins", 2]
    printed = command(*arguments, "--join", "-o", tmp_path / "out")
    assert printed.startswith(f"masked loss of {model}: 15% of the tokens masked, seed 0")
    for wanted in ("\nBy source\n", "  part 1 ", "\nBy place in the window\n", "  15–29 ", "joined", "rise"):
        assert wanted in printed
    assert (tmp_path / "out" / "results.md").read_text().startswith(f"# masked loss of {model}: 15% of ")
    tree = json.loads(command(*arguments, "--join", "-o", tmp_path / "out", "--json"))
    assert files.read_json(tmp_path / "out" / "results.json") == tree
    assert tree["machine"]["device"] == "cpu"
    assert [it["source"] for it in tree["sources"]] == ["part 0", "part 1"]
    by_file = json.loads(command(*arguments, "--source-key", "none", "-o", tmp_path, "--json"))
    assert [it["source"] for it in by_file["sources"]] == ["text.jsonl"]


def test_needle(model: Path, text: Path, tmp_path: Path, command: Any) -> None:
    arguments = ["evaluate", "needle", text, "-m", model, "--device", "cpu", "-o", tmp_path / "out"]
    refused = command(*arguments, "--length", 64, code=1).error
    assert "a length is 64; a needle and its question have" in refused


def test_cloze(model: Path, text: Path, tmp_path: Path, command: Any) -> None:
    lines = [
        {"relation": "words", "template": "{subject} words {answer}"},
        {"relation": "words", "subject": "naïve", "answer": "the"},
    ]
    facts = write_lines(tmp_path / "facts.jsonl", lines)
    arguments = ["evaluate", "cloze", "-m", model, "--device", "cpu", "-o", tmp_path / "out"]
    printed = command(*arguments, "--facts", facts, "--corpus", text)
    assert printed.startswith(f"cloze questions to {model}: 1 on 1 facts\n\nAll facts\n")
    assert "Subjects that the text names at least 20 times" in printed
    assert "Tokyo is not one token of this tokenizer" in printed
    found = json.loads(command(*arguments, "--facts", facts, "--json"))
    assert found["card"] is None
    assert files.read_json(tmp_path / "out" / "results.json") == found
    assert "capital " in command(*arguments)  # the facts of the package


def test_another_head_is_refused(models: Callable[..., Path], text: Path, command: Any) -> None:
    folder = models("Model")
    refused = command("evaluate", "masked", text, "-m", folder, code=1).error
    assert refused.startswith(f"`{folder}` is a `ModernBertModel`; to be measured it must fill masks")


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


def test_rerank_what_a_url_names(tmp_path: Path, command: Any) -> None:
    store = pytest.importorskip("fsspec").filesystem("memory")
    store.pipe("/rerank/test.jsonl", (write_candidates(tmp_path / "set") / "test.jsonl").read_bytes())
    printed = command("evaluate", "rerank", "memory://rerank/test.jsonl", "-o", tmp_path / "out")
    store.rm("/rerank", recursive=True)
    assert printed.startswith("Re-ranking: memory://rerank/test.jsonl\n")


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
