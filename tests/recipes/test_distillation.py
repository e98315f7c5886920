"""A run with a teacher: exact when resumed, plain when finished, refused before anything is prepared."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modernbert import config
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError, ConfigError, InputError
from modernbert.model.heads import ModernBertForMaskedLM, ModernBertForSequenceClassification
from modernbert.recipes import pretrain as recipe
from modernbert.recipes.distillation import DistillationSettings
from modernbert.recipes.history import read_history
from modernbert.recipes.plan import headline
from modernbert.recipes.plan import plan as plan_run
from modernbert.recipes.pretrain import pretrain
from modernbert.recipes.settings import PretrainRun
from modernbert.train.loop import StepReport, train
from modernbert.train.planner import Machines

Plan = dict[str, Any]
TIMES = {"seconds", "wait_seconds", "tokens_per_second", "seconds_left", "time", "memory_bytes"}


@pytest.fixture
def taught(plan: Plan, teacher: Path, tmp_path: Path) -> Plan:
    section = {"teacher": str(teacher), "weight": 0.6, "temperature": 2, "hidden_weight": 0.5}
    return {**plan, "folder": str(tmp_path / "run"), "distillation": section}


def build(tree: Plan, **changes: Any) -> PretrainRun:
    return config.build(PretrainRun, {**tree, **changes})


def with_section(tree: Plan, **changes: Any) -> Plan:
    return {**tree, "distillation": {**tree["distillation"], **changes}}


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def outcome(folder: Path) -> dict[str, Any]:
    last = folder / "checkpoints" / "step-000000008"
    kept = ("model.safetensors", "beside.safetensors", "optimizer.safetensors")
    return {name: (last / name).read_bytes() for name in kept} | {"records": records(folder)}


def stopping(*arguments: Any, **options: Any) -> Iterator[StepReport]:
    for report in train(*arguments, **options):
        if report.batch.clock.step in (3, 5):
            os.kill(os.getpid(), signal.SIGTERM)
        yield report


def test_a_stopped_run_goes_on_bit_for_bit_and_ends_as_a_plain_model(
    taught: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, stopped = build(taught), build(taught, folder=str(tmp_path / "stopped"))
    pretrain(straight)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "train", stopping)
        assert [pretrain(stopped).stopped_by for _ in range(2)] == ["SIGTERM"] * 2
    pretrain(stopped)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "run")

    steps = [record for record in records(tmp_path / "run") if record["event"] == "step"]
    for record in steps:
        parts = 0.4 * record["loss"] + 0.6 * record["divergence"] + 0.5 * record["hidden_distance"]
        assert record["objective"] == pytest.approx(parts, abs=1e-4)
    assert np.isfinite(read_history(tmp_path / "run").columns["hidden_distance"]).all()
    for folder in (tmp_path / "run" / "model", tmp_path / "run" / "checkpoints" / "step-000000008"):
        assert type(ModernBertForMaskedLM.from_pretrained(folder)) is ModernBertForMaskedLM
    assert not (tmp_path / "run" / "model" / "beside.safetensors").exists()


def test_guesses_alone_can_be_learnt(taught: Plan, tmp_path: Path) -> None:
    one_phase = {"phases": taught["phases"][:1]}
    pretrain(build(with_section(taught, hidden_weight=0), **one_phase))
    checkpoint = next((tmp_path / "run" / "checkpoints").iterdir())
    assert not (checkpoint / "beside.safetensors").exists()
    assert "hidden_distance" not in records(tmp_path / "run")[0]


def test_a_teacher_can_go_on_by_itself_in_fp8(taught: Plan, teacher: Path, tmp_path: Path) -> None:
    """With layers computed again: what a run starts from is there before its layers change, and not lost."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "attn_out_dropout": 0.0}
    tree = with_section(taught, hidden_weight=0) | {
        "model": {**taught["model"], **shape},
        "start": {"model": str(teacher)},
        "phases": taught["phases"][:1],
        "precision": "bf16",
    }
    found = []
    for settings in ({}, {"fp8": True, "distribution": {"activation_checkpointing": True}}):
        pretrain(build(tree, **settings, folder=str(tmp_path / f"{len(found)}")))
        found.append([record for record in records(tmp_path / f"{len(found)}") if "loss" in record])
    for half, eighth in zip(*found, strict=True):
        assert 0 < abs(half["loss"] - eighth["loss"]) < 1e-3
    assert [steps[1]["divergence"] for steps in found] == pytest.approx([0, 0], abs=1e-4)


