"""Named tensors in safetensors files: what the library leaves to its caller when disks and files fail."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from modernbert.errors import CheckpointError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file, memory-mapped.

    Raises:
        CheckpointError: The file is missing, cut short, or a pickle.
    """
    with _whole(path):
        return load_file(path)


def read_tensors_and_notes(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read copies of all tensors, which outlive the file, and its notes.

    Raises:
        CheckpointError: The file is missing, cut short, or a pickle.
    """
    with _whole(path), safe_open(path, framework="pt") as opened:
        names = opened.keys()
        return {name: opened.get_tensor(name).clone() for name in names}, dict(opened.metadata() or {})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write tensors of any device, readable by whom the umask lets.

    Raises:
        OSError: The file could not be written.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors would leave a file that only its owner can read
    with system_errors():
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, dict(notes))
    path.chmod(mode)


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Turn safetensors' word for a full disk, `… (os error 28)`, back into the `OSError` that it was."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"`{path}` does not exist; a checkpoint must hold it; check the path") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"`{path}` is not a whole safetensors file: {_diagnosis(path, error)}"
        ) from error


def _diagnosis(path: Path, error: SafetensorError) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "it is a pickle, which can run any code when it is read; convert it with transformers"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer in place of the weights; run `git lfs pull` in its folder"
    return f"{error}; it was probably cut short; get the file again"
