"""What a measure found, as text for people and as values for machines, and the files of it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modernbert import files, telemetry
from modernbert.errors import BackendError
from modernbert.runtime import machine_facts

Rows = list[dict[str, str]]
"""A table: rows of equal keys, all text."""

NAME = "results"
NOTHING = "–"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found.

    Attributes:
        headline: A line that says what was measured.
        tables: By their title.
        remarks: What a reader of the tables must know.
        figures: All of it as plain values.
        draw: Draws a picture into a folder; None: there is none to draw.
        machine: Its facts, with versions and commit.
        date: When.
    """

    headline: str
    tables: Mapping[str, Rows]
    remarks: Sequence[str]
    figures: Mapping[str, Any]
    draw: Callable[[Path], None] | None = None
    machine: Mapping[str, Any] = field(default_factory=machine_facts)
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).date().isoformat())

    def to_json(self) -> dict[str, Any]:
        """Return the figures, and when and where they were taken."""
        return {"date": self.date, "machine": self.machine, **self.figures}

    def save(self, folder: Path) -> None:
        """Write `results.json`, `results.md` and the picture into a folder, which is made if it is not there.

        Where matplotlib is not installed, a note says so.

        Raises:
            StorageError: The disk is full or not writable.
        """
        files.write_json(folder / f"{NAME}.json", self.to_json())
        files.write_text(folder / f"{NAME}.md", self.markdown())
        if self.draw is not None:
            try:
                self.draw(folder)
            except BackendError as error:
                telemetry.note(f"no picture: {error}")

    def markdown(self) -> str:
        """Write headline, tables and remarks as Markdown."""
        parts = [f"# {self.headline}"]
        for title, rows in self.tables.items():
            lines = [[*rows[0]], ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
            parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts.append("\n".join(f"- {remark}" for remark in self.remarks))
        return "\n\n".join(parts) + "\n"


def percent(share: float | None) -> str:
    """Write a share as people read it; None: there is none."""
    return NOTHING if share is None else f"{share:.1%}"
