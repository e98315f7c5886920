"""Fine-tuning from file to model: it learns, goes on exactly, stops early, and others load what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import modernbert
from modernbert import files
from modernbert.errors import ConfigError, InputError
from modernbert.recipes.finetune.session import _Session, finetune
from modernbert.recipes.finetune.settings import FinetuneRun
from modernbert.recipes.finetune.tasks import TASKS
from modernbert.recipes.tuning.session import Workplace
from modernbert.train.ranks import ALONE
from tests.recipes.tuned import same, stopping_after, weights

from .conftest import PLACES, Labelled

pytest.importorskip("sklearn", reason="needs the extra `finetune`")
pytest.importorskip("seqeval", reason="needs the extra `finetune`")
pytestmark = pytest.mark.usefixtures("undrawn")

Plan = Callable[..., FinetuneRun]


def opened(run: FinetuneRun) -> _Session:
    cpu = torch.device("cpu")
    return _Session(run, Workplace(folder=Path(run.folder), ranks=ALONE, device=cpu, facts={}))


@pytest.mark.parametrize(
    ("task", "data", "metric"),
    [
        ("classify", "classify", "accuracy"),
        ("classify", "pairs", "accuracy"),
        ("classify", "sets", "micro_f1"),
        ("classify", "values", "pearson"),
        ("tag", "tag", "f1"),
        ("answer", "answer", "f1"),
        ("choose", "choose", "accuracy"),
        ("prompt", "prompt", "accuracy"),
    ],
)
def test_each_task_learns(task: str, data: str, metric: str, plan: Plan, records: Any) -> None:
    result = finetune(plan(task, f"tuning.epochs={30 if data in ('pairs', 'prompt') else 20}", data=data))
    assert result.metric == metric
    assert result.score is not None
    assert result.score == max(it["figures"][metric] for it in records(["evaluation"]))
    assert result.figures["validation"][metric] == result.score >= 0.9
    losses = [it["loss"] for it in records(["step"])]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize("task", ["classify", "tag", "answer", "choose", "prompt"])
def test_the_examples_of_a_split_are_made_once(
    task: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, made = TASKS[task], []
    plain = kind._make_examples
    monkeypatch.setattr(kind, "_make_examples", lambda self, split: made.append(split) or plain(self, split))
    finetune(plan(task, "tuning.epochs=2"))
    assert sorted(made) == ["train", "validation"]


class TestGoingOn:
    @pytest.mark.parametrize("step", [3, 7, 10])
    def test_a_stopped_run_ends_with_the_same_weights(
        self, step: int, plan: Plan, records: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        run = plan("classify", "head.dropout=0.1")
        whole = finetune(run)
        expected, lines = weights(tmp_path / "run"), records(["step"])
        (tmp_path / "run").rename(tmp_path / "whole")
        with monkeypatch.context() as patch:
            stopping_after(step, patch)
            stopped = finetune(run)
        assert (stopped.stopped_by, stopped.model, stopped.steps) == ("SIGTERM", None, step)
        assert stopped.summary() == f"stopped by SIGTERM after step {step}; the same command goes on"
        again = finetune(run)
        assert (again.score, again.figures) == (whole.score, whole.figures)
        assert same(weights(tmp_path / "run"), expected)
        kept = [(it["step"], it["loss"]) for it in records(["step"])]
        assert kept == [(it["step"], it["loss"]) for it in lines]

    def test_a_finished_run_says_the_same_again(self, plan: Plan) -> None:
        run = plan("classify", "tuning.epochs=1")
        first, again = finetune(run), finetune(run)
        assert (first.score, first.figures, first.steps) == (again.score, again.figures, again.steps)

    def test_other_settings_are_refused(self, plan: Plan) -> None:
        finetune(plan("classify", "tuning.epochs=1"))
        with pytest.raises(ConfigError, match=r"holds a run with other settings .*`tuning.epochs`"):
            finetune(plan("classify", "tuning.epochs=2"))


class TestSelection:
    def test_patience_ends_the_run_and_the_best_is_kept(
        self, plan: Plan, records: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        result = finetune(
            plan("classify", "tuning.epochs=20", "selection.patience=2", "tuning.learning_rate=1e-8")
        )
        scores = [it["figures"]["accuracy"] for it in records(["evaluation"])]
        assert len(scores) < 20
        assert result.score == max(scores)
        best = next(it["step"] for it in records(["evaluation"]) if it["figures"]["accuracy"] == result.score)
        assert same(
            weights(tmp_path / "run"),
            load_file(tmp_path / "run" / "checkpoints" / f"step-{best:09d}" / "model.safetensors"),
        )

    @pytest.mark.parametrize("metric", ["log_loss", "calibration_error"])
    def test_of_figures_of_which_less_is_better_the_least(
        self, metric: str, plan: Plan, records: Any, tmp_path: Path
    ) -> None:
        """Also where the last is not the best, and with patience."""
        result = finetune(
            plan("classify", "tuning.epochs=4", "tuning.learning_rate=3e-2", f"selection.metric={metric}")
        )
        scores = {it["step"]: it["figures"][metric] for it in records(["evaluation"])}
        assert result.score == min(scores.values()) == result.figures["validation"][metric]
        assert files.read_json(tmp_path / "run" / "about.json")["best_step"] == min(
            scores, key=lambda step: scores[step]
        )

    def test_looks_several_times_an_epoch(self, plan: Plan, records: Any) -> None:
        finetune(plan("classify", "tuning.epochs=2", "selection.times_an_epoch=3"))
        steps = [it["step"] for it in records(["evaluation"])]
        assert steps == [3, 5, 7, 10, 12, 14]

    def test_an_unknown_metric_is_refused_before_anything_is_learned(self, plan: Plan, records: Any) -> None:
        names = "accuracy, macro_f1, micro_f1, weighted_f1, mcc, log_loss, calibration_error"
        with pytest.raises(ConfigError, match=f"`selection.metric` is `acuracy`; it must be one of {names}$"):
            finetune(plan("classify", "selection.metric=acuracy"))
        with pytest.raises(FileNotFoundError):
            records()

    def test_dropout_is_the_run_s_if_it_says_so(self, plan: Plan, tmp_path: Path) -> None:
        finetune(plan("classify", "tuning.attn_out_dropout=0", "tuning.epochs=1"))
        assert modernbert.load(tmp_path / "run" / "model", device="cpu").config.attn_out_dropout == 0

    def test_nothing_held_out(self, plan: Plan, records: Any) -> None:
        result = finetune(plan("classify", "data.held_out=0", "tuning.epochs=1"))
        assert (result.score, result.figures) == (None, {})
        assert records(["evaluation"]) == []
        assert result.model is not None

    def test_a_test_file_is_looked_at_at_the_end(self, plan: Plan, labelled: Labelled) -> None:
        result = finetune(plan("classify", f"data.test={labelled.file('classify')}", "tuning.epochs=1"))
        assert result.figures.keys() == {"validation", "test"}


class TestAdapters:
    @pytest.mark.parametrize("kind", ["lora", "dora"])
    def test_trained_saved_and_gone_on_with(
        self, kind: str, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, labelled: Labelled
    ) -> None:
        pytest.importorskip("peft", reason="needs the extra `finetune`")
        run = plan("classify", f"adapter.kind={kind}", "adapter.rank=4")
        finetune(run)
        expected = weights(tmp_path / "run")
        before = load_file(labelled.model / "model.safetensors")
        for name in ("model.embeddings.tok_embeddings.weight", "model.layers.0.mlp_norm.weight"):
            assert torch.equal(expected[name], before[name])
        assert not torch.equal(
            expected["model.layers.1.attn.Wqkv.weight"], before["model.layers.1.attn.Wqkv.weight"]
        )
        adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
        assert any("lora_A" in name for name in adapter)
        (tmp_path / "run").rename(tmp_path / "whole")
        with monkeypatch.context() as patch:
            stopping_after(5, patch)
            finetune(run)
        finetune(run)
        assert same(weights(tmp_path / "run"), expected)


class TestComputing:
    @pytest.mark.slow
    @pytest.mark.compile
    @pytest.mark.filterwarnings("default")  # the compiler stumbles over its own
    def test_compiled_layers_learn_the_same(self, plan: Plan, records: Any, tmp_path: Path) -> None:
        one_step = ["tuning.epochs=1", "tuning.batch_size=72", "data.held_out=0"]
        run = plan("classify", *one_step, "tuning.learning_rate=1e-4")
        finetune(run)
        expected, lines = weights(tmp_path / "run"), records(["step"])
        (tmp_path / "run").rename(tmp_path / "plain")
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        finetune(replace(run, compile=True))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it did compile
        assert [it["loss"] for it in records(["step"])] == pytest.approx(
            [it["loss"] for it in lines], abs=1e-2
        )
        found = weights(tmp_path / "run")
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-3, msg=name)

    @pytest.mark.parametrize("task", ["classify", "tag", "answer", "choose", "prompt"])
    def test_each_task_has_a_deterministic_form(self, task: str, plan: Plan, tmp_path: Path) -> None:
        run = plan(task, "tuning.epochs=1", "deterministic=true")
        found = []
        for _ in range(2):
            finetune(run)
            found.append(weights(tmp_path / "run"))
            (tmp_path / "run").rename(tmp_path / str(len(found)))
        assert same(*found)
        assert not torch.are_deterministic_algorithms_enabled()


class TestOthersLoadIt:
    """Transformers' pipelines give the same answers (Done by its classes, fp32)."""

    def test_classify(self, plan: Plan, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        finetune(plan("classify"))
        folder = str(tmp_path / "run" / "model")
        theirs = transformers.pipeline("text-classification", model=folder, device="cpu")
        texts = ["Ada likes Rome .", "Alan left Oslo today ."]
        ours = modernbert.load(folder, device="cpu").classify(texts)
        for one, other in zip(theirs(texts), ours, strict=True):
            assert one["label"] == other[0]["label"]
            assert one["label"] in PLACES
            assert one["score"] == pytest.approx(other[0]["score"], abs=1e-4)

    def test_tag(self, plan: Plan, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        finetune(plan("tag", "tuning.epochs=6"))
        folder = str(tmp_path / "run" / "model")
        theirs = transformers.pipeline("token-classification", model=folder, device="cpu")
        text = "Grace never saw Paris today ."
        found = [(it["entity"], it["index"]) for it in theirs(text)]
        ours = modernbert.load(folder, device="cpu").tag(text, aggregation_strategy="none")
        assert found == [(it["entity"], it["index"]) for it in ours] != []


class TestData:
    def test_the_same_examples_are_held_out_whatever_the_seed(
        self, plan: Plan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = [
            [it.place for it in opened(run).task.splits["validation"].records]
            for run in (plan("classify"), plan("classify", "seed=5"))
        ]
        assert found[0] == found[1]
        assert len(found[0]) == 18

    def test_too_few_examples(self, plan: Plan, tmp_path: Path) -> None:
        path = tmp_path / "two.csv"
        path.write_text("text,label\na,x\nb,y\n")
        with pytest.raises(
            InputError, match=r"of 2 examples a share of 0\.1 cannot be held out: that leaves 2 to"
        ):
            finetune(plan("classify", f"data.train={path}", "data.held_out=0.1"))

    def test_a_longer_limit_than_the_model_s(self, plan: Plan) -> None:
        with pytest.raises(ConfigError, match=r"`data\.max_length` is 100; it must be at most 64"):
            finetune(plan("classify", "data.max_length=100"))

    def test_long_documents_are_tagged_by_windows(self, plan: Plan, tmp_path: Path) -> None:
        words = ["Ada", "lives", "in", "Rome", "."] * 40
        lines = "".join(f"{word} {tag}\n" for word, tag in zip(words, ["B-PER", "O", "O", "B-LOC", "O"] * 40))
        path = tmp_path / "long.conll"
        path.write_text(f"{lines}\n" * 4)
        run = plan("tag", f"data.train={path}", "tuning.epochs=6", "data.stride=16")
        found = opened(run)
        examples = found.examples
        assert max(len(it.sequences[0]) for it in examples) <= 64
        judged = sum(label != -100 for it in examples for label in it.target)
        assert judged == 3 * 200  # each word once
        assert finetune(run).score == pytest.approx(1.0)
