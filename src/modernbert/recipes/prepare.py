"""What a run needs before its first step: its folder, its tokenizer, its token shards."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from modernbert import config, files, telemetry
from modernbert.data.corpus import TextUnit, find_files, read_documents
from modernbert.data.shards import TokenShards, WriteProgress, write_shards
from modernbert.data.source import SourceSettings
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError
from modernbert.recipes.settings import PretrainRun

log = logging.getLogger(__name__)

# What may differ when a run goes on. The text may have moved: the run has it as token shards.
_FREE_SETTINGS = re.compile(r"`(folder|device|checkpoint\..*|data\.sources\.\d+\.path|data\.verify_shards)`:")
# What, if it differs, makes other tokens of the text.
_OTHER_TOKENS = re.compile(r"`(tokenizer.*|data\.(text_key|text_unit|sources(\.\d+\.(path|name))?))`:")


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a run's folder while the block runs, so that no second process trains into it.

    Raises:
        ConfigError: The folder is a file, or another process holds it.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"`folder` is `{folder}`, a file; it must be a folder or new; choose another name")
    refusal = (
        f"`folder` `{folder}` is in use by another process; one at a time may train there; wait for it, stop "
        "it, or choose another folder"
    )
    with files.hold(folder, refusal):
        yield


def claim(folder: Path, run: PretrainRun, facts: dict[str, Any]) -> None:
    """Take a new folder for this run, or make sure that an old one holds the same run.

    Until the first checkpoint nothing is learned: settings that turned out wrong may still be mended.

    Raises:
        ConfigError: The folder holds a run with other settings.
    """
    path = folder / "run.yaml"
    if path.exists():
        changed = config.differences(config.load(path), config.to_tree(run))
        bound = [line for line in changed if not _FREE_SETTINGS.match(line)]
        if bound and _has_begun(folder):
            raise ConfigError(
                f"`{folder}` holds a run with other settings ({'; '.join(bound)}); to go on with it, "
                "use the same settings; for a new run, choose another `folder`"
            )
        if bound:
            log.info("no checkpoint yet: the run begins anew with %s", "; ".join(bound))
        if not _has_begun(folder) and any(_OTHER_TOKENS.match(line) for line in changed):
            for name in ("tokenizer", "shards"):  # of the old settings
                shutil.rmtree(folder / name, ignore_errors=True)
    files.write_text(path, config.dump(run))
    files.write_json(folder / "facts.json", facts)


def _has_begun(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("step-*"))


def prepare_tokenizer(run: PretrainRun, folder: Path) -> Tokenizer:
    """Load the tokenizer, or train it on the run's text; a copy stays in the folder."""
    path = folder / "tokenizer"
    if (path / "tokenizer.json").exists():
        return Tokenizer.from_pretrained(path)
    if run.tokenizer.path is not None:
        given = Path(run.tokenizer.path)
        tokenizer = (
            Tokenizer.from_file(given) if given.is_file() else Tokenizer.from_pretrained(run.tokenizer.path)
        )
    else:
        assert run.tokenizer.vocab_size is not None
        for source in run.data.sources:
            if (Path(source.path) / "index.json").exists():
                raise ConfigError(
                    f"source `{source.name}` is token shards, `{source.path}`, on which no tokenizer can be "
                    "trained; `tokenizer.path` must name the tokenizer that they were made with; set it"
                )
        tokenizer = train_tokenizer(
            [source.path for source in run.data.sources],
            vocab_size=run.tokenizer.vocab_size,
            text_key=run.data.text_key,
            text_unit=run.data.text_unit,
            max_document_bytes=run.data.max_document_bytes,
        )
    tokenizer.check_fits(run.model.vocab_size)
    tokenizer.save_pretrained(path)
    return tokenizer


def train_tokenizer(
    paths: Sequence[str | Path],
    *,
    vocab_size: int,
    text_key: str = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: int = 4_000_000,
) -> Tokenizer:
    """Train a tokenizer on text files, with progress. See `Tokenizer.train` and `corpus.read_documents`."""
    documents = read_documents(
        find_files(paths), text_key=text_key, text_unit=text_unit, max_document_bytes=max_document_bytes
    )
    with telemetry.progress("train tokenizer", None, "characters") as meter:
        texts = (document.text for document in documents)
        return Tokenizer.train(texts, vocab_size=vocab_size, on_progress=meter.advance)


def prepare_shards(run: PretrainRun, folder: Path, tokenizer: Tokenizer) -> dict[str, TokenShards]:
    """Open each source's token shards, made from its text first if need be."""
    return {source.name: _open_shards(run, folder, tokenizer, source) for source in run.data.sources}


def _open_shards(run: PretrainRun, folder: Path, tokenizer: Tokenizer, source: SourceSettings) -> TokenShards:
    path, own = Path(source.path), folder / "shards" / source.name
    # Once the run has begun, its own shards are its text: the files they came from may move or go.
    for place in (path, own) if _has_begun(folder) else (path,):
        if (place / "index.json").exists():
            shards = TokenShards.open(place, verify=run.data.verify_shards)
            shards.check_tokenizer(tokenizer)
            return shards
    return tokenize(
        [path],
        tokenizer,
        own,
        text_key=run.data.text_key,
        text_unit=run.data.text_unit,
        max_document_bytes=run.data.max_document_bytes,
    )


def tokenize(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    text_key: str = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: int = 4_000_000,
) -> TokenShards:
    """Write text as token shards to `folder`, with progress. See `data.shards.write_shards`."""
    size = sum(file.stat().st_size for file in find_files(paths))
    with telemetry.progress(f"tokenize {folder.name}", size, "bytes") as meter:
        return write_shards(
            paths,
            tokenizer,
            folder,
            text_key=text_key,
            text_unit=text_unit,
            max_document_bytes=max_document_bytes,
            on_progress=_advance_to(meter),
        )


def _advance_to(meter: telemetry.Meter) -> Callable[[WriteProgress], None]:
    """Turn what `write_shards` says into steps of the meter."""
    read = 0

    def show(progress: WriteProgress) -> None:
        nonlocal read
        meter.advance(
            progress.bytes_read - read,
            documents=telemetry.human(progress.documents),
            tokens=telemetry.human(progress.tokens),
        )
        read = progress.bytes_read

    return show
