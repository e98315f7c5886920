"""The outcome of `modernbert bench` as tables, as a picture and as files."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from modernbert import files
from modernbert.errors import BackendError
from modernbert.evaluate.contenders import Contender
from modernbert.evaluate.measured import NOTHING, Rows
from modernbert.evaluate.outcome import BenchOutcome, Throughput
from modernbert.evaluate.workloads import LONGEST, PUBLISHED_DOCUMENTS, SETS
from modernbert.recipes.drawing import COLOURS, INK, QUIET, as_svg, new_figure
from modernbert.telemetry import human

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Callable[..., None]

NAME = "bench"
LETTERS_AN_INCH = 14


def headline(outcome: BenchOutcome) -> str:
    """Say in a line what was measured, where and how."""
    machine = outcome.machine
    where = machine["gpu"] if str(machine["device"]).startswith("cuda") else machine["cpu"]
    versions = ", ".join(
        f"{name} {machine[name]}"
        for name in ("torch", "transformers", "sentence-transformers")
        if name in machine
    )
    return (
        f"{outcome.model}: {human(outcome.num_parameters)} parameters, {outcome.dtype}, on "
        f"{machine['device']} ({where}, {machine['threads']} threads), {versions}, {outcome.date}"
    )


def tables(outcome: BenchOutcome) -> dict[str, Rows]:
    """Return each table by its title: rows of equal keys, all text; none without rows."""
    size = outcome.size
    product = f"{human(outcome.product_flops)}FLOP/s ({outcome.product})" if outcome.product_rates else ""
    shown = {
        f"Tokens a second, real ones only: median of {size.repetitions}, ± half the spread; batches of "
        f"{size.batch_tokens:,} places": _throughput_rows(outcome),
        f"MFU: the model's own operations over a product measured in this run, {product}": _mfu_rows(outcome),
        "Latency of one sequence, ms: p50 / p90": _latency_rows(outcome),
        f"Largest batch (nothing beyond {PUBLISHED_DOCUMENTS:,} is tried)": _largest_rows(outcome),
    }
    return {title: rows for title, rows in shown.items() if rows}


def write_json(outcome: BenchOutcome, folder: Path) -> None:
    """Write all figures as `bench.json`.

    Raises:
        StorageError: The disk is full or not writable.
    """
    files.write_json(folder / f"{NAME}.json", outcome.to_json())


def save(outcome: BenchOutcome, folder: Path) -> None:
    """Write all figures, and the picture of them; where matplotlib is not installed, a note says so.

    Raises:
        StorageError: The disk is full or not writable.
    """
    try:
        draw(outcome, folder)
    except BackendError as error:
        outcome.notes.append(f"no picture: {error}")
    write_json(outcome, folder)


def draw(outcome: BenchOutcome, folder: Path) -> None:
    """Draw throughput and latency as `bench.svg` and `bench.png`; nothing if neither was measured.

    Raises:
        BackendError: matplotlib is not installed.
        StorageError: The disk is full or not writable.
    """
    sets, lengths = _measured_sets(outcome), [*dict.fromkeys(it.length for it in outcome.latencies)]
    panels: list[list[Panel]] = [
        [partial(_draw_throughput, name=name) for name in sets],
        [partial(_draw_latency, length=length) for length in lengths],
    ]
    rows = [row for row in panels if row]
    if not rows:
        return
    seen = [it.contender for it in outcome.throughputs] + [it.contender for it in outcome.latencies]
    contenders = [*dict.fromkeys(seen)]
    columns, height = max(map(len, rows)), 0.3 + len(rows) * (0.6 + 0.26 * len(contenders))
    width = 2.2 + 2.7 * columns
    with new_figure(width, height) as figure:
        title = textwrap.fill(headline(outcome), round(LETTERS_AN_INCH * width))
        figure.suptitle(title, x=0.01, ha="left", fontsize=8, color=QUIET)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for places, row in zip(grid, rows):
            for column, axes in enumerate(places):
                axes.set_visible(column < len(row))
                if column < len(row):
                    row[column](axes, outcome=outcome, contenders=contenders)
                    axes.tick_params(labelleft=column == 0)
        files.write_text(folder / f"{NAME}.svg", as_svg(figure))
        with files.atomic_file(folder / f"{NAME}.png") as temporary:
            figure.savefig(temporary, dpi=130, format="png", facecolor="white")


def _throughput_rows(outcome: BenchOutcome) -> Rows:
    found = {(it.contender, it.workload): _rate(it) for it in outcome.throughputs}
    rows = _grid(found, _measured_sets(outcome))
    if rows and (ratios := _ratios(outcome)):
        rows.append({"contender": "ours over the best peer", "dtype": "", **ratios})
    return rows


def _rate(it: Throughput) -> str:
    spread = (it.rates[-1] - it.rates[0]) / 2 / it.tokens_per_second
    return f"{human(it.tokens_per_second)} ±{spread:.1%}"


def _ratios(outcome: BenchOutcome) -> dict[str, str]:
    """Compare the fastest of ours with the fastest peer of the same dtype; nothing without a pair."""
    ratios = {}
    for name in _measured_sets(outcome):
        best: dict[bool, dict[str, float]] = {True: {}, False: {}}
        for it in outcome.throughputs:
            if it.workload == name:
                of_kind = best[it.contender.is_ours]
                dtype = it.contender.dtype
                of_kind[dtype] = max(of_kind.get(dtype, 0.0), it.tokens_per_second)
        pairs = [best[True][dtype] / best[False][dtype] for dtype in best[True] if dtype in best[False]]
        ratios[name] = f"{max(pairs):.2f}" if pairs else NOTHING
    return ratios if any(ratio != NOTHING for ratio in ratios.values()) else {}


def _mfu_rows(outcome: BenchOutcome) -> Rows:
    rate = outcome.product_flops
    found = {(it.contender, it.workload): f"{it.mfu(rate):.1%}" for it in outcome.throughputs}
    return _grid(found, _measured_sets(outcome))


def _latency_rows(outcome: BenchOutcome) -> Rows:
    found = {
        (it.contender, f"{it.length} tokens"): f"{1e3 * it.p50:.2f} / {1e3 * it.p90:.2f}"
        for it in outcome.latencies
    }
    return _grid(found, dict.fromkeys(column for _, column in found))


def _largest_rows(outcome: BenchOutcome) -> Rows:
    found = {(it.contender, f"{it.length:,} tokens"): f"{it.batch:,}" for it in outcome.largest}
    return _grid(found, [f"{length:,} tokens" for length in LONGEST.values()])


def _measured_sets(outcome: BenchOutcome) -> list[str]:
    measured = {it.workload for it in outcome.throughputs}
    return [name for name in SETS if name in measured]


def _grid(cells: Mapping[tuple[Contender, str], str], columns: Iterable[str]) -> Rows:
    """Lay cells out: a row a contender, in the order in which they come first."""
    columns = list(columns)
    return [
        {
            "contender": contender.name,
            "dtype": contender.dtype,
            **{column: cells.get((contender, column), NOTHING) for column in columns},
        }
        for contender in dict.fromkeys(contender for contender, _ in cells)
    ]


def _draw_throughput(
    axes: Axes, *, name: str, outcome: BenchOutcome, contenders: Sequence[Contender]
) -> None:
    found = {it.contender: it for it in outcome.throughputs if it.workload == name}
    ends = {it.contender: (it.rates[0], it.rates[-1]) for it in found.values()}
    _bars(axes, contenders, {who: it.tokens_per_second for who, it in found.items()}, ends, human)
    axes.set_title(f"{name}, tokens/s", loc="left", fontsize=9.5, fontweight="bold")


def _draw_latency(axes: Axes, *, length: int, outcome: BenchOutcome, contenders: Sequence[Contender]) -> None:
    found = {it.contender: it for it in outcome.latencies if it.length == length}
    ends = {who: (1e3 * it.p50, 1e3 * it.p90) for who, it in found.items()}
    _bars(axes, contenders, {who: 1e3 * it.p50 for who, it in found.items()}, ends, lambda ms: f"{ms:.3g}")
    axes.set_title(f"1 × {length} tokens, ms (line: to p90)", loc="left", fontsize=9.5, fontweight="bold")


def _bars(
    axes: Axes,
    contenders: Sequence[Contender],
    values: Mapping[Contender, float],
    ends: Mapping[Contender, tuple[float, float]],
    unit: Callable[[float], str],
) -> None:
    """Draw a bar a contender, ours in colour, its spread as a line, its value beside it."""
    axes.grid(visible=False)
    axes.set_yticks(range(len(contenders)), [contender.name for contender in contenders])
    axes.set_ylim(len(contenders) - 0.5, -0.5)
    for place, contender in enumerate(contenders):
        if contender not in values:
            continue
        value, (low, high) = values[contender], ends[contender]
        axes.barh(place, value, height=0.7, color=COLOURS[0] if contender.is_ours else "#b9b6ae")
        axes.plot([low, high], [place, place], color=INK, linewidth=1)
        axes.annotate(
            unit(value),
            (max(value, high), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=QUIET,
            fontsize=8,
        )
    axes.set_xlim(0, 1.25 * max((high for _, high in ends.values()), default=1.0))
    axes.set_xticks([])
