"""The drawing board: our style, lines of few points, figures that become SVG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from modernbert.errors import BackendError
from modernbert.recipes.history import Column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2a78d6", "#d9541e", "#12916a", "#8a4fd0", "#c78a00", "#d6478f", "#0e8fb0", "#6b6a66")
LINES = ("-", "--", ":")
INK, QUIET, HAIRLINE, BAND, AXIS, PAPER = "#1d1c1a", "#6b6a66", "#e4e2dc", "#f1efe9", "#b9b6ae", "#ffffff"
THEME = {INK: "ink", QUIET: "quiet", HAIRLINE: "line", BAND: "band", AXIS: "axis", PAPER: "card"}
"""What the page calls these colours, so that it can set others in the dark."""
POINTS = 400
"""Of a line at most: no screen shows more, and a page stays small."""

STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": AXIS,
    "axes.linewidth": 0.8,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "modernbert",
}


class Thinned(NamedTuple):
    """A line of few points: tokens, and of the records around each the mean, the least and the most."""

    tokens: Column
    mean: Column
    low: Column
    high: Column


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Give a new figure in our style, inches wide and high."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise BackendError(
            "drawing a run needs matplotlib, which is not installed; run `pip install 'modernbert[train]'`"
        ) from None
    with rc_context(STYLE):  # type: ignore[arg-type]
        yield Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure) -> str:
    """Return the figure as an SVG element that takes the width it is given and the fonts of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(
        r'(<svg [^>]*?) width="[^"]*"|(<svg [^>]*?) height="[^"]*"', r"\1\2", svg[svg.index("<svg ") :]
    )
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def follow_theme(svg: str) -> str:
    """Let the colours of ink, lines and paper be those of the page that the picture stands in."""
    return re.sub(
        r"\b(fill|stroke): (#[0-9a-f]{6})\b",
        lambda found: f"{found[1]}: var(--{THEME[found[2]]}, {found[2]})" if found[2] in THEME else found[0],
        svg,
    )


def check_drawing() -> None:
    """Make sure, before a long run, that it can be drawn after it.

    Raises:
        BackendError: matplotlib is not installed.
    """
    with new_figure(1, 1):
        pass


def thin(tokens: Column, values: Column, points: int = POINTS) -> Thinned:
    """Bring a line to at most `points` points, each the mean of as many neighbours; NaNs are left out."""
    known = np.isfinite(values)
    tokens, values = tokens[known], values[known]
    cuts = np.linspace(0, len(values), min(points, len(values)) + 1).astype(int)
    if len(values) == 0:
        return Thinned(tokens, values, values, values)
    starts, counts = cuts[:-1], np.diff(cuts)
    return Thinned(
        tokens[cuts[1:] - 1],
        np.add.reduceat(values, starts) / counts,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def smooth(values: Column, reach: float) -> Column:
    """Average each value with its neighbours, those within `reach` above all.

    The mean of an exponential average from the left and one from the right: it does not lag behind a slope.
    """
    weight = math.exp(-1 / max(reach, 0.2))
    return (_average(values, weight) + _average(values[::-1], weight)[::-1]) / 2


def _average(values: Column, weight: float) -> Column:
    """Return the exponential moving average, unbiased at its start."""
    averages = np.empty_like(values)
    total = share = 0.0
    for index, value in enumerate(values.tolist()):
        total, share = weight * total + (1 - weight) * value, weight * share + (1 - weight)
        averages[index] = total / share
    return averages
