"""How a process of several ends: with its code, its output written, and what was to be done at exit done."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LEAVING = """
import atexit, sys, threading
from modernbert import process
atexit.register(print, "at exit")
threading.Thread(target=threading.Event().wait, daemon={daemon}).start()
print("a result")
print("a note", file=sys.stderr)
process.leave({code})
"""


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("size", ["1", "2"])
def test_nothing_is_lost_and_the_code_is_kept(size: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVING.format(daemon=True, code=code)],
        env={**os.environ, "WORLD_SIZE": size},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "a result\nat exit\n", "a note\n")


def test_one_of_several_does_not_wait_for_threads() -> None:
    """As it would for gloo's, which the interpreter cannot end."""
    subprocess.run(
        [sys.executable, "-c", LEAVING.format(daemon=False, code=0)],
        env={**os.environ, "WORLD_SIZE": "2"},
        stdout=subprocess.DEVNULL,
        timeout=600,
        check=True,
    )
