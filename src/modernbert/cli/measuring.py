"""The verbs of `modernbert evaluate` that measure a masked language model as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modernbert import telemetry
from modernbert.cli import human
from modernbert.cli.options import AsJson, MaxDocumentBytes, TextFiles, TextKey, TextUnit, TokenizerName

if TYPE_CHECKING:
    from modernbert.evaluate.measured import Measured

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, int8.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FOLDER", help="Gets the figures; VERB-results if not given."),
]
Seed = Annotated[int, typer.Option(help="Of all that is drawn.")]


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
    output: Output = None,
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
    as_json: AsJson = False,
) -> None:
    """Masked loss and accuracy on held-out text, by source and by the place in a window."""
    from modernbert.data.corpus import find_files, read_documents
    from modernbert.evaluate.masked import MaskedSettings, measure_masked
    from modernbert.evaluate.measured import load_masked_lm

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
    _tell(measure_masked(loaded, documents, settings), output, as_json)


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
    output: Output = None,
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
    as_json: AsJson = False,
) -> None:
    """Whether a made-up fact is found in a long text (FILES are the filler), by its depth and the length."""
    from modernbert.data.corpus import find_files, read_documents
    from modernbert.evaluate.measured import load_masked_lm
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
    _tell(measure_needles(loaded, documents, settings), output, as_json)


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
    output: Output = None,
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
    as_json: AsJson = False,
) -> None:
    """What a model knows: capitals, currencies, languages … asked for with a mask."""
    from modernbert.data.corpus import find_files, read_documents
    from modernbert.evaluate.cloze import measure_cloze
    from modernbert.evaluate.cloze_facts import FACTS, count_named, read_facts
    from modernbert.evaluate.measured import load_masked_lm

    relations = read_facts(facts or FACTS)
    loaded, named = load_masked_lm(model, device=device, dtype=dtype), None
    if corpus:
        documents = read_documents(
            find_files(corpus), text_key=text_key, text_unit=text_unit, max_document_bytes=max_document_bytes
        )
        subjects = [fact.subject for relation in relations for fact in relation.facts]
        named = count_named((document.text for document in documents), subjects)
    _tell(measure_cloze(loaded, relations, named=named, least_named=least_named), output, as_json)


def _tell(found: Measured, output: Path | None, as_json: bool) -> None:
    """Write what was measured, and show it."""
    found.save(output or Path(f"{found.name}-results"))
    if as_json:
        telemetry.result_json(found.figures)
    else:
        telemetry.result(human.report(found.headline, found.tables, found.remarks))
