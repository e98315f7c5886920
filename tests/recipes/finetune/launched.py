"""What the test of several processes starts with `torchrun`: one fine-tuning run after the other.

    torchrun … launched.py RUN.yaml[@STEP] …

`@STEP` lets the second rank get a SIGTERM after that step.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from modernbert import process, telemetry
from modernbert.recipes.finetune import outcome
from modernbert.recipes.finetune.settings import read_run
from modernbert.recipes.finetune.trials import finetune_all
from modernbert.recipes.tuning import session
from modernbert.train.supervised import TuningReport, tune

RANK = int(os.environ["RANK"])


def stopping_after(step: int) -> Any:
    def stopped(*arguments: Any, **options: Any) -> Iterator[TuningReport]:
        for report in tune(*arguments, **options):
            if report.step.number == step and RANK == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield report

    return stopped


def main(*runs: str) -> None:
    torch.set_num_threads(1)
    telemetry.configure_logging()
    outcome.write_report = print  # type: ignore[assignment]  # its drawings take time
    for run in runs:
        file, _, step = run.partition("@")
        session.tune = stopping_after(int(step)) if step else tune  # type: ignore[attr-defined]
        telemetry.result(finetune_all(read_run(Path(file), {}))[0][1].summary())


if __name__ == "__main__":
    main(*sys.argv[1:])
    process.leave(0)
