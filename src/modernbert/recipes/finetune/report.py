"""The report of a fine-tuning run: `report.json` for machines, `report.html` for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from modernbert import config, files
from modernbert.errors import InputError
from modernbert.recipes import page
from modernbert.recipes.finetune.about import About, command, read_about
from modernbert.recipes.finetune.curves import Curves, read_curves
from modernbert.recipes.finetune.drawings import curve_charts, heat_map, readable, reliability_chart
from modernbert.recipes.finetune.findings import Findings, read_findings
from modernbert.recipes.run_tables import NOTHING, Row, duration
from modernbert.recipes.tuning.selection import LOWER_IS_BETTER
from modernbert.telemetry import human

HEADLINE_FIGURES = 6
SHARES = ("pearson", "spearman", "mcc", "r2", "best_threshold")
"""Figures that are written as numbers although they are no losses: they are no shares of anything."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that a run's folder says of it.

    Attributes:
        folder: Where it is, as it was given.
        about: What it was.
        findings: Of each split, the one that counts first.
        curves: One a seed; those that are missing are left out.
        settings: As resolved; empty if `run.yaml` is missing.
        facts: Of the machine; empty if `facts.json` is missing.
    """

    folder: Path
    about: About
    findings: tuple[Findings, ...]
    curves: tuple[Curves, ...]
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {
            "about": config.to_tree(self.about),
            "findings": {found.split: found.to_json() for found in self.findings},
            "curves": [run.to_json() for run in self.curves],
            "settings": config.to_tree(self.settings),
            "machine": dict(self.facts),
        }


def read_record(folder: Path) -> RunRecord:
    """Read what a run's folder holds.

    `about.json` and `findings/` must be there; `metrics.jsonl` of each seed, `run.yaml` and `facts.json` may.

    Raises:
        InputError: What must be there is missing, or holds something else.
        ConfigError: `run.yaml` is not a run file.
    """
    about = read_about(folder)
    run_file, facts = folder / "run.yaml", folder / "facts.json"
    names = [f"seed {seed}" for seed in about.seeds] if len(about.seeds) == len(about.runs) else about.runs
    return RunRecord(
        folder=folder,
        about=about,
        findings=read_findings(folder),
        curves=tuple(
            read_curves(folder / run, name)
            for run, name in zip(about.runs, names)
            if (folder / run / "metrics.jsonl").exists()
        ),
        settings=config.load(run_file) if run_file.exists() else {},
        facts=files.read_json(facts) if facts.exists() else {},
    )


def write_report(folder: Path) -> tuple[Path, Path]:
    """Write the report of a run into its folder.

    Returns:
        `report.json` and `report.html`.

    Raises:
        InputError: As `read_record`.
        BackendError: matplotlib is not installed.
        StorageError: The disk is full or not writable.
    """
    record = read_record(folder)
    html = render_page(record)
    data, shown = folder / "report.json", folder / "report.html"
    files.write_json(data, record.to_json())
    files.write_text(shown, html)
    return data, shown


def render_page(record: RunRecord) -> str:
    """Return the report as one HTML page, pictures and all.

    Raises:
        BackendError: matplotlib is not installed.
    """
    if not record.findings:
        raise InputError("a report needs findings of at least one split; there are none; evaluate the model")
    main = record.findings[0]
    return page.render(
        f"Fine-tuning: {record.about.model}",
        _subtitle(record),
        _headline(record.about, main),
        _learning(record, main),
        *(_split(found, is_only=len(record.findings) == 1) for found in record.findings),
        _data(record.about),
        _use(record),
        page.details("settings", record.settings) if record.settings else "",
        page.details("machine", record.facts) if record.facts else "",
    )


def figure_of(name: str, value: float) -> str:
    """Write a figure: shares as per cent, others as numbers."""
    if name in LOWER_IS_BETTER or name in SHARES:
        return f"{value:.4g}"
    return f"{100 * value:.2f}%" if abs(value) < 1 else f"{100 * value:.0f}%"


def range_of(findings: Findings, name: str) -> str:
    """Write a figure's interval; `–` where it has none."""
    interval = findings.intervals.get(name)
    if interval is None:
        return NOTHING
    return f"{figure_of(name, interval.low)} to {figure_of(name, interval.high)}"


def _subtitle(record: RunRecord) -> str:
    about, facts = record.about, record.facts
    versions = [f"{name} {facts[name]}" for name in ("modernbert", "torch", "commit") if facts.get(name)]
    parts = [
        f"{about.task}, from {about.base_model}",
        f"{human(about.num_parameters)} parameters"
        + (f", {human(about.num_trained)} trained" if about.num_trained < about.num_parameters else ""),
        str(facts.get("gpu") or facts.get("cpu") or ""),
        ", ".join(versions),
    ]
    return " · ".join(filter(None, parts))


def _headline(about: About, main: Findings) -> str:
    """Show the figure that counts, with its interval, and what the run came to."""
    value, interval = main.figures.get(main.primary), range_of(main, main.primary)
    lead = "no example was evaluated"
    if value is not None:
        lead = f"{readable(main.primary)} on {main.split}"
        lead += "" if interval == NOTHING else f"; 95% interval {interval}"
    if found := main.spread.get(main.primary):
        mean, deviation = (figure_of(main.primary, part) for part in (found.mean, found.deviation))
        lead += f"; over {found.count} seeds {mean} ± {deviation}"
    shown = {}
    shown["examples evaluated"] = f"{main.num_examples:,}"
    if (train := about.part("train")) is not None:
        shown["examples trained on"] = f"{train.num_examples:,}"
    shown["steps"] = f"{about.num_steps:,}"
    if about.best_step is not None:
        shown["best after step"] = f"{about.best_step:,}"
    shown["time"] = duration(about.seconds)
    large = "" if value is None else f"<b>{figure_of(main.primary, value)}</b>"
    return (
        f'<div class="card headline"><p class="lead">{large}<span>{escape(lead)}</span></p>'
        f"{page.figures(shown)}</div>"
    )


