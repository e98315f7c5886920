"""A retriever from pairs to a folder that others load: it learns, goes on exactly, and says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import modernbert
from modernbert import cli, config, files
from modernbert.errors import ConfigError
from modernbert.recipes.retriever.data import Pairs
from modernbert.recipes.retriever.session import train_retriever
from modernbert.recipes.retriever.settings import RetrieverRun, read_run
from modernbert.train.contrastive import InBatchNegatives, related_pairs
from tests.recipes.tuned import same, stopping_after, weights, write_run

from .conftest import Made, made_pairs

ROOT = Path(__file__).parents[3]

Plan = Callable[..., RetrieverRun]


def records(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == event]


def test_it_learns_and_what_comes_out_finds(plan: Plan, made: Made, tmp_path: Path) -> None:
    run = plan("tuning.epochs=8")
    result = train_retriever(run)
    looks = [it["figures"] for it in records(tmp_path / "run", "evaluation")]
    assert set(looks[0]) == {"loss", "accuracy", "mrr"}
    assert result.metric == "mrr"
    assert result.score == max(it["mrr"] for it in looks) == result.figures["validation"]["mrr"]
    assert looks[-1]["loss"] < looks[0]["loss"]
    losses = [it["loss"] for it in records(tmp_path / "run", "step")]
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    found = files.read_json(tmp_path / "run" / "result.json")
    assert found["figures"] == {"validation": result.figures["validation"]}

    encoder = modernbert.load(result.model, device="cpu")
    assert encoder.embedding_config.prompts == {"query": "query: ", "document": ""}
    rows = made_pairs()[:32]
    queries = encoder.encode_query([row["query"] for row in rows])
    documents = encoder.encode_document([row["positive"] for row in rows])
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    assert np.mean(np.argmax(queries @ documents.T, axis=1) == np.arange(32)) > 0.6


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_others_get_the_same_vectors(pooling: str, plan: Plan) -> None:
    theirs = pytest.importorskip("sentence_transformers")
    run = plan("tuning.epochs=1", f"pooling={pooling}")
    result = train_retriever(run)
    texts = [row["query"] for row in made_pairs()[:9]] + ["the cat"]
    loaded = theirs.SentenceTransformer(str(result.model), device="cpu")
    ours = modernbert.load(result.model, device="cpu")
    for method in ("encode_query", "encode_document"):
        found, expected = getattr(ours, method)(texts), getattr(loaded, method)(texts)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    checkpoint = sorted(Path(run.folder, "checkpoints").glob("step-*"))[-1]
    assert modernbert.load(checkpoint, device="cpu").embedding_config.pooling == (pooling,)


def test_what_is_validated_is_what_the_model_says(plan: Plan, tmp_path: Path) -> None:
    """The figures of the session are those of the vectors that the saved model gives."""
    run = plan("tuning.epochs=1", "tuning.batch_size=48")
    result = train_retriever(run)
    held_out = Pairs(run.data, run.seed, 48).validation
    assert len(held_out) <= 48, "one batch"
    encoder = modernbert.load(result.model, device="cpu")
    queries = encoder.encode_query([pair.query for pair in held_out])
    documents = encoder.encode_document([pair.positive for pair in held_out])
    vectors = torch.tensor(queries), torch.tensor(documents), related_pairs(held_out)
    loss = InBatchNegatives(temperature=run.temperature).loss(*vectors).item()
    assert result.figures["validation"]["loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("source", ["pairs", "corpus"])
def test_a_stopped_run_ends_with_the_same_weights(
    source: str, plan: Plan, made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = plan("tuning.epochs=3")
    if source == "corpus":
        run = replace(run, data=replace(run.data, pairs=(), corpus=(str(made.corpus),), max_corpus_pairs=50))
    whole = train_retriever(run)
    expected, lines = weights(tmp_path / "run"), records(tmp_path / "run", "step")
    (tmp_path / "run").rename(tmp_path / "whole")
    step = whole.steps // 2  # in the midst of the second epoch
    with monkeypatch.context() as patch:
        stopping_after(step, patch)
        stopped = train_retriever(run)
    assert (stopped.stopped_by, stopped.model, stopped.steps) == ("SIGTERM", None, step)
    again = train_retriever(run)
    assert (again.score, again.figures) == (whole.score, whole.figures)
    assert same(weights(tmp_path / "run"), expected)
    kept = [(it["step"], it["loss"]) for it in records(tmp_path / "run", "step")]
    assert kept == [(it["step"], it["loss"]) for it in lines]


def test_without_validation_the_last_is_taken(plan: Plan) -> None:
    result = train_retriever(plan("tuning.epochs=1", "data.held_out=0"))
    assert (result.score, result.figures) == (None, {})
    assert result.model is not None
    assert (result.model / "modules.json").exists()


def test_other_pairs_are_not_gone_on_with(
    plan: Plan, made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(made.pairs.read_text())
    run = plan(f"data.pairs=[{path}]")
    with monkeypatch.context() as patch:
        stopping_after(2, patch)
        train_retriever(run)
    path.write_text(made.pairs.read_text().replace("cat", "dog"))
    with pytest.raises(ConfigError, match=r"holds a run with other examples than `.*pairs.jsonl`"):
        train_retriever(run)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.document_length=100",
            r"`data.document_length` is 100; it must be at most 64, which the model",
        ),
        ("selection.metric=ndcg", r"`selection.metric` is `ndcg`; it must be one of loss, accuracy, mrr"),
    ],
)
def test_what_does_not_fit_is_named(override: str, message: str, plan: Plan) -> None:
    with pytest.raises(ConfigError, match=message):
        train_retriever(plan(override, "tuning.epochs=1"))


def test_the_command(plan: Plan, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(plan(), tmp_path / "run.yaml")
    assert cli.main(["train-retriever", str(path), "tuning.epochs=1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metric"] == "mrr"
    assert Path(printed["model"]) == tmp_path / "run" / "model"
    assert cli.main(["train-retriever", str(path), "tuning.epoch=1"]) == 1
    assert "unknown key `tuning.epoch`; did you mean `tuning.epochs`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["embed.yaml", "mini/embed.yaml"])
def test_the_published_run_file_builds(name: str) -> None:
    run = read_run(ROOT / "runs" / name)
    assert config.build(RetrieverRun, yaml.safe_load(config.dump(run))) == run
    named = [run.folder, *run.data.pairs, *run.data.corpus]
    assert not any(Path(name).is_absolute() for name in named)
