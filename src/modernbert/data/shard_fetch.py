"""Token shards behind a URL, copied to this machine: training reads pieces of them in any order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from modernbert import files
from modernbert.data.remote import read_remote, unreachable
from modernbert.data.shard_index import ShardIndex
from modernbert.data.shards import TokenShards
from modernbert.errors import InputError

_PIECE_BYTES = 1 << 22


def has_shards(url: str) -> bool:
    """Whether a URL names a folder of token shards; what cannot be reached counts as none."""
    try:
        read_remote(_below(url, "index.json")).close()
    except InputError:
        return False
    return True


def fetch_shards(url: str, folder: Path, *, on_progress: Callable[[Path], None] | None = None) -> TokenShards:
    """Copy token shards to `folder`, or go on with it, or, if all is there, just open it.

    Each file is compared with its checksum as it comes, and is there whole or not at all.

    Args:
        url: Of the folder that `write_shards` filled.
        folder: New, or from an earlier call.
        on_progress: Called with each file that is there.

    Raises:
        InputError: The shards are not finished, cannot be reached or do not match their checksums.
        StorageError: The disk is full or not writable. What was copied stays; call again to go on.
    """
    if (folder / "index.json").exists():
        return TokenShards.open(folder)
    index = _read_index(url)
    checksums = {
        path.name: checksum for shard in index.shards for path, checksum in shard.checksums(folder).items()
    }
    for name, checksum in checksums.items():
        path = folder / name
        if not path.exists() or files.sha256(path) != checksum:
            _copy(_below(url, name), path, checksum)
        if on_progress is not None:
            on_progress(path)
    index.save(folder)
    return TokenShards.open(folder)


def _read_index(url: str) -> ShardIndex:
    where = _below(url, "index.json")
    with read_remote(where) as file:
        try:
            tree = json.load(file)
        except ValueError as error:
            raise InputError(f"`{where}` is not valid JSON ({error}); write the shards anew") from None
    index = ShardIndex.parse(tree, where)
    if not index.complete:
        raise InputError(
            f"the token shards in `{url}` are not finished; all must be there; finish them, then start again"
        )
    return index


def _copy(url: str, path: Path, checksum: str) -> None:
    found = hashlib.sha256()
    with read_remote(url) as source, files.atomic_file(path) as temporary, temporary.open("wb") as target:
        while piece := _read(source.read, url):
            found.update(piece)
            target.write(piece)
        if found.hexdigest() != checksum:
            raise InputError(
                f"`{url}` is damaged: it does not match its checksum; it must be as it was written; "
                "put a whole copy there, then start again"
            )


def _read(read: Callable[[int], bytes], url: str) -> bytes:
    try:
        return read(_PIECE_BYTES)
    except OSError as error:  # not one of the disk that is written to
        raise unreachable(url, error) from error


def _below(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"
