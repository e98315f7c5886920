from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modernbert.errors import InputError
from modernbert.recipes.finetune.curves import read_curves


def write(folder: Path, *records: dict[str, object], rest: str = "") -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + rest, encoding="utf-8")
    return folder


def step(number: int, loss: float = 1.0) -> dict[str, object]:
    return {"event": "step", "step": number, "epoch": number / 2, "loss": loss, "learning_rate": 1e-5}


def evaluation(number: int, split: str = "validation", **figures: float) -> dict[str, object]:
    return {"event": "evaluation", "step": number, "epoch": 1.0, "split": split, "figures": figures}


def test_steps_and_evaluations_are_read(tmp_path: Path) -> None:
    other = {"event": "note", "step": 1, "message": "…"}
    run = write(
        tmp_path, step(1, 3.0), other, step(2, 2.0), evaluation(2, f1=0.5), evaluation(2, "test", f1=1)
    )
    curves = read_curves(run, "mine")
    assert curves.name == "mine"
    assert curves.columns["loss"].tolist() == [3, 2]
    assert np.isnan(curves.columns["tokens_per_second"]).all()
    assert [part.tolist() for part in curves.figure("validation", "f1")] == [[2], [0.5]]
    assert [len(part) for part in curves.figure("validation", "accuracy")] == [0, 0]
    assert (
        json.loads(json.dumps(curves.to_json(), allow_nan=False))["steps"]["tokens_per_second"] == [None] * 2
    )


def test_what_a_resumed_run_took_back_is_left_out(tmp_path: Path) -> None:
    run = write(
        tmp_path,
        step(1),
        step(2),
        evaluation(2, f1=0.1),
        step(3),
        step(2, 5.0),
        evaluation(2, f1=0.2),
        rest='{"ev',
    )
    curves = read_curves(run)
    assert curves.columns["step"].tolist() == [1, 2]
    assert curves.columns["loss"].tolist() == [1, 5]
    assert curves.figure("validation", "f1")[1].tolist() == [0.2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "no JSON",
            r"metrics\.jsonl:1` is not a record of a run: 'no JSON'; it must be .* with `event` and `step`",
        ),
        ('{"event": "evaluation", "step": 1}', "is not the record of a fine-tuning run"),
        (
            '{"event": "evaluation", "step": 1, "split": "x", "figures": 3}',
            "is not the record of a fine-tuning run",
        ),
    ],
)
def test_something_else_is_refused(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_curves(write(tmp_path, rest=line + "\n"))
