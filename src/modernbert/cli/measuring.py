"""The verbs of `modernbert evaluate` that measure a model as it is: what it fills in, or its vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modernbert import telemetry
from modernbert.cli import human
from modernbert.cli.options import (
    AsJson,
    Device,
    Dtype,
    MaxDocumentBytes,
    ModelChoice,
    TextFiles,
    TextKey,
    TextUnit,
    TokenizerName,
    with_models,
)

if TYPE_CHECKING:  # torch is loaded when a verb runs, not to print its help
    from modernbert.evaluate.measured import Measured
    from modernbert.retrieve.bm25 import Bm25Settings

Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Gets results.json and results.md.")
]
Seed = Annotated[int, typer.Option(help="Of all that is drawn.")]
Split = Annotated[str | None, typer.Option(help="Of the judgements; `test` or the only one, if not given.")]
Words = Annotated[
    str, typer.Option("--bm25", metavar="english|plain|none", help="Words that BM25 counts; none: no BM25.")
]
MoreOfCommon = Annotated[float, typer.Option("--k1", help="BM25: how much more a frequent word counts.")]
LessOfLong = Annotated[float, typer.Option("--b", help="BM25: how much less words of long documents count.")]


def masked(
    files: TextFiles,
    model: TokenizerName,
    length: Annotated[int, typer.Option(help="Tokens of a window, with [CLS] and [SEP].")] = 1024,
    join: Annotated[
        bool, typer.Option("--join", help="Let neighbouring documents of a source share windows.")
    ] = False,
    source_key: Annotated[
        str, typer.Option(help="Names a text's source in JSON lines and Parquet.")
    ] = "source",
    mask_rate: Annotated[float, typer.Option(help="Share of tokens that are predicted.")] = 0.15,
    max_tokens: Annotated[int, typer.Option(help="Of each source, from its beginning.")] = 262_144,
    bins: Annotated[int, typer.Option(help="Parts into which the places of a window are cut.")] = 16,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    output: Output = Path("masked-results"),
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
    as_json: AsJson = False,
) -> None:
    """Masked loss and accuracy on held-out text, by source and by the place in a window."""
    from modernbert.data.corpus import find_files, read_documents
    from modernbert.evaluate.masked import MaskedSettings, measure_masked
    from modernbert.evaluate.masked_lm import load_masked_lm

    settings = MaskedSettings(
        length=length, join=join, mask_rate=mask_rate, max_tokens=max_tokens, bins=bins, seed=seed
    )
    documents = read_documents(
        find_files(files),
        text_key=text_key,
        text_unit=text_unit,
        max_document_bytes=max_document_bytes,
        source_key=source_key,
    )
    loaded = load_masked_lm(model, device=device, dtype=dtype)
    show(measure_masked(loaded, documents, settings), output, as_json)


def needle(
    files: TextFiles,
    model: TokenizerName,
    lengths: Annotated[
        list[int] | None,
        typer.Option("--length", help="Tokens of a text; may be repeated. 512, 1024 … 8192 if not given."),
    ] = None,
    depths: Annotated[
        list[float] | None,
        typer.Option("--depth", help="Of the needle, 0 to 1; may be repeated. 0, 0.25 … 1 if not given."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Needles a field of the table.")] = 20,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    output: Output = Path("needle-results"),
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
    as_json: AsJson = False,
) -> None:
    """Whether a made-up fact is found in a long text (FILES are the filler), by its depth and the length."""
    from modernbert.data.corpus import find_files, read_documents
    from modernbert.evaluate.masked_lm import load_masked_lm
    from modernbert.evaluate.needle import DEPTHS, LENGTHS, NeedleSettings, measure_needles

    loaded = load_masked_lm(model, device=device, dtype=dtype)
    fitting = [length for length in LENGTHS if length <= loaded.max_length]
    settings = NeedleSettings(
        lengths=tuple(lengths or fitting or [loaded.max_length]),
        depths=tuple(depths or DEPTHS),
        trials=trials,
        seed=seed,
    )
    documents = read_documents(
        find_files(files), text_key=text_key, text_unit=text_unit, max_document_bytes=max_document_bytes
    )
    show(measure_needles(loaded, documents, settings), output, as_json)


def cloze(
    model: TokenizerName,
    facts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Facts of your own, as JSON lines; see the guide.")
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Text in which subjects are counted; may be repeated."),
    ] = None,
    least_named: Annotated[int, typer.Option(help="With a corpus: report those named so often.")] = 20,
    device: Device = "auto",
    dtype: Dtype = "float32",
    output: Output = Path("cloze-results"),
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
    as_json: AsJson = False,
) -> None:
    """What a model knows: capitals, currencies, languages … asked for with a mask."""
    from modernbert.data.corpus import find_files, read_documents
    from modernbert.evaluate.cloze import measure_cloze
    from modernbert.evaluate.cloze_facts import FACTS, count_named, read_facts
    from modernbert.evaluate.masked_lm import load_masked_lm

    relations = read_facts(facts or FACTS)
    loaded, named = load_masked_lm(model, device=device, dtype=dtype), None
    if corpus:
        documents = read_documents(
            find_files(corpus), text_key=text_key, text_unit=text_unit, max_document_bytes=max_document_bytes
        )
        subjects = [fact.subject for relation in relations for fact in relation.facts]
        named = count_named((document.text for document in documents), subjects)
    show(measure_cloze(loaded, relations, named=named, least_named=least_named), output, as_json)


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
    output: Output = Path("retrieval-results"),
    as_json: AsJson = False,
) -> None:
    """Zero-shot retrieval, beside BM25 and fused with it: nDCG@10, MRR@10, recall@100, MAP."""
    from modernbert.evaluate.retrieval import RetrievalSettings, evaluate_retrieval

    settings = RetrievalSettings(
        split=split, top_k=top_k, ignore_identical_ids=ignore_identical_ids, bm25=_bm25(words, k1, b)
    )
    show(evaluate_retrieval(folders, _models(choices), settings), output, as_json)


@with_models
def rerank(
    choices: list[ModelChoice],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="FILE…", help="Tables, or folders of them: query, docs, labels a row."),
    ],
    split: Split = None,
    words: Words = "english",
    k1: MoreOfCommon = 1.5,
    b: LessOfLong = 0.75,
    output: Output = Path("rerank-results"),
    as_json: AsJson = False,
) -> None:
    """Put given documents in order, by vectors or a cross-encoder, beside BM25: nDCG@10, MRR@10, MAP."""
    from modernbert.evaluate.reranking import evaluate_reranking

    found = evaluate_reranking(paths, _models(choices), split=split, bm25=_bm25(words, k1, b))
    show(found, output, as_json)


@with_models
def sts(
    choices: list[ModelChoice],
    paths: Annotated[list[str], typer.Argument(metavar="FILE…", help="Tables of pairs with a number each.")],
    text: Annotated[
        str | None, typer.Option(help="Column of the first text (`columns.text`), if not guessed.")
    ] = None,
    text_pair: Annotated[str | None, typer.Option(help="Column of the second (`columns.text_pair`).")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the number (`columns.label`).")] = None,
    output: Output = Path("sts-results"),
    as_json: AsJson = False,
) -> None:
    """How alike sentences are: correlation of the cosine with what people said (STS)."""
    from modernbert.data.columns import Columns
    from modernbert.evaluate.likeness import evaluate_likeness

    columns = Columns(text=text, text_pair=text_pair, label=label)
    show(evaluate_likeness(paths, _models(choices), columns), output, as_json)


def _models(choices: list[ModelChoice]) -> dict[str, Any]:
    """Return what loads each model, by its name."""
    return {choice.model: choice.load for choice in choices}


def _bm25(words: str, k1: float, b: float) -> Bm25Settings | None:
    from modernbert.retrieve.bm25 import Bm25Settings

    return None if words == "none" else Bm25Settings(words=words, k1=k1, b=b)  # type: ignore[arg-type]


def show(found: Measured, folder: Path, as_json: bool) -> None:
    """Write what was found into a folder, and show it."""
    found.save(folder)
    if as_json:
        telemetry.result_json(found.to_json())
    else:
        telemetry.result(human.report(found.headline, found.tables, found.remarks))
