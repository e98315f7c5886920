"""What a run needs before its first step: its folder, its tokenizer, its token shards."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from modernbert import telemetry
from modernbert.data.corpus import Document, TextUnit, find_files, read_documents, size_of
from modernbert.data.remote import is_url
from modernbert.data.shard_fetch import fetch_shards, has_shards
from modernbert.data.shard_index import ShardIndex
from modernbert.data.shards import TokenShards, WriteProgress, write_shards
from modernbert.data.source import SourceSettings
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError
from modernbert.recipes import run_folder
from modernbert.recipes.distillation import check_vocabulary, read_teacher
from modernbert.recipes.settings import DataSettings, PretrainRun
from modernbert.recipes.start import open_tokenizer
from modernbert.recipes.supply import check_supply

log = logging.getLogger(__name__)

# What may differ when a run goes on. The text may have moved: the run has it as token shards.
_FREE_SETTINGS = re.compile(
    r"`(folder|device|distribution(\..*)?|guard(\..*)?|checkpoint\..*|log(\..*)?|validation\.by_length.*|"
    r"data\.sources\.\d+\.path|data\.(verify_shards|repeat))`:"
)
# What, if it differs, makes other tokens of the text.
_OTHER_TOKENS = re.compile(
    r"`(tokenizer.*|start.*|data\.(text_key|text_unit|sources(\.\d+\.(?!weight)\w+)?))`:"
)


def claim(folder: Path, run: PretrainRun, facts: dict[str, Any]) -> None:
    """Take a new folder for this run, or make sure that an old one holds the same run.

    Raises:
        ConfigError: The folder holds a run with other settings.
    """
    changed = run_folder.check_settings(folder, run, _FREE_SETTINGS)
    if not run_folder.has_begun(folder) and any(_OTHER_TOKENS.match(line) for line in changed):
        for name in ("tokenizer", "shards"):  # of the old settings
            shutil.rmtree(folder / name, ignore_errors=True)
    run_folder.write_settings(folder, run, facts)


def check_teacher(run: PretrainRun, folder: Path) -> None:
    """Make sure that the run can learn from its teacher, if it has one.

    Raises:
        CheckpointError: The teacher, or the run's tokenizer, cannot be found or read.
        InputError: The tokenizer of one of them is damaged.
        ConfigError: The teacher does not fit the run.
    """
    if run.distillation is None:
        return
    read_teacher(run.distillation, run.model, run.longest_sequence)
    assert run.tokenizer.path is not None
    if run_folder.has_begun(folder):
        tokenizer = Tokenizer.from_pretrained(folder / "tokenizer")
    else:
        tokenizer = open_tokenizer(run.tokenizer.path, run.start)
    check_vocabulary(run.distillation, tokenizer)


def prepare_tokenizer(run: PretrainRun, folder: Path) -> Tokenizer:
    """Load the tokenizer, or train it on the run's text; a copy stays in the folder."""
    path = folder / "tokenizer"
    if (path / "tokenizer.json").exists():
        return Tokenizer.from_pretrained(path)
    if run.tokenizer.path is not None:
        tokenizer = open_tokenizer(run.tokenizer.path, run.start)
    else:
        assert run.tokenizer.vocab_size is not None
        for source in run.data.sources:
            if (Path(source.path) / "index.json").exists():
                raise ConfigError(
                    f"source `{source.name}` is token shards, `{source.path}`, on which no tokenizer can be "
                    "trained; `tokenizer.path` must name the tokenizer that they were made with; set it"
                )
        tokenizer = _train(_documents(run.data), run.tokenizer.vocab_size)
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
    return _train(documents, vocab_size)


def _documents(data: DataSettings) -> Iterator[Document]:
    for source in data.sources:
        yield from read_documents(
            find_files(source.path),
            text_key=source.text_key or data.text_key,
            text_unit=data.text_unit,
            max_document_bytes=data.max_document_bytes,
        )


def _train(documents: Iterable[Document], vocab_size: int) -> Tokenizer:
    with telemetry.progress("train tokenizer", None, "characters") as meter:
        texts = (document.text for document in documents)
        return Tokenizer.train(texts, vocab_size=vocab_size, on_progress=meter.advance)


def prepare_shards(
    run: PretrainRun, folder: Path, tokenizer: Tokenizer, *, are_made: bool = False
) -> dict[str, TokenShards]:
    """Open each source's token shards, made from its text first if need be; see that they suffice.

    Args:
        run: What it reads.
        folder: Its folder, which gets what is made.
        tokenizer: Its tokenizer.
        are_made: Another process of the run has done so already: the text is not asked for again.

    Raises:
        InputError: Text or shards cannot be used.
        ConfigError: A phase asks for more than there is.
        StorageError: The disk is full or not writable.
    """
    shards = {}
    for source in run.data.sources:
        # Once the run has begun, its own shards are its text: what they came from may move or go.
        found = _find(folder, source, with_own=are_made or run_folder.has_begun(folder))
        if found is None:
            shards[source.name] = _make_shards(run, folder, tokenizer, source)
        else:
            shards[source.name] = TokenShards.open(found, verify=run.data.verify_shards and not are_made)
        shards[source.name].check_tokenizer(tokenizer)
    check_supply(run, shards)
    return shards


def _make_shards(run: PretrainRun, folder: Path, tokenizer: Tokenizer, source: SourceSettings) -> TokenShards:
    own = _own_shards(folder, source)
    if is_url(source.path) and has_shards(source.path):
        return fetch(source.path, own)
    return tokenize(
        [source.path],
        tokenizer,
        own,
        text_key=source.text_key or run.data.text_key,
        text_unit=run.data.text_unit,
        max_document_bytes=run.data.max_document_bytes,
        max_tokens=source.max_tokens,
    )


def find_shards(folder: Path, source: SourceSettings) -> TokenShards | None:
    """Open a source's token shards if they are there already, whole, on this machine.

    Raises:
        InputError: They are damaged.
    """
    found = _find(folder, source, with_own=True)
    return TokenShards.open(found) if found and ShardIndex.load(found).complete else None


def _find(folder: Path, source: SourceSettings, *, with_own: bool) -> Path | None:
    """Return the folder of a source's token shards: the one that it names, or the run's own of it."""
    named = [] if is_url(source.path) else [Path(source.path)]
    own = [_own_shards(folder, source)] if with_own else []
    return next((place for place in (*named, *own) if (place / "index.json").exists()), None)


def _own_shards(folder: Path, source: SourceSettings) -> Path:
    return folder / "shards" / source.name


def fetch(url: str, folder: Path) -> TokenShards:
    """Copy token shards from a URL, with progress. See `data.shard_fetch.fetch_shards`."""
    with telemetry.progress(f"fetch {folder.name}", None, "files") as meter:
        return fetch_shards(url, folder, on_progress=lambda _: meter.advance(1))


def tokenize(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    text_key: str = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: int = 4_000_000,
    max_tokens: int | None = None,
    shard_tokens: int = 10_000_000,
) -> TokenShards:
    """Write text as token shards to `folder`, with progress. See `data.shards.write_shards`."""
    size = sum(size_of(file) for file in find_files(paths))
    with telemetry.progress(f"tokenize {folder.name}", size or None, "bytes") as meter:
        return write_shards(
            paths,
            tokenizer,
            folder,
            text_key=text_key,
            text_unit=text_unit,
            max_document_bytes=max_document_bytes,
            max_tokens=max_tokens,
            shard_tokens=shard_tokens,
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
