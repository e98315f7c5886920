"""Runs of several processes (gloo, CPU): the curve of one, on any number of ranks, though some die."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from modernbert import files
from modernbert.recipes import pretrain as recipe
from modernbert.recipes.settings import PretrainRun, read_run
from modernbert.train.loop import train

pytestmark = pytest.mark.slow

LAUNCHED = Path(__file__).with_name("launched.py")
ROOT = LAUNCHED.parents[2]
NUM_STEPS = 8
SECONDS_A_LAUNCH = 600

Rows = list[list[int]]


@dataclass
class One:
    """The run of one process: what it consumed and what it measured."""

    rows: dict[int, Rows]
    folder: Path

    @property
    def losses(self) -> list[float]:
        return losses(self.folder)


def losses(folder: Path) -> list[float]:
    """Of each step and validation."""
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def in_one_process(run: PretrainRun) -> dict[int, Rows]:
    """Carry a run on in this process; return the rows of each step."""
    rows: dict[int, Rows] = {}

    def noting(*arguments: Any, **options: Any) -> Any:
        for report in train(*arguments, **options):
            rows[report.batch.clock.step] = [row.input_ids.tolist() for row in report.batch.rows]
            yield report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "train", noting)
        recipe.pretrain(run)
    return rows


@pytest.fixture(scope="module")
def one(plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> One:
    folder = tmp_path_factory.mktemp("one")
    run_file = folder / "run.yaml"
    run_file.write_text(yaml.safe_dump({**plan, "folder": str(folder / "run")}), encoding="utf-8")
    return One(in_one_process(read_run(run_file)), folder / "run")


def launch(
    size: int, run_file: Path, notes: Path, *overrides: str, harm: str = "", restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    """Start `launched.py` with torchrun."""
    notes.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    environment = {**os.environ, "HARM": harm, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, *launcher, f"--max-restarts={restarts}", LAUNCHED, run_file, notes, *overrides]
    return subprocess.run(
        list(map(str, command)),
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS_A_LAUNCH,
        check=False,
    )


def finish(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Launch what must end well."""
    done = launch(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def consumed(notes: Path, size: int) -> dict[int, Rows]:
    """Put the ranks' rows of each step together again. A step that was taken twice had the same rows."""
    by_rank: list[dict[int, Rows]] = []
    for rank in range(size):
        found: dict[int, Rows] = {}
        for line in (notes / f"{rank}.jsonl").read_text("utf-8").splitlines():
            record = json.loads(line)
            assert found.setdefault(record["step"], record["rows"]) == record["rows"]
        by_rank.append(found)
    steps: dict[int, Rows] = {}
    for step in by_rank[0]:
        count = sum(len(found[step]) for found in by_rank)
        steps[step] = [by_rank[i % size][step][i // size] for i in range(count)]
    return steps


def test_a_killed_rank_is_replaced_and_the_run_ends_as_if_nothing_had_happened(
    one: One, run_file: Path, tmp_path: Path
) -> None:
    """And two ranks give the curve of one, which has dropout and odd numbers of rows."""
    done = finish(
        2,
        run_file,
        tmp_path / "notes",
        "checkpoint.every_tokens=1",
        harm="kill:5:1",
        restarts=2,
    )
    assert "going on from" in done.stderr
    assert consumed(tmp_path / "notes", 2) == one.rows
    assert losses(tmp_path / "run") == pytest.approx(one.losses, abs=1e-5)
    assert done.stdout.count("the model is in") == 1
    facts = files.read_json(tmp_path / "run" / "facts.json")
    assert facts["processes"] == 2
    mine, theirs = (
        load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "run", one.folder)
    )
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=1e-4)


def test_shards_of_two_ranks_go_on_in_one_and_in_four(one: One, run_file: Path, tmp_path: Path) -> None:
    """SIGTERM to one rank saves on all; each token is seen once, and the curve is that of one process."""
    two = ["distribution.strategy=fsdp", "optimizer.name=stable_adamw"]
    done = launch(2, run_file, tmp_path / "notes", *two, harm="terminate:3:1")
    assert done.returncode != 0
    stopped = tmp_path / "run"
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step-000000003"], done.stderr
    before = consumed(tmp_path / "notes", 2)
    assert list(before) == [1, 2, 3]

    alone = tmp_path / "alone"
    shutil.copytree(stopped, alone)
    assert {**before, **in_one_process(read_run(run_file, [f"folder={alone}"]))} == one.rows
    assert losses(alone) == pytest.approx(one.losses, abs=1e-5)

    four = tmp_path / "four"
    shutil.copytree(stopped, four)
    hybrid = ["distribution.strategy=hybrid", "distribution.shard_ranks=2", f"folder={four}"]
    finish(4, run_file, tmp_path / "notes-of-four", *hybrid, "distribution.activation_checkpointing=true")
    assert {**before, **consumed(tmp_path / "notes-of-four", 4)} == one.rows
    assert losses(four) == pytest.approx(one.losses, abs=1e-5)


def test_what_one_process_saved_two_take_over(one: One, run_file: Path, tmp_path: Path) -> None:
    """And a run that stopped and went on with as many ranks has the very weights of one that did not stop."""
    fsdp = "distribution.strategy=fsdp"
    ends = [tmp_path / name for name in ("straight", "stopped")]
    for folder in ends:
        shutil.copytree(one.folder, folder)
        for late in ("checkpoints/step-000000008", "checkpoints/step-000000006", "model"):
            shutil.rmtree(folder / late)
    straight, stopped = ends
    finish(2, run_file, tmp_path / "a", fsdp, f"folder={straight}")
    assert losses(straight) == pytest.approx(one.losses, abs=1e-5)
    launch(2, run_file, tmp_path / "b", fsdp, f"folder={stopped}", harm="terminate:5:0")
    assert (stopped / "checkpoints" / "step-000000005" / "state.json").exists()
    finish(2, run_file, tmp_path / "b", fsdp, f"folder={stopped}")
    assert losses(stopped) == losses(straight)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in ends]
    assert weights[0] == weights[1]


