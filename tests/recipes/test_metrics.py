"""A record sums up its window, and no step is lost or told twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modernbert import runtime
from modernbert.data.masking import MaskedBatch
from modernbert.errors import BackendError, ConfigError
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.recipes import metrics as module
from modernbert.recipes.metrics import LogSettings, RunMetrics
from modernbert.recipes.pretrain import pretrain
from modernbert.recipes.settings import read_run
from modernbert.train.evaluation import LengthEvaluation
from modernbert.train.feed import StepBatch
from modernbert.train.loop import Evaluation, StepReport
from modernbert.train.schedule import Clock, Setting
from tests.train.phases import phase

CPU = torch.device("cpu")
SHAPE = EncoderConfig.preset("tiny")
PHASE = phase(tokens=10_000, sequence_length=16, learning_rate=0.5)
EVALUATION = Evaluation(loss=2.5, accuracy=0.25, commonest_accuracy=0.1, num_masked=40)
LENGTH = LengthEvaluation(length=16, loss=2.0, accuracy=0.5, pseudo_perplexity=7.0, stride=8, num_tokens=100)


def report(
    step: int, *, masked: int = 10, loss: float = 3.0, ends_phase: bool = False, **changes: Any
) -> StepReport:
    """A step of 100 tokens, in two rows of 55, of which it took half a second."""
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = [
        MaskedBatch(torch.zeros(50, dtype=torch.int64), SequenceLayout((20, 30)), nothing, nothing[:0])
        for _ in range(2)
    ]
    batch = StepBatch(
        setting=Setting(0, PHASE, 0.1 * step, 110),
        rows=tuple(rows),
        row_numbers=(0, 1),
        num_tokens=100,
        capacity=110,
        identity="",
        clock=Clock(phase=int(ends_phase), tokens=100 * step, step=step),
        loader_state={},
    )
    given = StepReport(
        batch=batch,
        loss=loss,
        accuracy=0.5,
        num_masked=masked,
        gradient_norm=float(step),
        seconds=0.5,
        wait_seconds=0.125,
    )
    return replace(given, **changes)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be set."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def metrics(folder: Path, **settings: Any) -> RunMetrics:
    return RunMetrics(
        folder, LogSettings(**settings), shape=SHAPE, device=CPU, precision="fp32", total_tokens=1000
    )


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_record_of_one_step_says_what_it_did(tmp_path: Path) -> None:
    metrics(tmp_path).step(report(1))
    (record,) = records(tmp_path)
    assert record.pop("time") > 1.6e9
    assert record.pop("memory_bytes") > 1e7
    assert record.pop("seconds_left") > 0
    assert record == {
        "event": "step",
        "step": 1,
        "tokens": 100,
        "phase": "one",
        "steps": 1,
        "loss": 3.0,
        "accuracy": 0.5,
        "gradient_norm": 1.0,
        "learning_rate": 0.1,
        "batch_tokens": 100,
        "masked_tokens": 10,
        "utilisation": 100 / 110,
        "seconds": 0.5,
        "wait_seconds": 0.125,
        "tokens_per_second": 200.0,
        "mfu": None,
    }


def test_a_window_weighs_tokens_alike(tmp_path: Path) -> None:
    log = metrics(tmp_path, every_steps=3)
    log.step(report(1, masked=10, loss=4.0, gradient_norm=9.0))
    log.step(report(2, masked=30, loss=2.0))
    assert not (tmp_path / "metrics.jsonl").exists()
    log.step(report(3, masked=0, loss=0.0))
    (record,) = records(tmp_path)
    assert (record["step"], record["steps"], record["tokens"]) == (3, 3, 300)
    assert record["loss"] == pytest.approx((10 * 4 + 30 * 2) / 40)
    assert (record["masked_tokens"], record["gradient_norm"]) == (40, 9.0)
    assert (record["seconds"], record["wait_seconds"], record["batch_tokens"]) == (1.5, 0.375, 100)
    assert (record["tokens_per_second"], record["learning_rate"]) == (200.0, pytest.approx(0.3))


def test_a_window_ends_with_its_phase_a_validation_a_flush_and_the_run(tmp_path: Path) -> None:
    log = metrics(tmp_path, every_steps=100)
    log.step(report(1))
    log.step(report(2, ends_phase=True))
    log.step(report(3))
    log.validation(EVALUATION, PHASE, Clock(tokens=300, step=3))
    log.step(report(4))
    log.flush()
    log.flush()  # nothing is left
    log.step(report(5))
    log.close()
    found = [(record["event"], record["step"], record.get("steps")) for record in records(tmp_path)]
    assert found == [("step", 2, 2), ("step", 3, 1), ("validation", 3, None), ("step", 4, 1), ("step", 5, 1)]


def test_mfu_is_the_models_operations_over_the_devices(tmp_path: Path) -> None:
    log = metrics(tmp_path, every_steps=2, peak_tflops=0.001)
    log.step(report(1))
    log.step(report(2))
    (record,) = records(tmp_path)
    forward = SHAPE.flops((20, 30, 20, 30))  # of one step
    assert record["mfu"] == pytest.approx(2 * 3 * forward / 1.0 / 1e9)
    assert log.shown()["MFU"] == f"{record['mfu']:.1%}"


@pytest.mark.parametrize(("precision", "expected"), [("bf16", 989.4e12), ("fp32", None)])
def test_the_peak_is_that_of_the_device_in_bf16(
    precision: Any, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    cuda = torch.device("cuda", 0)
    assert module._peak_flops(LogSettings(), cuda, precision) == expected
    assert module._peak_flops(LogSettings(peak_tflops=2), cuda, precision) == 2e12
    assert module._peak_flops(LogSettings(), CPU, precision) is None


def test_the_time_to_go_counts_what_lies_between_steps(tmp_path: Path, clock: list[float]) -> None:
    log = metrics(tmp_path)
    for step in (1, 2, 3):
        clock[0] += 2.0  # of which the step itself took half a second
        log.step(report(step))
    first, *_, last = records(tmp_path)
    assert first["seconds_left"] == pytest.approx(0.5 / 100 * 900)
    assert last["seconds_left"] == pytest.approx((0.5 + 4.0) / 300 * 700)


def test_validations_and_events_have_their_records(tmp_path: Path) -> None:
    log = metrics(tmp_path)
    log.validation(EVALUATION, PHASE, Clock(tokens=300, step=3), [LENGTH], {"web": EVALUATION})
    log.event("skip", PHASE, Clock(tokens=400, step=4), "why", loss=7.5)
    validation, event = records(tmp_path)
    for record in (validation, event):
        record.pop("time")
    at = {"step": 3, "tokens": 300, "phase": "one"}
    figures = {"loss": 2.5, "accuracy": 0.25, "commonest_accuracy": 0.1, "num_masked": 40}
    length = {"length": 16, "loss": 2.0, "accuracy": 0.5, "pseudo_perplexity": 7.0, "stride": 8}
    assert validation == {
        "event": "validation",
        **at,
        **figures,
        "by_source": [{"source": "web", **figures}],
        "by_length": [{**length, "num_tokens": 100}],
    }
    assert event == {"event": "skip", **at, "step": 4, "tokens": 400, "message": "why", "loss": 7.5}


def test_what_happened_in_steps_that_are_left_behind_stays_said(tmp_path: Path) -> None:
    def found() -> list[tuple[str, int]]:
        return [(record["event"], record["step"]) for record in records(tmp_path)]

    log = metrics(tmp_path)
    log.step(report(1))
    log.event("skip", PHASE, Clock(tokens=200, step=2), "why")
    log.step(report(3))
    log.validation(EVALUATION, PHASE, Clock(tokens=300, step=3))
    log.cut(1, keeps_events=True)
    log.event("rollback", PHASE, Clock(tokens=100, step=1), "back")
    assert found() == (kept := [("step", 1), ("skip", 2), ("rollback", 1)])
    log.event("skip", PHASE, Clock(tokens=200, step=2), "why")
    log.step(report(3))
    log.cut(2)
    assert found() == [*kept, ("skip", 2)]
    log.cut(1)  # as after a crash: step 2 is taken again
    assert found() == kept
    log.cut(0)
    assert found() == []


def test_what_is_shown_is_the_last_record(tmp_path: Path) -> None:
    log = metrics(tmp_path)
    assert log.shown() == {}
    log.validation(EVALUATION, PHASE, Clock(tokens=100, step=1))
    log.step(report(2))
    shown = log.shown()
    assert shown.pop("memory").endswith("B")
    assert shown == {
        "phase": "one",
        "loss": "3.000",
        "accuracy": "50.0%",
        "lr": "0.2",
        "batch": "100",
        "packed": "90.9%",
        "wait": "25.0%",
        "held-out": "2.500",
    }


def test_another_process_of_the_run_writes_nothing(tmp_path: Path) -> None:
    given = {"shape": SHAPE, "device": CPU, "precision": "fp32", "total_tokens": 1000}
    log = RunMetrics(tmp_path, LogSettings(tensorboard=True), writes=False, **given)  # type: ignore[arg-type]
    log.cut(0)
    log.step(report(1))
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert log.shown()["loss"] == "3.000"


@pytest.mark.parametrize("key", ["every_steps", "peak_tflops"])
def test_settings_that_cannot_be(key: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` is 0; it must be a"):
        LogSettings(**{key: 0})


# TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: each figure with its tokens and values."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_shows_the_records_against_tokens(tmp_path: Path) -> None:
    log = metrics(tmp_path, tensorboard=True)
    log.step(report(1))
    log.step(report(2, loss=2.0))
    log.validation(EVALUATION, PHASE, Clock(tokens=200, step=2), [LENGTH], {"web": EVALUATION})
    log.event("skip", PHASE, Clock(tokens=300, step=3), "why")
    found = scalars(tmp_path)  # though nothing is closed yet
    assert found["train/loss"] == [(100, 3.0), (200, 2.0)]
    assert found["speed/tokens_per_second"] == [(100, 200.0), (200, 200.0)]
    assert found["validation/loss"] == found["validation/loss_of_web"] == [(200, 2.5)]
    assert found["validation/pseudo_perplexity_at_16"] == [(200, 7.0)]
    assert "speed/mfu" not in found
    log.close()


def test_tensorboard_forgets_what_is_taken_again(tmp_path: Path) -> None:
    log = metrics(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        log.step(report(step))
    log.close()
    log = metrics(tmp_path, tensorboard=True)
    log.cut(1)
    log.step(report(2, loss=1.0))
    log.close()
    assert scalars(tmp_path)["train/loss"] == [(100, 3.0), (200, 1.0)]
    assert [record["loss"] for record in records(tmp_path)] == [3.0, 1.0]


def test_tensorboard_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(BackendError, match=r"needs TensorBoard.*'modernbert\[tensorboard\]'"):
        metrics(tmp_path, tensorboard=True)


# In a run


def test_a_run_writes_windows_and_lengths(run_file: Path, tmp_path: Path) -> None:
    changes = ["log.every_steps=3", "log.peak_tflops=0.01", "log.tensorboard=true"]
    changes += ["validation.by_length.lengths=[8, 16, 24]", "validation.by_length.max_tokens=300"]
    pretrain(read_run(run_file, [*changes, "checkpoint.every_tokens=1000"]))
    found = records(tmp_path / "run")
    steps = [record for record in found if record["event"] == "step"]
    assert sum(record["steps"] for record in steps) == steps[-1]["step"] == 8
    assert {3, 4, 6, 8} <= {record["step"] for record in steps}
    assert all(0 < record["mfu"] < 1 for record in steps)
    validations = [record for record in found if record["event"] == "validation"]
    assert len(validations) == 3
    for record in validations:
        assert [part["source"] for part in record["by_source"]] == ["a", "b"]
        lengths = record["by_length"]
        assert [length["length"] for length in lengths] == [8, 16, 24]
        assert len({length["num_tokens"] for length in lengths}) == 1
        assert all(length["pseudo_perplexity"] > 1 for length in lengths)
    assert len(scalars(tmp_path / "run")["validation/loss_at_16"]) == 3
    pretrain(
        read_run(run_file, ["log.every_steps=1", "checkpoint.every_tokens=1000"])
    )  # what is written is free
    assert records(tmp_path / "run") == found


def test_the_peak_of_devices() -> None:
    assert runtime.peak_tflops("NVIDIA H100 80GB HBM3") == 989.4
    assert runtime.peak_tflops("NVIDIA H100 PCIe") == 756.5
    assert runtime.peak_tflops("NVIDIA A100-SXM4-40GB") == 311.9
    assert runtime.peak_tflops("NVIDIA L40S") == 362.0
    assert runtime.peak_tflops("NVIDIA L4") == 121.0
    assert runtime.peak_tflops("NVIDIA GeForce RTX 4090") == 165.2
    assert runtime.peak_tflops("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert runtime.peak_tflops("Radeon VII") is None
