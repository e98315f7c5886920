"""Results as people read them: a text, and below it what was found, in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_FIRST_NUMBERS = 6
_MOST_CHARACTERS = 80

Result = Mapping[str, Any]


def labels(text: str, results: Sequence[Result]) -> str:
    """Show labels with their scores, which may be of any size."""
    return _below(text, [[f"{each['score']:.4f}", each["label"]] for each in results])


def zero_shot(text: str, result: Result) -> str:
    """Show candidate labels with their probabilities."""
    return _below(text, [[f"{p:.1%}", label] for label, p in zip(result["labels"], result["scores"])])


def tags(text: str, entities: Sequence[Result]) -> str:
    """Show entities, or tokens, with their places."""
    rows = [
        [f"{it['score']:.1%}", it.get("entity_group") or it["entity"], it["word"], _place(it)]
        for it in entities
    ]
    return _below(text, rows or [["nothing found"]])


def answers(text: str, found: Result | Sequence[Result]) -> str:
    """Show answers with their places."""
    several = [found] if isinstance(found, Mapping) else found
    rows = [[f"{it['score']:.1%}", it["answer"] or "no answer", _place(it)] for it in several]
    return _below(text, rows or [["no answer"]])


def choices(prompt: str, texts: Sequence[str], result: Result) -> str:
    """Show choices, the best first."""
    best = sorted(zip(result["scores"], texts), key=lambda choice: -choice[0])
    return _below(prompt, [[f"{score:.1%}", text] for score, text in best])


def ranking(query: str, results: Sequence[Result]) -> str:
    """Show documents, the best first, with their numbers in the order given."""
    return _below(query, [[f"{it['score']:.4f}", str(it["corpus_id"]), short(it["text"])] for it in results])


def vector(text: str, numbers: Sequence[float]) -> str:
    """Show how many numbers there are, and the first."""
    first = " ".join(f"{number:.6g}" for number in numbers[:_FIRST_NUMBERS])
    rest = " …" if len(numbers) > _FIRST_NUMBERS else ""
    return _below(text, [[f"{len(numbers)} numbers:", first + rest]])


def chunks(text: str, parts: Sequence[Result]) -> str:
    """Show where the chunks of a text are."""
    return _below(text, [[_place(part), short(part["text"])] for part in parts] or [["no chunk"]])


def matrix(texts: Sequence[str], similarities: Sequence[Sequence[float]]) -> str:
    """Show how alike texts are: a row and a column each."""
    numbers = [str(index) for index in range(1, len(texts) + 1)]
    rows = [
        [number, *(f"{value:.4f}" for value in row), short(text)]
        for number, row, text in zip(numbers, similarities, texts)
    ]
    return "\n".join(columns([["", *numbers, ""], *rows]))


def export(report: Any) -> str:
    """Show what an export holds and how near it comes."""
    rows = [
        ["outputs", ", ".join(report.outputs)],
        ["pooling", " and ".join(report.pooling) + (", length 1" if report.normalize else "")],
        ["size", f"{report.num_bytes / 1e6:,.1f} MB"],
        ["deviation from torch", f"{report.max_deviation:.1e}"],
    ]
    if (it := report.quality) is not None:
        agreement = "" if it.top1_agreement is None else f", same winner {it.top1_agreement:.1%}"
        cosines = f"mean {it.mean_cosine:.6f}, least {it.min_cosine:.6f}"
        rows.append(["int8: cosine to float32", f"{cosines} over {it.num_sequences} texts{agreement}"])
    return "\n".join([report.file, *columns([row for row in rows if row[1]])])


def report(headline: str, tables: Mapping[str, Sequence[Mapping[str, str]]], remarks: Sequence[str]) -> str:
    """Show a headline, each table under its title, and remarks."""
    parts = [headline]
    for title, rows in tables.items():
        parts += ["", title, *columns([list(rows[0]), *(list(row.values()) for row in rows)])]
    return "\n".join([*parts, "", *remarks])


def short(text: str) -> str:
    """Write a text in one short line."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 1]}…"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out in columns, numbers and percentages to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        ("  " + "  ".join(_padded(cell, width) for cell, width in zip(row, widths))).rstrip() for row in rows
    ]


def _below(text: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([short(text), *columns(rows)])


def _padded(cell: str, width: int) -> str:
    is_number = cell.rstrip("%").lstrip("-").replace(".", "", 1).isdigit()
    return cell.rjust(width) if is_number else cell.ljust(width)


def _place(it: Result) -> str:
    return f"{it['start']}–{it['end']}"