def _learning(record: RunRecord, main: Findings) -> str:
    cards = curve_charts(record.curves, main.problem) if record.curves else []
    return f"<h2>Learning</h2>{page.charts(*cards)}" if cards else ""


def _split(found: Findings, is_only: bool) -> str:
    """Show everything of one split."""
    title = "Figures" if is_only else f"Figures on {found.split}"
    parts = [page.section(title, _figure_table(found))] if found.figures else []
    pictures = []
    if found.confusion:
        pictures.append(heat_map(found))
    if found.reliability:
        pictures += [reliability_chart(found.reliability), _calibration(found)]
    if pictures:
        title = "What it confuses, and how sure it is" if found.confusion else "How sure it is"
        parts.append(f"<h2>{title if is_only else f'{title}, on {escape(found.split)}'}</h2>")
        parts.append(page.charts(*pictures))
    if found.per_label:
        kind = "Types" if found.problem == "tags" else "Labels"
        parts.append(page.section(f"{kind} of {found.split}", page.table("", _label_rows(found))))
    if found.hardest:
        parts.append(page.section(f"Hardest examples of {found.split}", page.table("", _hard_rows(found))))
    return "\n".join(parts)


def _figure_table(found: Findings) -> str:
    rows: list[Row] = []
    for name, value in found.figures.items():
        if "/" in name:  # of one type: in the table of types
            continue
        spread = found.spread.get(name)
        rows.append(
            {
                "figure": readable(name) + (" (the one that counts)" if name == found.primary else ""),
                "value": figure_of(name, value),
                "95% interval": range_of(found, name),
                "mean of seeds": figure_of(name, spread.mean) if spread else NOTHING,
                "deviation": figure_of(name, spread.deviation) if spread else NOTHING,
                "least": figure_of(name, spread.least) if spread else NOTHING,
                "most": figure_of(name, spread.most) if spread else NOTHING,
            }
        )
    note = (
        f"{found.num_examples:,} examples. An interval is of the examples (bootstrap): other examples of the "
        "same kind would give a figure within it. It says nothing of other seeds."
    )
    return page.table("", rows, note)


def _calibration(found: Findings) -> str:
    """Say in words how far the probabilities can be believed."""
    total = sum(part.count for part in found.reliability)
    confidence = sum(part.count * part.confidence for part in found.reliability) / total
    accuracy = sum(part.count * part.accuracy for part in found.reliability) / total
    shown = {"mean confidence": f"{confidence:.1%}", "share that is right": f"{accuracy:.1%}"}
    if (error := found.figures.get("calibration_error")) is not None:
        shown["expected calibration error"] = f"{error:.3g}"
    said = "The model is about as sure as it should be."
    if abs(confidence - accuracy) > 0.02:
        said = f"The model is {'too sure' if confidence > accuracy else 'not sure enough'} of itself."
    if found.temperature is not None:
        shown["temperature"] = f"{found.temperature:.3g}"
        said += (
            " Logits divided by the temperature, fitted on validation, give probabilities that fit better."
        )
    if any(row.threshold is not None for row in found.per_label):
        said += " The table of labels says from which probability on each is best given."
    return (
        f'<div class="card chart"><h3>Calibration</h3>{page.figures(shown)}'
        f'<p class="quiet note">{escape(said)}</p></div>'
    )


def _label_rows(found: Findings) -> list[Row]:
    return [
        {
            "label": row.label,
            "examples": f"{row.support:,}",
            "given": f"{row.predicted:,}",
            "precision": figure_of("precision", row.precision),
            "recall": figure_of("recall", row.recall),
            "F1": figure_of("f1", row.f1),
            "threshold": NOTHING if row.threshold is None else f"{row.threshold:.3f}",
        }
        for row in found.per_label
    ]


def _hard_rows(found: Findings) -> list[Row]:
    return [
        {
            "loss": f"{example.loss:.2f}",
            "text": example.text,
            "gold": example.gold,
            "predicted": example.predicted,
            "place": example.place,
        }
        for example in found.hardest
    ]


def _data(about: About) -> str:
    rows: list[Row] = [
        {
            "split": part.split,
            "examples": f"{part.num_examples:,}",
            "tokens": human(part.num_tokens),
            "tokens an example": f"{part.num_tokens / max(part.num_examples, 1):.0f}",
            "from": part.source,
        }
        for part in about.data
    ]
    cards = [page.table("", rows)] if rows else []
    if about.remarks:
        items = "".join(f"<li>{escape(remark)}</li>" for remark in about.remarks)
        cards.append(f'<div class="card"><h3>Remarks</h3><ul class="remarks">{items}</ul></div>')
    return page.section("Data", *cards) if cards else ""


def _use(record: RunRecord) -> str:
    line = command(record.about, str(record.folder))
    seeds: Sequence[int] = record.about.seeds
    note = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    return page.section(
        "Use it",
        f'<div class="card"><pre class="use"><code>{escape(line)}</code></pre>'
        f'<p class="quiet note">Trained with {escape(note)}.</p></div>',
    )
