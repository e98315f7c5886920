"""What a benchmark found as files: every figure as JSON, and the tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modernbert import files

Rows = list[dict[str, str]]
"""A table: rows of equal keys, all text."""

NAME = "results"


def save(
    folder: Path, tree: Mapping[str, Any], headline: str, tables: Mapping[str, Rows], remarks: Sequence[str]
) -> None:
    """Write `results.json` and `results.md`.

    Args:
        folder: Where; made if it is not there.
        tree: All figures as plain values.
        headline: What was measured, in a line.
        tables: By title.
        remarks: What a reader of the tables must know.

    Raises:
        StorageError: The disk is full or not writable.
    """
    files.write_json(folder / f"{NAME}.json", tree)
    files.write_text(folder / f"{NAME}.md", markdown(headline, tables, remarks))


def markdown(headline: str, tables: Mapping[str, Rows], remarks: Sequence[str]) -> str:
    """Write tables and remarks as Markdown. For the arguments see `save`."""
    parts = [f"# {headline}"]
    for title, rows in tables.items():
        lines = [[*rows[0]], ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts.append("\n".join(f"- {remark}" for remark in remarks))
    return "\n\n".join(parts) + "\n"
