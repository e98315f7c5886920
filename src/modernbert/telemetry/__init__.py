"""What a run tells the world: progress with rate and ETA, JSON lines, tables. The only module that prints.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from modernbert.files import storage_errors
from modernbert.telemetry.words import beside, human

__all__ = [
    "JsonLines",
    "Meter",
    "accept_any_text",
    "configure_logging",
    "flush",
    "human",
    "is_heard",
    "note",
    "progress",
    "result",
    "result_json",
    "table",
]

SECONDS_BETWEEN_LINES = 10.0


class Meter(Protocol):
    """What shows the progress of one long piece of work."""

    def advance(self, amount: float, **facts: object) -> None:
        """Say that `amount` more units are done, and what is worth showing beside it."""


def configure_logging(*, verbose: bool = False) -> None:
    """Send the package's log to stderr: what it chose and why; with `verbose` also details."""
    from modernbert.telemetry import drawn  # deferred, here and below: who loads a model draws nothing

    logger = logging.getLogger("modernbert")
    logger.handlers = [drawn.log_handler()]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO if is_heard() else logging.WARNING)


def accept_any_text() -> None:
    r"""Let stdout write what its encoding lacks as `\u0120`, as stderr does; UTF-8 lacks nothing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Hand over all that was written so far, as a process that ends at once must."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def is_heard() -> bool:
    """Whether this process speaks: of several that a launcher started, the first does. Warnings all do."""
    return os.environ.get("RANK", "0") == "0"


def result(text: str) -> None:
    """Write a result to stdout."""
    if is_heard():
        print(text)


def result_json(value: Any) -> None:
    """Write a result to stdout as one line of JSON, in ASCII if stdout is not UTF-8."""
    result(json.dumps(value, ensure_ascii=str(sys.stdout.encoding).lower() != "utf-8"))


def note(text: str = "") -> None:
    """Write a remark to stderr."""
    if is_heard():
        print(text, file=sys.stderr, flush=True)


def table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Show rows of equal keys as a table on stderr."""
    from modernbert.telemetry import drawn

    if is_heard():
        drawn.table(title, rows)


@contextlib.contextmanager
def progress(title: str, total: float | None, unit: str, done: float = 0) -> Iterator[Meter]:
    """Show work in progress with its rate and time to go: a bar on a terminal, else now and then a line.

    Args:
        title: What is being done.
        total: Units of work in all; None if unknown.
        unit: What a unit is called.
        done: Units done before, which count for the bar and not for the rate.
    """
    if sys.stderr.isatty() and is_heard():
        from modernbert.telemetry import drawn

        with drawn.Bar(title, total, unit, done) as bar:
            yield bar
    else:
        with _Lines(title, total, unit, done) as lines:
            yield lines


class JsonLines:
    """A file of one JSON object a line, each written through at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


class _Lines:
    """A line every ten seconds, and one at the end."""

    def __init__(self, title: str, total: float | None, unit: str, done: float) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = self._start = self._told = done
        self._began = self._spoke = time.monotonic()
        self._facts = ""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._done != self._told:
            self._speak(time.monotonic())

    def advance(self, amount: float, **facts: object) -> None:
        self._done += amount
        self._facts = beside(facts)
        now = time.monotonic()
        if now - self._spoke >= SECONDS_BETWEEN_LINES:
            self._speak(now)

    def _speak(self, now: float) -> None:
        self._spoke, self._told = now, self._done
        seconds = now - self._began
        rate = (self._done - self._start) / seconds if seconds else 0.0
        whole, left = "", ""
        if self._total is not None:
            whole = f"/{human(self._total)}"
            if rate and self._done < self._total:
                left = f", {timedelta(seconds=round((self._total - self._done) / rate))} to go"
        amount = f"{human(self._done)}{whole} {self._unit}, {human(rate)}/s{left}"
        note(f"{self._title}: {amount}  {self._facts}".rstrip())
