"""The verbs of `modernbert evaluate` that measure vectors, and what ranks by them, as they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modernbert import telemetry
from modernbert.cli import human
from modernbert.cli.options import AsJson, ModelChoice, with_models

if TYPE_CHECKING:  # torch is loaded when a verb runs, not to print its help
    from modernbert.evaluate.systems import Measurement
    from modernbert.retrieve.bm25 import Bm25Settings

Split = Annotated[str | None, typer.Option(help="Of the judgements; `test` or the only one, if not given.")]
Words = Annotated[
    str, typer.Option("--bm25", metavar="english|plain|none", help="Words that BM25 counts; none: no BM25.")
]
MoreOfCommon = Annotated[float, typer.Option("--k1", help="BM25: how much more a frequent word counts.")]
LessOfLong = Annotated[float, typer.Option("--b", help="BM25: how much less words of long documents count.")]
ResultFolder = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Gets results.json and results.md.")
]


@with_models
def retrieval(
    choices: list[ModelChoice],
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER…", help="In BEIR's layout, or with one qrels.jsonl.")
    ],
    split: Split = None,
    words: Words = "english",
    k1: MoreOfCommon = 1.5,
    b: LessOfLong = 0.75,
    top_k: Annotated[int, typer.Option("--top-k", help="Documents to find for a query.")] = 1000,
    ignore_identical_ids: Annotated[
        bool, typer.Option("--ignore-identical-ids", help="A query does not find the document with its id.")
    ] = False,
    output: ResultFolder = None,
    as_json: AsJson = False,
) -> None:
    """Zero-shot retrieval, beside BM25 and fused with it: nDCG@10, MRR@10, recall@100, MAP."""
    from modernbert.evaluate.retrieval import RetrievalSettings, evaluate_retrieval

    settings = RetrievalSettings(
        split=split, top_k=top_k, ignore_identical_ids=ignore_identical_ids, bm25=_bm25(words, k1, b)
    )
    _show(evaluate_retrieval(folders, _models(choices), settings), output, "retrieval", as_json)


@with_models
def rerank(
    choices: list[ModelChoice],
    paths: Annotated[
        list[Path], typer.Argument(metavar="FOLDER…", help="Folders or files: query, docs, labels a row.")
    ],
    split: Split = None,
    words: Words = "english",
    k1: MoreOfCommon = 1.5,
    b: LessOfLong = 0.75,
    output: ResultFolder = None,
    as_json: AsJson = False,
) -> None:
    """Put given documents in order, by vectors or a cross-encoder, beside BM25: nDCG@10, MRR@10, MAP."""
    from modernbert.evaluate.reranking import evaluate_reranking

    found = evaluate_reranking(paths, _models(choices), split=split, bm25=_bm25(words, k1, b))
    _show(found, output, "rerank", as_json)


@with_models
def sts(
    choices: list[ModelChoice],
    paths: Annotated[list[str], typer.Argument(metavar="FILE…", help="Tables of pairs with a number each.")],
    text: Annotated[
        str | None, typer.Option(help="Column of the first text (`columns.text`), if not guessed.")
    ] = None,
    text_pair: Annotated[str | None, typer.Option(help="Column of the second (`columns.text_pair`).")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the number (`columns.label`).")] = None,
    output: ResultFolder = None,
    as_json: AsJson = False,
) -> None:
    """How alike sentences are: correlation of the cosine with what people said (STS)."""
    from modernbert.data.columns import Columns
    from modernbert.evaluate.likeness import evaluate_likeness

    columns = Columns(text=text, text_pair=text_pair, label=label)
    _show(evaluate_likeness(paths, _models(choices), columns), output, "sts", as_json)


def _models(choices: list[ModelChoice]) -> dict[str, Any]:
    """Return what loads each model, by its name."""
    return {choice.model: choice.load for choice in choices}


def _bm25(words: str, k1: float, b: float) -> Bm25Settings | None:
    from modernbert.retrieve.bm25 import Bm25Settings

    return None if words == "none" else Bm25Settings(words=words, k1=k1, b=b)  # type: ignore[arg-type]


def _show(found: Measurement, output: Path | None, verb: str, as_json: bool) -> None:
    """Show and write what measures of vectors found."""
    from modernbert.evaluate import written

    parts = (found.headline, found.tables, found.remarks)
    if as_json:
        telemetry.result_json(found.to_json())
    else:
        telemetry.result(human.report(*parts))
    written.save(output or Path(f"{verb}-results"), found.to_json(), *parts)
