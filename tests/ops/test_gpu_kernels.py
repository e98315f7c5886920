"""The Triton kernels: `gpu_kernels.py`, interpreted on a CPU and compiled on a GPU.

In a process of its own, as Triton must be told before it is imported, by whatever test does so first.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("gpu_kernels.py")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(
    "interprets", ["1", pytest.param("0", marks=pytest.mark.gpu)], ids=["interpreted", "compiled"]
)
def test_the_kernels(interprets: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    environment = {**os.environ, "TRITON_INTERPRET": interprets}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
