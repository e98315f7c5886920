"""Pictures of one run or of several: each figure against tokens, the phases shaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from modernbert import files
from modernbert.recipes.drawing import (
    BAND,
    COLOURS,
    INK,
    LINES,
    QUIET,
    Thinned,
    as_svg,
    new_figure,
    smooth,
    thin,
)
from modernbert.recipes.history import Column, History
from modernbert.recipes.run_tables import last_of_phases
from modernbert.telemetry import human

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Plot:
    """One chart as drawn.

    Attributes:
        chart: What it shows.
        svg: The picture.
        box: Left, bottom, width and height of the part within the axes, as shares of the picture.
        tokens: The first and the last on the axis.
        lines: One a run.
    """

    chart: Chart
    svg: str
    box: tuple[float, float, float, float]
    tokens: tuple[float, float]
    lines: list[Thinned]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture.

    Attributes:
        key: Its name.
        title: What is drawn.
        note: How to read it.
        values: Gives the line of a run, a value a record; all NaN where it has none.
        held_out: Name of the figure in the records of validations that belongs beside it.
        scale: Of the axis of values; `zero`: linear from 0 on.
        is_noisy: Whether the line is smoothed, and the range of its values drawn behind it.
        unit: Writes a value for people.
    """

    key: str
    title: str
    note: str
    values: Callable[[History], Column]
    held_out: str | None = None
    scale: Literal["linear", "zero", "log"] = "linear"
    is_noisy: bool = False
    unit: Callable[[float], str] = human


def _number(value: float) -> str:
    return f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.4g}%"


def _scientific(value: float) -> str:
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}" if value else "0"


def _column(key: str) -> Callable[[History], Column]:
    return lambda history: history.columns[key]


CHARTS = (
    Chart(
        key="loss",
        title="Masked loss",
        note="nats a masked token; lines: training, smoothed, in the range of its steps; dots: held out; "
        "carets: events",
        values=_column("loss"),
        held_out="loss",
        unit=_number,
        is_noisy=True,
    ),
    Chart(
        key="accuracy",
        title="Masked accuracy",
        note="share of the masked tokens guessed right",
        values=_column("accuracy"),
        held_out="accuracy",
        unit=_percent,
        is_noisy=True,
    ),
    Chart(
        key="objective",
        title="Loss with a teacher",
        note="what is minimised, a masked token: masked loss, divergence and distance as they are weighted",
        values=_column("objective"),
        unit=_number,
        is_noisy=True,
    ),
    Chart(
        key="divergence",
        title="Divergence from the teacher",
        note="of the guesses, nats a masked token, times the square of the temperature",
        values=_column("divergence"),
        unit=_number,
        is_noisy=True,
    ),
    Chart(
        key="hidden_distance",
        title="Distance from the teacher",
        note="of the hidden states at length 1, squared, a token: 0 to 4",
        values=_column("hidden_distance"),
        unit=_number,
        is_noisy=True,
    ),
    Chart(
        key="learning_rate",
        title="Learning rate",
        note="of each step",
        values=_column("learning_rate"),
        scale="zero",
        unit=_scientific,
    ),
    Chart(
        key="throughput",
        title="Throughput",
        note="tokens a second, waiting for data included",
        values=_column("tokens_per_second"),
        scale="zero",
        is_noisy=True,
    ),
    Chart(
        key="mfu",
        title="Model FLOPs utilisation",
        note="the model's own operations over what the device does at most",
        values=_column("mfu"),
        scale="zero",
        unit=_percent,
        is_noisy=True,
    ),
    Chart(
        key="gradient_norm",
        title="Gradient norm",
        note="over all parameters, before the step",
        values=_column("gradient_norm"),
        scale="log",
        is_noisy=True,
    ),
    Chart(
        key="batch",
        title="Batch",
        note="tokens a step",
        values=_column("batch_tokens"),
        scale="zero",
    ),
    Chart(
        key="utilisation",
        title="Packing",
        note="share of the rows' places that hold a token",
        values=_column("utilisation"),
        unit=_percent,
        is_noisy=True,
    ),
    Chart(
        key="wait",
        title="Waiting for data",
        note="share of a step's time",
        values=lambda history: history.columns["wait_seconds"] / history.columns["seconds"],
        scale="zero",
        unit=_percent,
        is_noisy=True,
    ),
    Chart(
        key="memory",
        title="Memory",
        note="most in use: of the device, or of the process on a CPU",
        values=_column("memory_bytes"),
        scale="zero",
        unit=lambda value: f"{human(value)}B" if value else "0",
    ),
)
"""Every picture against tokens."""
PICTURE = ("loss", "accuracy", "learning_rate", "throughput", "gradient_norm", "batch")
"""Those of the PNG."""


