"""A command that is killed, stopped and cut off from its disk, and ends as if nothing had happened."""

from __future__ import annotations

import errno
import json
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modernbert import cli, files
from modernbert.errors import BackendError, ConfigError, StorageError
from modernbert.recipes.finetune.session import finetune
from modernbert.recipes.finetune.settings import FinetuneRun
from modernbert.recipes.tuning import session
from tests.recipes.commands import last_step, running, wait_for_step
from tests.recipes.tuned import same, stopping_after, weights, write_run

pytest.importorskip("sklearn", reason="needs the extra `finetune`")
pytestmark = pytest.mark.usefixtures("undrawn")


Plan = Callable[..., FinetuneRun]


@pytest.mark.slow
def test_a_command_that_is_killed_and_interrupted_ends_with_the_same_weights(
    plan: Plan, tmp_path: Path
) -> None:
    longer = ["tuning.epochs=50", "head.dropout=0.1"]
    whole = finetune(plan("classify", *longer))
    expected, folder = weights(tmp_path / "run"), tmp_path / "run"
    folder.rename(tmp_path / "whole")
    run = plan("classify", *longer)
    run_file = write_run(run, tmp_path / "run.yaml")
    draw = random.Random(3)
    for _ in range(2):
        with running("finetune", str(run_file)) as process:
            wait_for_step(last_step(folder) + 8, folder, process)  # beyond what it goes back to
            time.sleep(draw.random() / 10)
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "model").exists()
    with running("finetune", str(run_file)) as process:
        wait_for_step(last_step(folder) + 8, folder, process)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        stderr = process.communicate(timeout=600)[1]
    assert process.returncode not in (0, -signal.SIGKILL)
    assert "Traceback" not in stderr
    assert "goingonfrom" in "".join(stderr.split())
    again = finetune(run)
    assert (again.score, again.figures, again.steps) == (whole.score, whole.figures, whole.steps)
    assert same(weights(folder), expected)


def test_the_last_file_may_be_killed_too(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last checkpoint and the report, at each file in turn."""

    class Killed(BaseException):
        pass

    run, folder = plan("classify", "tuning.epochs=1"), tmp_path / "run"
    names = ("findings/", "about.json", ".model.partial", "report.json", "README.md")
    sync = files._sync
    for name in names:
        with monkeypatch.context() as patch:

            def killed(path: Path, name: str = name) -> None:
                if name in str(path):
                    raise Killed
                sync(path)

            patch.setattr(files, "_sync", killed)
            with pytest.raises(Killed):
                finetune(run)
    result = finetune(run)
    assert result.figures["validation"] == files.read_json(folder / "findings" / "validation.json")["figures"]
    assert (folder / "model" / "README.md").exists()
    steps = [json.loads(it)["step"] for it in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 7]  # each once, and a look


def test_a_full_disk_names_the_last_good_checkpoint(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plan("classify", "tuning.epochs=3")
    whole = finetune(run)
    expected = weights(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "whole")
    sync = files._sync

    def full(path: Path) -> None:
        if ".step-000000014.partial/" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    run_file = write_run(run, tmp_path / "run.yaml")
    checkpoints = tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", full)
        assert cli.main(["finetune", str(run_file)]) == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(
        rf"error: could not write `{checkpoints}/.*step-000000014.*`: the disk is full; free space or .*; "
        rf"the last good checkpoint is `{checkpoints}/step-000000007`",
        line,
    )
    again = finetune(run)
    assert again.score == whole.score
    assert same(weights(tmp_path / "run"), expected)


def test_a_folder_that_may_not_be_written(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    run = plan("classify")
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StorageError, match=r"could not write `.*run`: the file system is read-only; choose"):
        finetune(run)


def test_other_examples_are_not_gone_on_with(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = tmp_path / "train.csv"
    train.write_text("text,label\n" + "Ada likes Rome,good\nAlan left Oslo,bad\n" * 40, encoding="utf-8")
    run = plan("classify", f"data.train={train}")
    with monkeypatch.context() as patch:
        stopping_after(3, patch)
        finetune(run)
    before = train.read_text(encoding="utf-8")
    train.write_text(before.replace("bad", "worse", 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holds a run with other examples than `.*train.csv`"):
        finetune(run)
    train.rename(tmp_path / "moved.csv").write_text(before, encoding="utf-8")
    assert finetune(plan("classify", f"data.train={tmp_path / 'moved.csv'}")).stopped_by is None


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (
            ["micro_batch_tokens=48"],
            "a micro-batch of 48 tokens .*; lower `micro_batch_tokens`, now 48, or set",
        ),
        (
            ["micro_batch_tokens=8"],
            r"a micro-batch of \d\d tokens .*; lower `data.max_length`, as the longest example has",
        ),
    ],
)
def test_too_little_memory_says_what_to_lower(
    overrides: list[str], remedy: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is lowered, the run goes on with."""

    def too_much(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    run = plan("classify", *overrides)
    with monkeypatch.context() as patch:
        stopping_after(3, patch)
        finetune(run)
    with monkeypatch.context() as patch:
        patch.setattr(session, "tune", too_much)
        with pytest.raises(BackendError, match=rf"the memory of `cpu` cannot hold {remedy}"):
            finetune(run)
    assert finetune(plan("classify", "micro_batch_tokens=6")).stopped_by is None


@pytest.mark.gpu
def test_the_memory_of_a_gpu_is_too_small(plan: Plan) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(
            BackendError, match=r"the memory of `cuda.*` cannot hold .*lower `micro_batch_tokens`"
        ):
            finetune(plan("classify", "device=cuda", "tuning.batch_size=54"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
