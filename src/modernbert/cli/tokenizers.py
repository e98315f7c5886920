"""The verbs of `modernbert tokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modernbert import telemetry
from modernbert.cli.options import AsJson, MaxDocumentBytes, TextFiles, TextKey, TextUnit, TokenizerName

app = typer.Typer(no_args_is_help=True, help="Train, build and look at tokenizers.")


@app.command()
def train(
    files: TextFiles,
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


@app.command()
def modernbert(
    base: Annotated[Path, typer.Argument(help="The OLMo v1.5 tokenizer.json.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
) -> None:
    """Build ModernBERT's own tokenizer from the OLMo one."""
    from modernbert.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.modernbert(base)
    tokenizer.save_pretrained(output)
    telemetry.result(f"{output}: {tokenizer.vocab_size} entries")


@app.command()
def encode(
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


@app.command()
def words(
    files: TextFiles,
    model: TokenizerName,
    count: Annotated[int, typer.Option(help="At most so many; the unused tokens are the limit.")] = 80,
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
    as_json: AsJson = False,
) -> None:
    """Propose words for the unused tokens: those that cost most tokens in this text, the costliest first."""
    from modernbert.data.corpus import find_files, read_documents
    from modernbert.data.tokenizer import Tokenizer
    from modernbert.data.vocabulary import propose_words

    documents = read_documents(
        find_files(files), text_key=text_key, text_unit=text_unit, max_document_bytes=max_document_bytes
    )
    texts = (document.text for document in documents)
    found = propose_words(texts, Tokenizer.from_pretrained(model), count)
    if as_json:
        telemetry.result_json(found)
    else:
        for word in found:
            telemetry.result(word)


@app.command()
def compare(
    files: TextFiles,
    models: Annotated[
        list[str], typer.Option("--model", "-m", help="Folder or hub id; give it again for each tokenizer.")
    ],
    max_bytes: Annotated[
        int, typer.Option(help="Read so much of each file, from its beginning.")
    ] = 2_000_000,
    text_key: TextKey = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: MaxDocumentBytes = 4_000_000,
    as_json: AsJson = False,
) -> None:
    """Say how many bytes of each file a token of each tokenizer stands for: more is shorter sequences."""
    from modernbert.data.corpus import find_files, read_documents
    from modernbert.data.tokenizer import Tokenizer
    from modernbert.data.vocabulary import bytes_per_token

    tokenizers = {name: Tokenizer.from_pretrained(name) for name in models}
    rows = []
    for file in find_files(files):
        documents = read_documents(
            [file], text_key=text_key, text_unit=text_unit, max_document_bytes=max_document_bytes
        )
        texts = (document.text for document in documents)
        rows.append({"file": str(file), **bytes_per_token(tokenizers, texts, max_bytes=max_bytes)})
    if as_json:
        telemetry.result_json(rows)
        return
    for row in rows:
        found = ", ".join(f"{name} {row[name]:.3f}" for name in tokenizers)
        telemetry.result(f"{row['file']}: {found}")
