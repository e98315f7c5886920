"""The command line as a program: `modernbert`, and `python -m modernbert`."""

from __future__ import annotations

from modernbert import process
from modernbert.cli import main


def run() -> None:
    """Run the command line and end the process with its exit code."""
    process.leave(main())


if __name__ == "__main__":
    run()
