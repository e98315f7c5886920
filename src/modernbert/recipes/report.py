"""The report of one run or of several: a page that needs nothing but itself, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from modernbert import files
from modernbert.recipes import page
from modernbert.recipes.charts import (
    Plot,
    charts_of,
    draw_lengths,
    draw_picture,
    draw_svg,
)
from modernbert.recipes.drawing import COLOURS
from modernbert.recipes.history import History, read_histories
from modernbert.recipes.run_tables import (
    Row,
    difference_rows,
    duration,
    event_rows,
    length_rows,
    phase_rows,
    source_rows,
)
from modernbert.telemetry import human


def write_report(folders: Sequence[Path], output: Path | None = None) -> tuple[Path, Path]:
    """Draw runs as they are now, whether they are over or not.

    Args:
        folders: Of the runs; several are drawn into the same charts.
        output: Where to write, with `.html` and `.png`; by default `report` in the first folder.

    Returns:
        The page and the picture.

    Raises:
        InputError: A folder holds no record of a run.
        BackendError: matplotlib is not installed.
        StorageError: The disk is full or not writable.
    """
    histories = read_histories(folders)
    output = output or folders[0] / "report"
    if output.suffix in (".html", ".png"):
        output = output.with_suffix("")
    html, picture = (output.with_name(f"{output.name}.{kind}") for kind in ("html", "png"))
    draw_picture(histories, picture)
    files.write_text(html, render_page(histories))
    return html, picture


def render_page(histories: Sequence[History]) -> str:
    """Return the report as one HTML page, pictures and all.

    Raises:
        BackendError: matplotlib is not installed.
    """
    names = ", ".join(history.name for history in histories)
    tables = [
        _tables("Phases", histories, phase_rows),
        _tables("Held-out text of each source", histories, source_rows),
        _tables("Held-out text at several lengths", histories, length_rows),
        _tables("Events", histories, event_rows),
    ]
    if len(histories) > 1 and (rows := difference_rows(histories)):
        tables.insert(0, page.section(f"What differs from {histories[0].name}", page.table("", rows)))
    return page.render(
        f"Pretraining: {names}",
        _subtitle(histories),
        _runs(histories),
        _charts(histories),
        *tables,
        *map(_details, histories),
    )


def _subtitle(histories: Sequence[History]) -> str:
    models = {_model(history) for history in histories}
    machines = {_machine(history) for history in histories}
    return " · ".join(sorted(filter(None, models)) + sorted(filter(None, machines)))


def _model(history: History) -> str:
    model = history.settings.get("model") or {}
    layers, width = model.get("num_hidden_layers"), model.get("hidden_size")
    return f"{layers} layers of width {width}, {model.get('vocab_size'):,} words" if layers and width else ""


def _machine(history: History) -> str:
    facts = history.facts
    where = facts.get("gpu") or facts.get("cpu") or ""
    count = facts.get("gpu_count", 1)
    versions = [f"{name} {facts[name]}" for name in ("torch", "modernbert", "commit") if facts.get(name)]
    return ", ".join(filter(None, [f"{count} × {where}" if count > 1 else where, *versions]))


def _runs(histories: Sequence[History]) -> str:
    cards = [_run(history, COLOURS[index % len(COLOURS)]) for index, history in enumerate(histories)]
    return f'<div class="runs">{"".join(cards)}</div>'


def _run(history: History, colour: str) -> str:
    """Show the figures that one asks for first."""
    columns, planned = history.columns, history.planned_tokens
    tokens, seconds = history.spans[-1].end_tokens, float(columns["seconds"].sum())
    figures = {
        "tokens": human(tokens),
        "steps": f"{int(columns['step'][-1]):,}",
        "training": duration(seconds),
    }
    if history.validations:
        last = history.validations[-1]
        figures |= {"held-out loss": f"{last['loss']:.3f}", "held-out accuracy": f"{last['accuracy']:.1%}"}
    if seconds:
        figures["tokens a second"] = human((tokens - history.spans[0].start_tokens) / seconds)
    share = min(tokens / planned, 1.0) if planned else 1.0
    state = f"{share:.0%} of {human(planned)} tokens" if planned else ""
    if share < 1 and np.isfinite(left := columns["seconds_left"][-1]):
        state += f", {duration(left)} to go"
    return (
        f'<div class="card run"><h3><i class="swatch" style="background:{colour}"></i>{escape(history.name)}'
        f'<span class="quiet">{escape(state)}</span></h3>{page.figures(figures)}'
        f'<div class="bar"><i style="width:{share:.1%};background:{colour}"></i></div></div>'
    )


def _charts(histories: Sequence[History]) -> str:
    cards = []
    for chart in charts_of(histories):
        is_wide = chart.key == "loss"
        plot = draw_svg(chart, histories, *((11.4, 4.2) if is_wide else (5.6, 2.6)))
        cards.append(page.chart(chart.title, chart.note, plot.svg, is_wide, _hover(plot, histories)))
    if svg := draw_lengths(histories, 5.6, 2.6):
        note = "pseudo-perplexity of the same held-out text, seen at each length"
        cards.insert(2, page.chart("Context", note, svg))
    return page.charts(*cards)


def _hover(plot: Plot, histories: Sequence[History]) -> str:
    """Give the page the values that it shows under the pointer."""
    lines = [
        page.HoverLine(
            history.name,
            COLOURS[index % len(COLOURS)],
            [round(tokens) for tokens in line.tokens.tolist()],
            [plot.chart.unit(value) for value in line.mean.tolist()],
        )
        for index, (history, line) in enumerate(zip(histories, plot.lines))
    ]
    return page.hover(plot.box, plot.tokens, lines)


def _tables(title: str, histories: Sequence[History], rows_of: Callable[[History], list[Row]]) -> str:
    """Put one table a run under a heading; nothing if no run has a row."""
    tables = [
        page.table(history.name if len(histories) > 1 else "", rows)
        for history in histories
        if (rows := rows_of(history))
    ]
    return page.section(title, *tables) if tables else ""


def _details(history: History) -> str:
    """Show the settings and the machine, folded."""
    parts = {"settings": history.settings, "machine": history.facts}
    return "".join(page.details(f"{history.name}: {name}", tree) for name, tree in parts.items() if tree)
