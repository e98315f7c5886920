"""Write what was measured into the card of `mini`: tables between its marks, and the picture of the curves.

Only the tables for which figures are given are written; what stands in the others stays.

    python -m benchmarks.mini_card --run mini/run --bert mini/bert --sweep SWEEP.json \\
        --plain-bert BERT.json --finetune FINETUNE.json --include mini/masked.txt retrieval-results/results.md
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finetune import ANCHOR, OURS
from benchmarks.tables import MARK
from modernbert import telemetry
from modernbert.recipes.charts import CHARTS, draw_chart
from modernbert.recipes.drawing import new_figure
from modernbert.recipes.history import History, read_history
from modernbert.recipes.run_tables import phase_rows, source_rows

CARD = Path(__file__).parents[1] / "models" / "mini" / "README.md"
LOSS = next(chart for chart in CHARTS if chart.key == "loss")
NOTHING = "–"
SETS = {
    "glue_cola": "CoLA",
    "glue_sst2": "SST-2",
    "glue_mrpc": "MRPC",
    "stsb": "STS-B",
    "glue_rte": "RTE",
    "glue_mnli_7k": "MNLI",
    "conll2003": "CoNLL-2003",
}
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "BERT-mini": {"SST-2": 85.9, "STS-B": 73.3, "RTE": 57.9, "MNLI": 74.8},
    "BERT-small": {"CoLA": 27.8, "SST-2": 89.7, "MRPC": 76.2, "STS-B": 77.0, "RTE": 61.8, "MNLI": 77.6},
    "Ettin-17m": {"SST-2": 91.2, "MNLI": 79.5},
}
"""On the tests of GLUE, of models trained on 3.3 thousand million words (BERT) and 2 T tokens."""

Row = Mapping[str, str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and write the tables of what it names."""
    given = _parser().parse_args(arguments)
    tables: dict[str, str] = {}
    histories = [
        read_history(folder, name)
        for folder, name in ((given.run, "mini"), (given.bert, "plain BERT"))
        if folder is not None
    ]
    if histories:
        draw_curves(histories, given.card.parent / "curves.png")
        tables["curves"] = "![masked loss against tokens and against minutes of the GPU](curves.png)"
        tables["phases"] = markdown([{"run": it.name, **row} for it in histories for row in phase_rows(it)])
        tables["sources"] = markdown([{"run": it.name, **row} for it in histories for row in source_rows(it)])
    for name, path, write in (
        ("sweep", given.sweep, sweep),
        ("anchor", given.plain_bert, anchor),
        ("finetune", given.finetune, finetuned),
    ):
        if path is not None:
            record = json.loads(path.read_text(encoding="utf-8"))
            tables[name] = f"{write(record)}\n\n({_origin(record)})"
    if given.include:
        tables["measures"] = "\n\n".join(_included(path) for path in given.include)
    text = given.card.read_text(encoding="utf-8")
    given.card.write_text(_filled(text, tables), encoding="utf-8")
    telemetry.note(f"{given.card}: {', '.join(tables) or 'nothing new'}")


def draw_curves(histories: Sequence[History], path: Path) -> None:
    """Draw the masked loss against tokens and against minutes, the phases of the first run shaded."""
    timed = [in_minutes(history) for history in histories]
    with new_figure(13, 4.6) as figure:
        for axes, shown, label in zip(figure.subplots(1, 2), (histories, timed), ("tokens", "minutes")):
            draw_chart(axes, LOSS, shown, inches=6)
            axes.set_xlabel(label, loc="right", fontsize=8)
        figure.savefig(path, dpi=130, format="png", facecolor="white")


