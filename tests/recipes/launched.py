"""What the tests of several processes start with `torchrun`: a run that notes its batches and comes to harm.

    torchrun … launched.py RUN.yaml NOTES [path.to.key=value …]

Each rank appends `{"attempt", "step", "rows"}` to `NOTES/RANK.jsonl` for each step it takes; `rows` are the
ids of the tokens of its rows. `HARM=what:step:rank` lets `what` happen to a rank after that step, once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from modernbert import process, telemetry
from modernbert.errors import InputError, ModernBertError
from modernbert.recipes import pretrain as recipe
from modernbert.recipes.settings import read_run
from modernbert.train.loop import StepReport, train

RANK = int(os.environ.get("RANK", "0"))
ATTEMPT = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
WHAT, STEP, WHOM = (os.environ.get("HARM") or "nothing:0:0").split(":")

HARM = {
    "nothing": lambda: None,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "stall": lambda: None,  # before the step
    "starve": lambda: None,  # before the step too
}


def noting(notes: Path) -> Any:
    def watched(model: Any, optimizer: Any, batches: Any, **options: Any) -> Iterator[StepReport]:
        for report in train(model, optimizer, stalling(batches), **options):
            step = report.batch.clock.step
            pairs = zip(report.batch.rows, report.batch.row_numbers, strict=True)
            rows = [row.input_ids.tolist() for row, number in pairs if number is not None]
            with (notes / f"{RANK}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"attempt": ATTEMPT, "step": step, "rows": rows}) + "\n")
            if harmed(step):
                HARM[WHAT]()
            yield report

    return watched


def stalling(batches: Any) -> Iterator[Any]:
    for batch in batches:
        if WHAT == "stall" and harmed(batch.clock.step):
            time.sleep(600)
        if WHAT == "starve" and harmed(batch.clock.step):
            raise InputError("a file of this rank is damaged")
        yield batch


def harmed(step: int) -> bool:
    return (step, RANK, ATTEMPT) == (int(STEP), int(WHOM), 0)


def main(run_file: str, notes: str, *overrides: str) -> int:
    torch.set_num_threads(1)
    telemetry.configure_logging()
    recipe.train = noting(Path(notes))  # type: ignore[attr-defined]
    try:
        result = recipe.pretrain(read_run(Path(run_file), overrides))
    except ModernBertError as error:
        telemetry.note(f"error: {error}")
        return 1
    telemetry.result(result.summary())
    return 0 if result.stopped_by is None else 1


if __name__ == "__main__":
    process.leave(main(*sys.argv[1:]))
