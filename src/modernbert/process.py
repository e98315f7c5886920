"""This process: whether it is one of several, and how it ends."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from modernbert import telemetry


def is_launched() -> bool:
    """Whether this is one of several processes that a launcher such as `torchrun` started."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def leave(code: int) -> NoReturn:
    """End this process; one of several without taking the interpreter down.

    A thread of gloo may hold the last tensor that it sent for a moment longer, and wants the interpreter to
    let go of it. Up to Python 3.13 a thread that wants it too late is ended so that the whole process aborts,
    and the launcher takes a run that is done and saved for one that failed.

    Args:
        code: Exit code, 0 for success.
    """
    if not is_launched():
        sys.exit(code)
    atexit._run_exitfuncs()  # os._exit leaves these out
    telemetry.flush()
    os._exit(code)
