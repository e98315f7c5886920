"""The verbs that look at a checkpoint, prove it, or write it in another form."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from modernbert import telemetry
from modernbert.cli import human
from modernbert.cli.options import (
    AsJson,
    MaxDocumentBytes,
    ModelName,
    TextFiles,
    TextKey,
    TextUnit,
    TokenizerName,
)


def inspect(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Of a model, perhaps damaged.")],
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint is, and which tools load it and why; exit code 1 if this one cannot."""
    from modernbert.infer.inspection import inspect_folder

    report = inspect_folder(folder)
    if as_json:
        telemetry.result_json(report.to_json())
    else:
        telemetry.result(report.text())
    raise typer.Exit(report.exit_code)


def verify(
    model: ModelName,
    lengths: Annotated[
        list[int] | None, typer.Option("--length", help="Tokens of a sequence; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    onnx: Annotated[bool, typer.Option("--onnx", help="Export it and judge the file too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how far every way to compute a model is from its definition; exit code 1 beyond the bounds."""
    from modernbert.infer.verify import verify_model

    outcome = verify_model(model, lengths=lengths or None, device=device, with_onnx=onnx)
    if as_json:
        telemetry.result_json(outcome.to_json())
    else:
        telemetry.table("verify", outcome.rows())
        telemetry.result(outcome.summary())
    raise typer.Exit(outcome.exit_code)


def perplexity(
    files: TextFiles,
    model: TokenizerName,
    lengths: Annotated[
        list[int] | None,
        typer.Option(
            "--length", help="Tokens seen at once; repeated: all of the same text. 512 if not given."
        ),
    ] = None,
    stride: Annotated[
        int, typer.Option(help="For the pseudo-perplexity, mask one token in so many; 0: one at a time.")
    ] = 8,
    mask_rate: Annotated[float, typer.Option(help="Share of tokens that the masked loss predicts.")] = 0.15,
    max_tokens: Annotated[int, typer.Option(help="Of text, from its beginning.")] = 65_536,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
    as_json: AsJson = False,
) -> None:
    """Measure masked loss and pseudo-perplexity of a model on text, at one length or several."""
    from modernbert.recipes.perplexity import measure_perplexity
    from modernbert.recipes.run_tables import length_row
    from modernbert.train.evaluation import LengthSettings

    settings = LengthSettings(lengths=tuple(lengths or [512]), stride=stride or None, max_tokens=max_tokens)
    found = [
        asdict(evaluation)
        for evaluation in measure_perplexity(
            model,
            files,
            settings,
            mask_rate=mask_rate,
            device=device,
            text_key=text_key,
            text_unit=text_unit,
            max_document_bytes=max_document_bytes,
        )
    ]
    if as_json:
        telemetry.result_json(found)
        return
    for row in map(length_row, found):
        telemetry.result(", ".join(f"{name} {value}" for name, value in row.items()))


def export(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder; may be the model's own.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT…", help="To compare int8 with float32 on.")
    ] = None,
    *,
    model: ModelName,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer, if not the model's own.")] = None,
    pooling: Annotated[
        str | None, typer.Option(help="The encoder alone, with this pooling: cls, mean, max …")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale what is pooled to length 1.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights and activations.")] = False,
    opset: Annotated[int, typer.Option(help="Version of ONNX's operators.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Write a model as ONNX, checked against torch; `--backend onnx` then serves it."""
    from modernbert.infer.export_folder import export_folder
    from modernbert.infer.loading import load

    report = export_folder(
        load(model, tokenizer=tokenizer, device="cpu", backend="portable"),
        output,
        pooling=pooling,
        normalize=normalize,
        quantize="int8" if int8 else None,
        opset=opset,
        texts=texts or [],
    )
    if as_json:
        telemetry.result_json(asdict(report))
    else:
        telemetry.result(human.export(report))