def charts_of(histories: Sequence[History]) -> list[Chart]:
    """Return the charts for which at least one run has values."""
    return [chart for chart in CHARTS if any(np.isfinite(chart.values(run)).any() for run in histories)]


def draw_picture(histories: Sequence[History], path: Path) -> None:
    """Draw loss, accuracy, learning rate, throughput and more of one run or several, as a PNG.

    Raises:
        BackendError: matplotlib is not installed.
        StorageError: The disk is full or not writable.
    """
    with new_figure(13, 8) as figure:
        places = figure.subplot_mosaic(
            [["loss", "loss", "accuracy"], ["loss", "loss", "learning_rate"], list(PICTURE[3:])]
        )
        for chart in charts_of(histories):
            if chart.key in places:
                axes = places[chart.key]
                axes.set_title(chart.title, loc="left", fontsize=10.5, fontweight="bold", pad=16)
                draw_chart(axes, chart, histories, inches=8 if chart.key == "loss" else 4)
        with files.atomic_file(path) as temporary:
            figure.savefig(temporary, dpi=130, format="png", facecolor="white")


def draw_svg(chart: Chart, histories: Sequence[History], width: float, height: float) -> Plot:
    """Draw one chart as an SVG to stand in a page.

    Args:
        chart: Which one.
        histories: Of which runs.
        width: In inches, which sets the size of its letters beside it.
        height: In inches.

    Raises:
        BackendError: matplotlib is not installed.
    """
    with new_figure(width, height) as figure:
        axes = figure.add_subplot()
        lines = draw_chart(axes, chart, histories, inches=0.9 * width)
        return Plot(chart, as_svg(figure), axes.get_position().bounds, axes.get_xlim(), lines)


def draw_lengths(histories: Sequence[History], width: float, height: float) -> str | None:
    """Draw the pseudo-perplexity over the length seen at once, as an SVG; None if no run measured it.

    Of one run: after each phase. Of several: the last of each.

    Raises:
        BackendError: matplotlib is not installed.
    """
    lines = [
        (history.name if len(histories) > 1 else f"after {record['phase']}", record["by_length"])
        for history in histories
        for record in last_of_phases(history, "by_length")[0 if len(histories) == 1 else -1 :]
    ]
    if not lines:
        return None
    with new_figure(width, height) as figure:
        axes = figure.add_subplot()
        for index, (name, lengths) in enumerate(lines):
            points = [(length["length"], length["pseudo_perplexity"]) for length in lengths]
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(*zip(*points), color=colour, marker="o", markeredgecolor="white", label=name)
        axes.set_xscale("log", base=2)
        lengths = sorted({length["length"] for _, lengths in lines for length in lengths})
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: _number(value))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)  # above all lines
        return as_svg(figure)


