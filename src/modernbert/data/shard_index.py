"""The `index.json` of token shards: what they were made of, their checksums, how far the writing got."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert import config, files
from modernbert.data.corpus import TextFile
from modernbert.errors import ConfigError, InputError

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A text file as it was when it was read. Of one that lies elsewhere, a version stands for the time."""

    path: str
    bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: TextFile) -> InputFile:
        """Look at a file."""
        if not isinstance(path, Path):
            return cls(path=str(path), bytes=path.size, modified_ns=path.version)
        status = path.stat()
        return cls(path=str(path.resolve()), bytes=status.st_size, modified_ns=status.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class Position:
    """How much of the input is used up: all files before `file`, and `documents` of that one."""

    file: int = 0
    documents: int = 0


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One pair of files, and the position in the input after it."""

    name: str
    documents: int
    tokens: int
    tokens_sha256: str
    offsets_sha256: str
    end: Position

    def tokens_path(self, folder: Path) -> Path:
        """Where its tokens are."""
        return folder / f"{self.name}.tokens"

    def offsets_path(self, folder: Path) -> Path:
        """Where its documents' offsets are."""
        return folder / f"{self.name}.offsets.npy"

    def check_size(self, folder: Path, dtype: str) -> None:
        """Make sure that the file of its tokens is there, with the right size.

        Raises:
            InputError: It is not.
        """
        path = self.tokens_path(folder)
        expected = self.tokens * np.dtype(dtype).itemsize
        found = path.stat().st_size if path.exists() else 0
        if found != expected:
            raise damaged(path, f"has {found:,} bytes, must have {expected:,}")

    def load_offsets(self, folder: Path) -> NDArray[np.int64]:
        """Read where each document begins and, last, the number of tokens.

        Raises:
            InputError: The file is missing, damaged or of another shard.
        """
        path = self.offsets_path(folder)
        try:
            offsets: NDArray[np.int64] = np.load(path).astype(np.int64)
        except (OSError, ValueError, EOFError) as error:
            raise damaged(path, f"cannot be read ({error})") from None
        if offsets.shape != (self.documents + 1,) or offsets[0] != 0 or offsets[-1] != self.tokens:
            raise damaged(
                path, f"does not fit the index ({self.documents:,} documents, {self.tokens:,} tokens)"
            )
        return offsets

    def verify(self, folder: Path) -> None:
        """Compare both files with their checksums.

        Raises:
            InputError: One differs.
        """
        for path, checksum in self.checksums(folder).items():
            if files.sha256(path) != checksum:
                raise damaged(path, "does not match its checksum")

    def checksums(self, folder: Path) -> dict[Path, str]:
        """Return its files and their SHA-256."""
        return {self.tokens_path(folder): self.tokens_sha256, self.offsets_path(folder): self.offsets_sha256}


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The whole `index.json`. `complete` is true once all input is in a shard."""

    format: int = FORMAT
    dtype: str
    tokenizer: str
    vocab_size: int
    text_key: str
    text_unit: str
    shard_tokens: int
    max_tokens: int | None = None
    inputs: tuple[InputFile, ...]
    shards: tuple[Shard, ...] = ()
    complete: bool = False

    @property
    def position(self) -> Position:
        """The position in the input after the last shard."""
        return self.shards[-1].end if self.shards else Position()

    @property
    def num_documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def num_tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def num_input_bytes(self) -> int:
        return sum(file.bytes for file in self.inputs)

    @classmethod
    def load(cls, folder: Path) -> ShardIndex:
        """Read the index in `folder`.

        Raises:
            InputError: There is none, or it is damaged or of another format.
        """
        path = folder / "index.json"
        if not path.exists():
            raise InputError(
                f"`{folder}` holds no token shards (no `index.json`); write them, or correct the path"
            )
        return cls.parse(files.read_json(path), str(path))

    @classmethod
    def parse(cls, tree: Any, where: str) -> ShardIndex:
        """Make an index of what `where`, an `index.json`, holds.

        Raises:
            InputError: It is damaged or of another format.
        """
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise InputError(
                f"`{where}` is not an index of token shards of format {FORMAT}; write them anew elsewhere"
            )
        try:
            return config.build(cls, tree)
        except ConfigError as error:
            raise InputError(f"`{where}` is damaged ({error}); write the shards anew elsewhere") from None

    def save(self, folder: Path) -> None:
        """Write the index to `folder`, atomically."""
        files.write_json(folder / "index.json", config.to_tree(self))

    def changes(self, plan: ShardIndex) -> list[str]:
        """Say in what `plan` differs from what these shards were made of.

        Files that an unfinished run has not begun may differ: a faulty line is mended, a file added.
        """
        num_inputs = None if self.complete else self.position.file + 1
        return config.differences(self._origins(num_inputs), plan._origins(num_inputs))

    def _origins(self, num_inputs: int | None) -> dict[str, Any]:
        """Return what must not change; the order of the files is part of their names."""
        inputs = {
            f"{number}: {file.path}": f"{file.bytes} bytes, modified {file.modified_ns}"
            for number, file in enumerate(self.inputs[:num_inputs])
        }
        tree = config.to_tree(replace(self, inputs=(), shards=(), complete=False))
        return {**tree, "inputs": inputs}


def damaged(path: Path, what: str) -> InputError:
    """Return the error of a file of token shards that is not as it was written."""
    return InputError(
        f"`{path}` is damaged: it {what}; put it back as it was, or remove the folder `{path.parent}` and "
        "write the shards again"
    )