def test_a_student_learns_the_same_on_any_number_of_ranks(
    teacher: Path, run_file: Path, tmp_path: Path
) -> None:
    """And one process takes over what shards have saved, the bridge to the teacher among it."""
    taught = [f"distillation.teacher={teacher}", "distillation.hidden_weight=0.5"]
    alone, replicas, shards = (tmp_path / name for name in ("alone", "replicas", "shards"))
    in_one_process(read_run(run_file, [*taught, f"folder={alone}"]))
    finish(2, run_file, tmp_path / "a", *taught, f"folder={replicas}")
    assert losses(replicas) == pytest.approx(losses(alone), abs=1e-5)
    fsdp = "distribution.strategy=fsdp"
    done = launch(2, run_file, tmp_path / "b", *taught, fsdp, f"folder={shards}", harm="terminate:5:0")
    assert (shards / "checkpoints" / "step-000000005" / "beside.safetensors").exists(), done.stderr
    in_one_process(read_run(run_file, [*taught, f"folder={shards}"]))
    assert losses(shards) == pytest.approx(losses(alone), abs=1e-5)


@pytest.mark.parametrize(("fp8", "tolerance"), [(False, 1e-4), (True, 5e-4)])
def test_shards_in_bf16_have_the_figures_of_autocast(
    fp8: bool, tolerance: float, run_file: Path, tmp_path: Path
) -> None:
    """Matrices travel in bf16, norms and embeddings do not; nor does it matter what is computed again.

    In fp8 a matrix that travelled has been rounded twice.
    """
    alone, two = tmp_path / "alone", tmp_path / "two"
    half = ["precision=bf16", f"fp8={fp8}"]
    spread = ["distribution.strategy=fsdp", "distribution.activation_checkpointing=true"]
    in_one_process(read_run(run_file, [*half, f"folder={alone}"]))
    finish(2, run_file, tmp_path / "notes", *half, *spread, f"folder={two}")
    assert losses(two) == pytest.approx(losses(alone), abs=tolerance)


def test_a_rank_whose_data_do_not_come_is_named_and_the_group_begins_again(
    one: One, run_file: Path, tmp_path: Path
) -> None:
    done = finish(
        2,
        run_file,
        tmp_path / "notes",
        "checkpoint.every_tokens=1",
        "distribution.timeout_seconds=10",
        harm="stall:3:1",
        restarts=3,  # as a machine with other work may be slow once more
    )
    said = " ".join(done.stderr.split())
    assert "no progress for 10 s: rank" in said
    assert "rank 1: waits for the data after step 2" in said
    assert "rank 0: has its data, and waits for the others to have theirs" in said
    assert consumed(tmp_path / "notes", 2) == one.rows


def test_text_that_fails_one_rank_stops_all_before_the_same_step(
    one: One, run_file: Path, tmp_path: Path
) -> None:
    """What was learned is saved, and the restarted group goes on from there."""
    done = finish(2, run_file, tmp_path / "notes", harm="starve:4:1", restarts=1)
    assert "error: a file of this rank is damaged" in done.stderr or "cannot read its text" in done.stderr
    assert "checkpoints/step-000000003" in done.stderr, "no checkpoint was due before the end of step 4"
    assert consumed(tmp_path / "notes", 2) == one.rows
    assert losses(tmp_path / "run") == pytest.approx(one.losses, abs=1e-5)