def draw_chart(axes: Axes, chart: Chart, histories: Sequence[History], *, inches: float) -> list[Thinned]:
    """Draw one chart, about `inches` wide; return its lines, one a run."""
    axes.margins(x=0.01)
    lines = []
    for index, history in enumerate(histories):
        line = thin(history.columns["tokens"], chart.values(history))
        colour, style = COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]
        if chart.is_noisy:
            _draw_range(axes, line, colour)
            line = line._replace(mean=_smooth_by_phase(line, history))
        lines.append(line)
        name = history.name if len(histories) > 1 else "training"
        axes.plot(line.tokens, line.mean, color=colour, linestyle=style, label=name)
        if chart.held_out:
            colour = COLOURS[(index if len(histories) > 1 else 1) % len(COLOURS)]
            _draw_held_out(axes, chart.held_out, history, colour, None if len(histories) > 1 else "held out")
    _limit(axes, chart, histories, lines)
    _shade(axes, histories[0], inches)
    axes.xaxis.set_major_formatter(lambda value, _: human(value))
    axes.yaxis.set_major_formatter(lambda value, _: chart.unit(value))
    axes.yaxis.set_minor_formatter(lambda value, _: chart.unit(value))
    if chart.key == "loss":
        _mark_events(axes, histories)
        axes.set_xlabel("tokens", loc="right", fontsize=8)
        axes.legend(loc="upper right", labelcolor=INK)
    return lines


def _smooth_by_phase(line: Thinned, history: History) -> Column:
    """Smooth within each phase: what a new phase changes at once shall look so."""
    borders = np.searchsorted(line.tokens, [span.end_tokens for span in history.spans[:-1]], side="right")
    reach = len(line.mean) / 50
    return np.concatenate([smooth(part, reach) for part in np.split(line.mean, borders)])


def _draw_range(axes: Axes, line: Thinned, colour: str) -> None:
    """Draw what a noisy line is smoothed from, pale: the range of its values, and their means."""
    axes.fill_between(line.tokens, line.low, line.high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(line.tokens, line.mean, color=colour, alpha=0.2, linewidth=0.8)


def _draw_held_out(axes: Axes, key: str, history: History, colour: str, label: str | None) -> None:
    points = [(record["tokens"], record[key]) for record in history.validations]
    if points:
        axes.plot(
            *zip(*points),
            color=colour,
            linestyle=(0, (1, 1.5)),
            linewidth=1.2,
            marker="o",
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            label=label,
        )


def _mark_events(axes: Axes, histories: Sequence[History]) -> None:
    """Put a mark on the axis of tokens where something out of the ordinary happened."""
    for index, history in enumerate(histories):
        tokens = [record["tokens"] for record in history.events]
        (marks,) = axes.plot(
            tokens,
            [0.0] * len(tokens),
            transform=axes.get_xaxis_transform(),
            color=COLOURS[index % len(COLOURS)],
            linestyle="none",
            marker=6,  # a caret that points up
            markersize=7,
            clip_on=False,
        )
        marks.set_in_layout(False)


def _limit(axes: Axes, chart: Chart, histories: Sequence[History], lines: Sequence[Thinned]) -> None:
    """Set the axis of values; of a noisy line neither its first values nor single spikes set it."""
    if chart.scale == "log":
        axes.set_yscale("log", subs=[2, 5])
        return
    if chart.is_noisy:
        start = max(line.tokens[-1] for line in lines if len(line.tokens)) / 15
        values = [value for line in lines for value in line.mean[line.tokens >= start].tolist()]
        values += [
            record[chart.held_out]
            for run in histories
            for record in run.validations
            if chart.held_out and record["tokens"] >= start
        ]
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)
    if chart.scale == "zero":
        axes.set_ylim(0, axes.get_ylim()[1] * (1 if chart.is_noisy else 1.05))


def _shade(axes: Axes, history: History, inches: float) -> None:
    """Shade every second phase, and name those that are as wide as their name; the axes are `inches` wide."""
    start, end = axes.get_xlim()
    taken = start  # up to where a name stands
    for index, span in enumerate(history.spans):
        is_last = index == len(history.spans) - 1
        left, right = max(span.start_tokens, start), end if is_last else span.end_tokens
        if index % 2:
            axes.axvspan(left, right, color=BAND, linewidth=0, zorder=0)
        needed = (0.075 * len(span.name) + 0.1) * (end - start) / inches
        place = min(left, end - needed) if is_last else left
        if place >= taken and place + needed <= max(right, left + needed * is_last):
            axes.annotate(
                span.name,
                (place, 1),
                xycoords=("data", "axes fraction"),
                xytext=(2, 3),
                textcoords="offset points",
                color=QUIET,
                fontsize=8,
            )
            taken = place + needed
    axes.set_xlim(start, end)
