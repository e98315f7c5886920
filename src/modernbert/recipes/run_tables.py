"""What runs did, phase by phase and at each length, as rows for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np

from modernbert import config
from modernbert.recipes.history import Column, History, Record, Span
from modernbert.telemetry import human

Row = dict[str, str]
NOTHING = "–"


def phase_rows(history: History) -> list[Row]:
    """Describe each phase of a run, as far as it went."""
    return [_phase_row(history, span) for span in history.spans]


def source_rows(history: History) -> list[Row]:
    """Describe, for each phase's last validation of several sources, what each gave."""
    return [
        {
            "phase": record["phase"],
            "source": found["source"],
            "masked loss": f"{found['loss']:.3f}",
            "accuracy": f"{found['accuracy']:.1%}",
            "masked tokens": human(found["num_masked"]),
        }
        for record in last_of_phases(history, "by_source")
        for found in record["by_source"]
    ]


def length_rows(history: History) -> list[Row]:
    """Describe, for each phase's last validation by length, what each length gave."""
    return [
        {"phase": record["phase"], **length_row(length)}
        for record in last_of_phases(history, "by_length")
        for length in record["by_length"]
    ]


def length_row(length: Record) -> Row:
    """Describe a `LengthEvaluation`, given as its fields."""
    return {
        "length": f"{length['length']:,}",
        "masked loss": f"{length['loss']:.3f}",
        "accuracy": f"{length['accuracy']:.1%}",
        "pseudo-perplexity": f"{length['pseudo_perplexity']:.2f}",
        "masked at once": f"1 in {length['stride']}" if length["stride"] else "1",
        "tokens": human(length["num_tokens"]),
    }


def event_rows(history: History) -> list[Row]:
    """List what was out of the ordinary."""
    return [
        {
            "event": record["event"],
            "step": f"{record['step']:,}" if "step" in record else NOTHING,
            "tokens": human(record["tokens"]),
            "phase": record.get("phase", NOTHING),
            "what": str(record.get("message", "")),
        }
        for record in history.events
    ]


def difference_rows(histories: Sequence[History]) -> list[Row]:
    """Say which settings of the other runs differ from the first one's, but for the folder."""
    first, *others = histories
    return [
        {"run": run.name, "setting": line}
        for run in others
        for line in config.differences(first.settings, run.settings)
        if not line.startswith("`folder`")
    ]


def last_of_phases(history: History, key: str) -> list[Record]:
    """Return the last validation of each phase that has `key`."""
    return list({record["phase"]: record for record in history.validations if key in record}.values())


def duration(seconds: float) -> str:
    """Write a time as `1 day, 2:03:04`."""
    return str(timedelta(seconds=round(seconds)))


def _phase_row(history: History, span: Span) -> Row:
    def part(key: str) -> Column:
        return history.columns[key][span.first : span.stop]

    tokens, seconds = span.end_tokens - span.start_tokens, float(part("seconds").sum())
    held_out = [record for record in history.validations if span.holds(record["tokens"])]
    tail = slice(-max(1, (span.stop - span.first) // 20), None)
    return {
        "phase": span.name,
        "tokens": human(tokens),
        "steps": f"{int(np.nansum(part('steps'))):,}",
        "time": duration(seconds),
        "loss": _mean(part("loss")[tail], part("masked_tokens")[tail], ".3f"),
        "accuracy": _mean(part("accuracy")[tail], part("masked_tokens")[tail], ".1%"),
        "held-out loss": f"{held_out[-1]['loss']:.3f}" if held_out else NOTHING,
        "held-out accuracy": f"{held_out[-1]['accuracy']:.1%}" if held_out else NOTHING,
        "tokens/s": human(tokens / seconds) if seconds else NOTHING,
        "MFU": _mean(part("mfu"), part("seconds"), ".1%"),
        "packed": _mean(part("utilisation"), part("batch_tokens"), ".2%"),
        "wait": f"{part('wait_seconds').sum() / seconds:.2%}" if seconds else NOTHING,
        "memory": _most(part("memory_bytes")),
    }


def _mean(values: Column, weights: Column, form: str) -> str:
    known = np.isfinite(values) & np.isfinite(weights)
    if not weights[known].sum():
        return NOTHING
    return format(float(np.average(values[known], weights=weights[known])), form)


def _most(values: Column) -> str:
    known = values[np.isfinite(values)]
    return f"{human(float(known.max()))}B" if len(known) else NOTHING
