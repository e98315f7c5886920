"""A retriever trained by two processes (gloo, CPU): all share their negatives, and it is the run of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modernbert import files
from modernbert.recipes.retriever.session import train_retriever
from modernbert.recipes.retriever.settings import RetrieverRun
from modernbert.train.state import read_clock
from tests.recipes.tuned import check_near, launch_two, weights, without_dropout, write_run

from .conftest import Made, made_pairs

pytestmark = pytest.mark.slow

LAUNCHED = Path(__file__).with_name("launched.py")

RUNS = {"ddp": ["symmetric=true"], "fsdp": ["distribution.strategy=fsdp"]}


def figures(folder: Path) -> list[float]:
    """The losses and the norms of the gradients of all steps, and the tokens at the end."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    steps = [line[name] for line in lines if line["event"] == "step" for name in ("loss", "gradient_norm")]
    return [*steps, read_clock(max((folder / "checkpoints").glob("step-*"))).tokens]


def test_two_processes_give_what_one_gives(
    plan: Callable[..., RetrieverRun], made: Made, tmp_path: Path
) -> None:
    model = without_dropout(made.model, tmp_path / "model")
    rows = [
        {**row, "negatives": [made_pairs()[index - 7]["positive"]] * (index % 2)}
        for index, row in enumerate(made_pairs())
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def planned(name: str, where: str) -> RetrieverRun:
        slow = [
            f"model={model}",
            f"data.pairs=[{pairs}]",
            "tuning.learning_rate=1e-4",
            "tuning.batch_size=15",
        ]
        return plan(*slow, *RUNS[name], f"folder={tmp_path / where / name}")

    printed = launch_two(
        LAUNCHED, *(write_run(planned(name, "two"), tmp_path / f"{name}.yaml") for name in RUNS)
    )
    assert printed.count("validation: loss") == len(RUNS), "one process speaks"
    for name in RUNS:
        one = train_retriever(planned(name, "one"))
        found, expected = figures(tmp_path / "two" / name), figures(tmp_path / "one" / name)
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
        judged = files.read_json(tmp_path / "two" / name / "result.json")["figures"]["validation"]
        assert judged == pytest.approx(one.figures["validation"], abs=1e-5)
        check_near(weights(tmp_path / "one" / name), weights(tmp_path / "two" / name))