def test_the_section_is_read_as_it_is_written(taught: Plan) -> None:
    run = build(taught)
    assert build(config.to_tree(run)) == run
    assert config.to_tree(run)["distillation"]["dtype"] == "auto"


def other_words(folder: Path, teacher: Path, *texts: str, vocab_size: int) -> str:
    """The teacher with another tokenizer."""
    ModernBertForMaskedLM.from_pretrained(teacher).save_pretrained(folder)
    Tokenizer.train(texts, vocab_size=vocab_size).save_pretrained(folder)
    return str(folder)


def test_another_vocabulary_is_refused_before_anything_is_prepared(
    taught: Plan, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"`tokenizer\.vocab_size` 384 trains a tokenizer, which no teacher"
    ):
        build(taught, tokenizer={"vocab_size": 384})
    narrow = {**taught["model"], "vocab_size": 448}
    with pytest.raises(ConfigError, match=r"guesses among 384 tokens, and `model\.vocab_size` is 448;"):
        pretrain(build(taught, model=narrow))
    few = other_words(tmp_path / "few", teacher, "a b", vocab_size=320)
    with pytest.raises(ConfigError, match="it has 320 tokens, the run's 384; it must have the same; set"):
        pretrain(build(with_section(taught, teacher=few)))
    texts = [f"{one}{two} {two}{one}{one}" for one in "klmnop" for two in "qrstuvwx"] * 3
    other = other_words(tmp_path / "other", teacher, *texts, vocab_size=384)
    with pytest.raises(ConfigError, match=r"ids mean other tokens, the first of them \d+: '"):
        pretrain(build(with_section(taught, teacher=other)))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_teacher_that_cuts_text_in_another_way_is_refused(
    taught: Plan, teacher: Path, tokenizer: Path, tmp_path: Path
) -> None:
    ModernBertForMaskedLM.from_pretrained(teacher).save_pretrained(tmp_path / "other")
    document = json.loads((tokenizer / "tokenizer.json").read_text("utf-8"))
    document["model"]["merges"].reverse()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = json.dumps(document) if name == "tokenizer.json" else (tokenizer / name).read_text("utf-8")
        (tmp_path / "other" / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="its tokens are the same, but it cuts text into them in another"):
        pretrain(build(with_section(taught, teacher=str(tmp_path / "other"))))


def test_what_cannot_teach_is_refused(taught: Plan, teacher: Path, tmp_path: Path) -> None:
    shape = ModernBertForMaskedLM.from_pretrained(teacher).config
    ModernBertForSequenceClassification(shape).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ConfigError, match="is a `ModernBertForSequenceClassification`; it must be a `Modern"):
        pretrain(build(with_section(taught, teacher=str(tmp_path / "classifier"))))
    ModernBertForMaskedLM(replace(shape, max_position_embeddings=32)).save_pretrained(tmp_path / "short")
    with pytest.raises(
        ConfigError, match="reads at most 32 tokens, and a phase has sequences of 64; it must"
    ):
        pretrain(build(with_section(taught, teacher=str(tmp_path / "short"))))
    ModernBertForMaskedLM(shape).save_pretrained(tmp_path / "wordless")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        pretrain(build(with_section(taught, teacher=str(tmp_path / "wordless"))))
    with pytest.raises(CheckpointError, match="nowhere"):
        pretrain(build(with_section(taught, teacher=str(tmp_path / "nowhere"))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 1.5}, "`weight` is 1.5; it must be at least 0 and at most 1"),
        ({"temperature": 0.0}, "`temperature` is 0.0; it must be above 0"),
        ({"hidden_weight": -1.0}, "`hidden_weight` is -1.0; it must be at least 0"),
        ({"weight": 0.0}, "`weight` and `hidden_weight` are 0; one must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillationSettings(teacher="any", **settings)


def test_a_plan_counts_the_teacher(plan: Plan, taught: Plan, teacher: Path) -> None:
    machines = Machines()
    alone, found = plan_run(build({**plan, "folder": "run"}), machines), plan_run(build(taught), machines)
    shape = ModernBertForMaskedLM.from_pretrained(teacher).config
    assert found.setup.teacher is not None
    for one, other in zip(alone.phases, found.phases, strict=True):
        forward = shape.flops([length := one.phase.sequence_length], round(0.3 * length)) / length
        assert other.flops_a_token - one.flops_a_token == pytest.approx(forward)
        assert other.keeping.memory.weights - one.keeping.memory.weights == pytest.approx(
            2 * shape.num_parameters(head=True) + 4 * 32 * 64
        )
    assert ", a teacher of 80.6k, stable_adamw" in headline(found)
    assert "teacher" not in headline(alone)
