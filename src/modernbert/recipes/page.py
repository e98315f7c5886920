"""The page that reports are written on: one HTML file, light or dark, that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files as package_files
from string import Template
from typing import Any, NamedTuple

from modernbert import config
from modernbert.recipes.drawing import follow_theme
from modernbert.recipes.run_tables import NOTHING, Row

PROSE = ("what", "setting", "text", "gold", "predicted", "place", "from")
"""Columns that hold sentences, not figures."""


class HoverLine(NamedTuple):
    """What the page says of one line under the pointer: a written value for each place on the axis."""

    name: str
    colour: str
    places: Sequence[int]
    values: Sequence[str]


def render(title: str, subtitle: str, *parts: str) -> str:
    """Return a whole page; `parts` are HTML, title and subtitle plain text."""
    template = (package_files("modernbert.recipes") / "page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(title), subtitle=escape(subtitle), body="\n".join(filter(None, parts))
    )


def section(title: str, *cards: str) -> str:
    """Put cards under a heading."""
    return f'<h2>{escape(title)}</h2><div class="tables">{"".join(cards)}</div>'


def charts(*cards: str) -> str:
    """Set charts beside one another where there is room."""
    return f'<div class="charts">{"".join(cards)}</div>'


def figures(shown: dict[str, str]) -> str:
    """Show the figures that one asks for first, large."""
    return '<div class="figures">{}</div>'.format(
        "".join(
            f'<div class="figure"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
            for name, value in shown.items()
        )
    )


def chart(title: str, note: str, svg: str, is_wide: bool = False, hover: str = "") -> str:
    """Frame a picture; `hover` is what `hover` gave."""
    data = f' data-lines="{escape(hover)}"' if hover else ""
    return (
        f'<figure class="card chart{" wide" if is_wide else ""}"><figcaption><h3>{escape(title)}</h3>'
        f'<p class="quiet">{escape(note)}</p></figcaption><div class="plot"{data}>{follow_theme(svg)}</div>'
        "</figure>"
    )


def hover(
    box: tuple[float, float, float, float],
    span: tuple[float, float],
    lines: Sequence[HoverLine],
    unit: str = "tokens",
) -> str:
    """Give the page the values that it shows under the pointer.

    Args:
        box: Left, bottom, width and height of the part within the axes, as shares of the picture.
        span: The first and the last place on the axis.
        lines: One a line of the chart.
        unit: What the axis counts.
    """
    drawn = [
        {"name": line.name, "colour": line.colour, "tokens": [*line.places], "values": [*line.values]}
        for line in lines
    ]
    return json.dumps({"box": box, "tokens": span, "unit": unit, "lines": drawn}, separators=(",", ":"))


def table(caption: str, rows: Sequence[Row], note: str = "") -> str:
    """Write rows of equal keys, without columns in which nothing stands."""
    names = [name for name in rows[0] if any(row[name] not in ("", NOTHING) for row in rows)]
    kinds = {name: f' class="text{" long" * (name == "text")}"' if name in PROSE else "" for name in names}
    head = "".join(f"<th{kinds[name]}>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td{kinds[name]}>{escape(row[name])}</td>' for name in names)}</tr>" for row in rows
    )
    shown = f"<caption>{escape(caption)}</caption>" if caption else ""
    below = f'<p class="quiet note">{escape(note)}</p>' if note else ""
    return f'<div class="card scroll"><table>{shown}<tr>{head}</tr>{body}</table>{below}</div>'


def details(title: str, tree: Any) -> str:
    """Show settings or facts as YAML, folded."""
    return (
        f'<details class="card"><summary>{escape(title)}</summary>'
        f"<pre>{escape(config.dump(tree))}</pre></details>"
    )
