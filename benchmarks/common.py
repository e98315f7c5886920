"""What all benchmarks share: rates, and a result file with the machine, the versions and the commit."""

from __future__ import annotations

import datetime
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modernbert import telemetry

RESULTS = Path(__file__).parent / "results"


def spread(tokens: int, seconds: Sequence[float]) -> dict[str, float]:
    """Tokens a second: median, slowest, fastest, and how often it was measured."""
    rates = sorted(tokens / second for second in seconds)
    return {
        "tokens_per_second": statistics.median(rates),
        "slowest": rates[0],
        "fastest": rates[-1],
        "repetitions": len(rates),
    }


def write(
    name: str, question: str, rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], **more: Any
) -> Path:
    """Save a result, see `save`, and show its rows."""
    path = save(name, question, rows, machine, **more)
    show(question, rows)
    telemetry.note(f"written to {path}")
    return path


def save(
    name: str,
    question: str,
    rows: Sequence[Mapping[str, Any]],
    machine: Mapping[str, Any],
    folder: Path | None = None,
    **more: Any,
) -> Path:
    """Write `results/NAME_MACHINE_DATE.json`, or the same in another folder.

    `machine` is what `machine_facts` said before anything was measured, so that its commit is that of the
    code that ran.
    """
    hardware = machine["gpu"] if machine["device"].startswith("cuda") else machine["cpu"]
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = (folder or RESULTS) / f"{name}_{slug}_{today}.json"
    path.parent.mkdir(exist_ok=True)
    record = {
        "benchmark": name,
        "question": question,
        "date": today,
        "machine": machine,
        **more,
        "rows": list(rows),
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Show rows as a table; what a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    telemetry.table(title, [{key: _short(row.get(key)) for key in columns} for row in rows])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
