"""The command line: one verb a function. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 an error that the message explains (or a run that a signal stopped), 2 wrong usage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from modernbert import telemetry
from modernbert.errors import ModernBertError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="ModernBERT, whole."
)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Train, build and look at tokenizers.")
app.add_typer(tokenizer_app, name="tokenizer")

Overrides = Annotated[list[str] | None, typer.Argument(help="Changes of settings: path.to.key=value …")]
ModelName = Annotated[str, typer.Option("--model", "-m", help="Folder, hub id or preset name.")]
TokenizerName = Annotated[str, typer.Option("--model", "-m", help="Folder or hub id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
TextKey = Annotated[str, typer.Option(help="Name of the text in JSON lines and Parquet.")]
TextUnit = Annotated[  # `parser`, as typer before 0.19 knows no Literal; the reader checks the value
    Literal["line", "paragraph", "file"],
    typer.Option(parser=str, metavar="line|paragraph|file", help="What a document is in a .txt file."),
]
MaxDocumentBytes = Annotated[int, typer.Option(help="A larger document is an error.")]


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details too.")] = False,
) -> None:
    telemetry.configure_logging(verbose=verbose)


@app.command()
def pretrain(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved run and its phases, and stop.")
    ] = False,
) -> None:
    """Pretrain an encoder as a run file says; the same command goes on where a run was stopped."""
    from modernbert import config
    from modernbert.recipes import settings
    from modernbert.recipes.pretrain import pretrain as carry_out

    run = settings.read_run(run_file, overrides or [])
    telemetry.table("Phases", settings.phase_rows(run))
    if dry_run:
        telemetry.result(config.dump(run).rstrip())
        return
    outcome = carry_out(run)
    telemetry.result(outcome.summary())
    if outcome.stopped_by is not None:
        raise typer.Exit(1)


@app.command()
def tokenize(
    files: Annotated[list[Path], typer.Argument(help="Text files or folders of them.")],
    model: TokenizerName,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; a part of it goes on.")],
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
) -> None:
    """Turn text into token shards, which a run file's sources may name as their `path`."""
    from modernbert.data.tokenizer import Tokenizer
    from modernbert.recipes import prepare

    shards = prepare.tokenize(
        files,
        Tokenizer.from_pretrained(model),
        output,
        text_key=text_key,
        text_unit=text_unit,
        max_document_bytes=max_document_bytes,
    )
    telemetry.result(f"{output}: {shards.num_documents} documents, {shards.num_tokens} tokens")


@app.command("fill-mask")
def fill_mask(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT…", help="Texts with [MASK] in them.")],
    model: ModelName,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer, if not the model's own.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Proposals for each mask.")] = 5,
    device: Annotated[str, typer.Option(help="Where to compute.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Propose tokens for each [MASK]; the JSON is that of transformers' fill-mask pipeline."""
    from modernbert.infer.fill_mask import FillMask, describe

    results = FillMask.from_pretrained(model, tokenizer=tokenizer, device=device)(texts, top_k=top_k)
    if as_json:
        telemetry.result_json(results[0] if len(texts) == 1 else results)
    else:
        telemetry.result(
            "\n\n".join(describe(text, fills) for text, fills in zip(texts, results, strict=True))
        )


@app.command()
def average(
    folders: Annotated[list[Path], typer.Argument(help="Checkpoints to average, of one shape.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, new.")],
) -> None:
    """Average the weights of several checkpoints into a model."""
    from modernbert.train.state import average_checkpoints

    average_checkpoints(folders, output)
    telemetry.result(str(output))


@app.command()
def tour(
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("tour"),
) -> None:
    """Pretrain a tiny encoder on Python's own documentation, and fill masks with it: a few minutes."""
    from modernbert.recipes.tour import tour as carry_out

    outcome = carry_out(folder, overrides or [])
    telemetry.result(outcome.summary())
    if outcome.training.stopped_by is not None:
        raise typer.Exit(1)


@tokenizer_app.command("train")
def tokenizer_train(
    files: Annotated[list[Path], typer.Argument(help="Text files or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    vocab_size: Annotated[int, typer.Option(help="Entries, rounded up to a multiple of 64.")] = 32_768,
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
) -> None:
    """Train a byte-level BPE with ModernBERT's special tokens."""
    from modernbert.recipes.prepare import train_tokenizer

    tokenizer = train_tokenizer(
        files,
        vocab_size=vocab_size,
        text_key=text_key,
        text_unit=text_unit,
        max_document_bytes=max_document_bytes,
    )
    tokenizer.save_pretrained(output)
    telemetry.result(f"{output}: {tokenizer.vocab_size} entries")


@tokenizer_app.command("modernbert")
def tokenizer_modernbert(
    base: Annotated[Path, typer.Argument(help="The OLMo v1.5 tokenizer.json.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
) -> None:
    """Build ModernBERT's own tokenizer from the OLMo one."""
    from modernbert.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.modernbert(base)
    tokenizer.save_pretrained(output)
    telemetry.result(f"{output}: {tokenizer.vocab_size} entries")


@tokenizer_app.command("encode")
def tokenizer_encode(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT…")],
    model: TokenizerName,
    as_json: AsJson = False,
) -> None:
    """Show how texts are cut into tokens."""
    from modernbert.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(model)
    encoded = tokenizer.encode_batch(texts)
    if as_json:
        telemetry.result_json(encoded[0] if len(texts) == 1 else encoded)
    else:
        for ids in encoded:
            telemetry.result(" ".join(f"{tokenizer.token(token)}:{token}" for token in ids))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, on `sys.argv` if no arguments are given; return its exit code."""
    telemetry.accept_any_text()
    try:
        app(arguments)
    except ModernBertError as error:
        telemetry.note(f"error: {error}")
        return 1
    except SystemExit as done:  # how typer ends, after printing what there is to print
        return int(done.code or 0)
    return 0
