"""What the test of several processes starts with `torchrun`: one run after the other.

torchrun … launched.py RUN.yaml …
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from modernbert import process, telemetry
from modernbert.recipes.retriever.session import train_retriever
from modernbert.recipes.retriever.settings import read_run

if __name__ == "__main__":
    torch.set_num_threads(1)
    telemetry.configure_logging()
    for path in sys.argv[1:]:
        telemetry.result(train_retriever(read_run(Path(path))).summary())
    process.leave(0)