def in_minutes(history: History) -> History:
    """Return a run whose tokens are the minutes of training that they took."""
    tokens = history.columns["tokens"]
    minutes = np.nancumsum(history.columns["seconds"]) / 60
    begin = history.spans[0].start_tokens

    def after(amount: float) -> float:
        return float(np.interp(amount, [begin, *tokens], [0.0, *minutes]))

    return replace(
        history,
        columns={**history.columns, "tokens": minutes},
        spans=tuple(
            replace(it, start_tokens=after(it.start_tokens), end_tokens=after(it.end_tokens))
            for it in history.spans
        ),
        validations=tuple({**it, "tokens": after(it["tokens"])} for it in history.validations),
        events=tuple({**it, "tokens": after(it["tokens"])} for it in history.events),
    )


def sweep(record: Mapping[str, Any]) -> str:
    """The variants, the best first."""
    return markdown(
        [
            {
                "variant": f"`{row['variant']}`",
                "nats a byte": f"{row['nats_per_byte']:.4f}",
                "masked loss": f"{row['loss']:.3f}",
                "accuracy": f"{row['accuracy']:.1%}",
                "MB in bf16": f"{row['bf16_megabytes']:.1f}",
                "tokens": telemetry.human(row["tokens"]),
                "tokens/s": telemetry.human(row["tokens_per_second"]),
            }
            for row in sorted(record["rows"], key=lambda row: row["nats_per_byte"])
        ]
    )


def anchor(record: Mapping[str, Any]) -> str:
    """The plain BERT beside ours on the same masked tokens."""
    return markdown(
        [
            {
                "model": row["model"],
                "parameters": telemetry.human(row["parameters"]),
                "masked loss": f"{row['loss']:.3f}",
                "accuracy": f"{row['accuracy']:.1%}",
            }
            for row in record["rows"]
        ]
    )


def finetuned(record: Mapping[str, Any]) -> str:
    """Each set's mean and deviation over seeds, in per cent, beside the anchors."""
    found = {(row["set"], row["engine"]): row for row in record["rows"] if row["seeds"]}
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        plain, _, start = name.partition(", from ")
        title = SETS.get(plain, plain)
        metric = next(row["metric"] for (it, _), row in found.items() if it == name)
        published = {model: "" if start else _percent(known.get(title)) for model, known in PUBLISHED.items()}
        rows.append(
            {
                "set, metric": f"{title}, {metric}" + (f", from {SETS.get(start, start)}" if start else ""),
                "mini": _score(found.get((name, OURS))),
                "plain BERT": _score(found.get((name, ANCHOR))),
                **published,
            }
        )
    return markdown(rows)


def markdown(rows: Sequence[Row]) -> str:
    """Lay out rows as a table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([row.get(key, NOTHING) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _score(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NOTHING
    deviation = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.1f}"
    return f"{100 * row['score']:.1f}{deviation}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


def _origin(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    where = machine.get("gpu") or machine.get("cpu")
    versions = [f"{name} {machine[name]}" for name in ("torch", "commit") if machine.get(name)]
    return ", ".join(filter(None, [where, *versions, record["date"]]))


def _included(path: Path) -> str:
    text = path.read_text(encoding="utf-8").strip()
    if path.suffix == ".md":  # whose headings go below the card's
        return re.sub(r"^#", "###", text, flags=re.MULTILINE)
    return f"```text\n{text}\n```"


def _filled(text: str, tables: Mapping[str, str]) -> str:
    """Put each table between its marks; marks without one keep what they have."""
    return MARK.sub(
        lambda mark: f"{mark[1]}{tables[mark[2]]}\n{mark[3]}" if mark[2] in tables else mark[0], text
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--card", type=Path, default=CARD, help="the card")
    parser.add_argument("--run", type=Path, help="folder of the run of `mini`")
    parser.add_argument("--bert", type=Path, help="folder of the run of the plain BERT")
    parser.add_argument("--sweep", type=Path, help="result of benchmarks.mini_sweep")
    parser.add_argument("--plain-bert", type=Path, help="result of benchmarks.plain_bert")
    parser.add_argument("--finetune", type=Path, help="result of benchmarks.finetune with --anchor")
    parser.add_argument(
        "--include", type=Path, nargs="+", help="what `modernbert evaluate` printed, or its results.md"
    )
    return parser


if __name__ == "__main__":
    main()
