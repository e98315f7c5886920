"""Files that are either whole or absent: atomic writes, checksums, and errors that name the disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modernbert.errors import ConfigError, InputError, StorageError


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write below `path` into a `StorageError` with a remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        remedy = {
            errno.ENOSPC: "the disk is full; free space or choose a folder on another disk",
            errno.EDQUOT: "your quota is used up; free space or choose a folder on another disk",
            errno.EACCES: "there is no permission to write there; choose another folder",
            errno.EPERM: "there is no permission to write there; choose another folder",
            errno.EROFS: "the file system is read-only; choose another folder",
            errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
            errno.EEXIST: "a part of this path is a file, not a folder; choose another folder",
            errno.EISDIR: "it is a folder; choose another name",
        }.get(error.errno or 0)
        if remedy is None:
            raise
        raise StorageError(f"could not write `{path}`: {remedy}; nothing written before was lost") from error


@contextlib.contextmanager
def hold(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder, made if it is missing, while the block runs, so that no second process writes to it.

    Args:
        folder: Gets a file `.lock`.
        refusal: What to say if another process holds it.

    Raises:
        ConfigError: Another process holds it.
        StorageError: The disk is full or not writable.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows has no such locks
            pass
        except BlockingIOError:
            raise ConfigError(refusal) from None
        yield


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends, and vanishes if it fails.

    Raises:
        StorageError: `path` exists already, or the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        if path.exists():
            raise StorageError(f"`{path}` exists already; it must be new; remove it or choose another folder")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in [*temporary.rglob("*"), temporary]:
                _sync(file)
            temporary.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary file name; what is written there becomes `path` when the block ends.

    Raises:
        StorageError: The disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def move_into_place(file: Path, path: Path) -> None:
    """Rename a file that is safe on the disk, in place of any other, and make sure that the rename is too."""
    with storage_errors(path):
        file.replace(path)
        _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is missing, not readable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"`{path}` does not exist") from None
    except OSError as error:
        raise InputError(f"`{path}` could not be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise InputError(
            f"`{path}` is not valid JSON ({error}); it may be cut short, write it again"
        ) from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file or folder to the disk, so that a rename never precedes its content."""
    on_windows = os.name == "nt"  # it opens no folders, and syncs only what may be written
    if on_windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
