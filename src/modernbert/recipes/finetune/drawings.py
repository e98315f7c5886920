"""Pictures of a fine-tuning run: its curves, how reliable it is, what it confuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modernbert.recipes import page
from modernbert.recipes.drawing import (
    AXIS,
    COLOURS,
    LINES,
    QUIET,
    as_svg,
    new_figure,
    smooth,
    thin,
)
from modernbert.recipes.finetune.calibration import Bin
from modernbert.recipes.finetune.curves import Curves
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.metrics import PRIMARY, Problem
from modernbert.recipes.history import Column
from modernbert.telemetry import human

MOST_LABELS = 50
"""Of a heat map; of more, those that are confused most."""
NUMBERED_LABELS = 25
"""Up to so many, each cell says its number."""
SIZE = (5.6, 2.8)
"""Of a chart, in inches."""


class Line(NamedTuple):
    """One line of a chart: its name, its places, its values, and whether its points are shown or smoothed."""

    name: str
    steps: Column
    values: Column
    style: Literal["points", "noisy", "plain"]
    colour: str
    dashes: str = "-"


def curve_charts(runs: Sequence[Curves], problem: Problem) -> list[str]:
    """Draw the learning curves of one run, or of one per seed, as cards of the page.

    Raises:
        BackendError: matplotlib is not installed.
    """
    primary = PRIMARY[problem]
    charts = [
        ("Loss", "of the examples; line: training, smoothed; dots: evaluations", _losses(runs), "linear"),
        (readable(primary), "of each evaluation", _figures(runs, primary), "linear"),
        ("Learning rate", "of each step", _columns(runs, "learning_rate", "plain"), "zero"),
        ("Throughput", "examples a second", _columns(runs, "examples_per_second", "noisy"), "zero"),
    ]
    cards = []
    for title, note, lines, scale in charts:
        if known := [line for line in lines if np.isfinite(line.values).any()]:
            cards.append(_draw(title, note, known, scale == "zero"))
    return cards


def reliability_chart(bins: Sequence[Bin]) -> str:
    """Draw how often the model is right against how sure it is, as a card of the page.

    Raises:
        BackendError: matplotlib is not installed.
    """
    most = max(part.count for part in bins)
    with new_figure(5.6, 3.6) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=AXIS, linestyle="--", linewidth=1)
        for part in bins:
            width = part.high - part.low
            axes.bar(
                part.low + width / 2,
                part.accuracy,
                width=0.92 * width,
                color=COLOURS[0],
                alpha=0.2 + 0.7 * (part.count / most) ** 0.5,
                linewidth=0,
            )
            axes.plot([part.confidence], [part.accuracy], "o", color=COLOURS[1], markersize=4)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("confidence", color=QUIET)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:.0%}")
        svg = as_svg(figure)
    note = "share that is right, by confidence; on the dashed line the model is as sure as it should be; the "
    return page.chart("Reliability", note + "stronger a bar, the more predictions", svg)


def heat_map(findings: Findings) -> str:
    """Write the confusion matrix as a table whose cells are coloured by their share of the row.

    Of more than 50 labels, those that are confused most stand in it.
    """
    counts = np.array(findings.confusion, dtype=np.int64)
    kept = list(range(len(counts)))
    if len(counts) > MOST_LABELS:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
        kept = sorted(np.argsort(-errors, kind="stable")[:MOST_LABELS].tolist())
    has_numbers = len(kept) <= NUMBERED_LABELS
    names = [escape(findings.labels[index]) for index in kept]
    head = "".join(f'<th class="top"><span>{name}</span></th>' for name in names)
    rows = []
    for name, i in zip(names, kept):
        cells = "".join(_cell(findings, counts, i, j, has_numbers) for j in kept)
        rows.append(f'<tr><th title="{name}">{name}</th>{cells}</tr>')
    note = "rows: what is right; columns: what was predicted; the colour is the share of the row"
    if len(kept) < len(counts):
        note += f"; the {len(kept)} of {len(counts)} labels that are confused most"
    kind = "matrix" if has_numbers else "matrix many"
    return (
        '<figure class="card chart wide"><figcaption><h3>Confusion</h3>'
        f'<p class="quiet">{note}</p></figcaption><div class="scroll"><table class="{kind}">'
        f"<tr><th></th>{head}</tr>{''.join(rows)}</table></div></figure>"
    )


def readable(name: str) -> str:
    """Write the name of a figure as people do: `macro_f1` is `macro F1`."""
    words = {"f1": "F1", "mcc": "MCC", "roc": "ROC", "auc": "AUC", "mse": "MSE", "mae": "MAE", "r2": "R²"}
    name, slash, kind = name.partition("/")
    said = " ".join(words.get(word, word) for word in name.split("_"))
    return (said[0].upper() + said[1:] if said else said) + (f" of {kind}" if slash else "")


def _cell(findings: Findings, counts: NDArray[np.int64], row: int, column: int, has_number: bool) -> str:
    count = int(counts[row, column])
    share = count / max(int(counts[row].sum()), 1)
    said = escape(f"{findings.labels[row]} → {findings.labels[column]}: {count:,} ({share:.1%})")
    if not count:
        return f'<td class="empty" title="{said}">{"·" if has_number else ""}</td>'
    kind = "hit" if row == column else "miss"
    return (
        f'<td class="{kind}" style="--share:{0.08 + 0.72 * share:.2f}" title="{said}">'
        f"{f'{count:,}' if has_number else ''}</td>"
    )


def _losses(runs: Sequence[Curves]) -> list[Line]:
    lines = _columns(runs, "loss", "noisy")
    for name in ("loss", "log_loss"):
        lines += _figures(runs, name)
    return lines


def _columns(runs: Sequence[Curves], key: str, style: Literal["noisy", "plain"]) -> list[Line]:
    return [
        Line(
            "training" if len(runs) == 1 else run.name,
            run.columns["step"],
            run.columns[key],
            style,
            COLOURS[index % len(COLOURS)],
        )
        for index, run in enumerate(runs)
    ]


def _figures(runs: Sequence[Curves], name: str) -> list[Line]:
    """Return a line a run and a split; colours tell the runs apart, or the splits of a single one."""
    lines = []
    for index, run in enumerate(runs):
        splits = list(dict.fromkeys(one.split for one in run.evaluations))
        for place, split in enumerate(splits):
            steps, values = run.figure(split, name)
            colour = COLOURS[(index if len(runs) > 1 else place + 1) % len(COLOURS)]
            shown = split if len(runs) == 1 else f"{run.name}, {split}"
            lines.append(Line(shown, steps, values, "points", colour, LINES[place % len(LINES)]))
    return lines


def _draw(title: str, note: str, lines: Sequence[Line], from_zero: bool) -> str:
    """Draw lines against steps, as a card that tells the values under the pointer."""
    hovered = []
    with new_figure(*SIZE) as figure:
        axes = figure.add_subplot()
        axes.margins(x=0.01)
        for line in lines:
            drawn = thin(line.steps, line.values)
            values = drawn.mean
            if line.style == "noisy":
                axes.fill_between(
                    drawn.tokens, drawn.low, drawn.high, color=line.colour, alpha=0.13, linewidth=0
                )
                axes.plot(drawn.tokens, values, color=line.colour, alpha=0.2, linewidth=0.8)
                values = smooth(values, len(values) / 50)
            axes.plot(
                drawn.tokens,
                values,
                color=line.colour,
                linestyle=line.dashes,
                label=line.name,
                marker="o" if line.style == "points" else "",
                markersize=4.5,
                markeredgecolor="white",
                markeredgewidth=0.8,
            )
            places = [round(step) for step in drawn.tokens.tolist()]
            written = [_written(title)(value) for value in values.tolist()]
            hovered.append(page.HoverLine(line.name, line.colour, places, written))
        if from_zero:
            axes.set_ylim(0, 1.08 * max(float(np.nanmax(line.values)) for line in lines) or 1.0)
        axes.xaxis.set_major_formatter(lambda value, _: human(value))
        axes.yaxis.set_major_formatter(lambda value, _: _written(title)(value))
        axes.set_xlabel("steps", loc="right", fontsize=8)
        if len(lines) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)  # above all lines
        svg = as_svg(figure)
        hover = page.hover(axes.get_position().bounds, axes.get_xlim(), hovered, "steps")
    return page.chart(title, note, svg, hover=hover)


def _written(title: str) -> Callable[[float], str]:
    return human if title == "Throughput" else lambda value: f"{value:.4g}"
