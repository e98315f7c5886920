"""Safetensors files on disks that fail: errors keep their number, and files their mode."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from modernbert.model.tensor_files import system_errors, write_tensors


def test_a_written_file_is_readable_as_any_other(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"transposed": torch.randn(3, 4).T, "scalar": torch.tensor(1.5)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"note": "1"})
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_other_words_of_safetensors_are_not_taken_for_the_systems() -> None:
    with pytest.raises(SafetensorError, match="invalid"), system_errors():
        raise SafetensorError("invalid header")
    with pytest.raises(OSError, match="denied") as caught, system_errors():
        raise SafetensorError("I/O error: denied (os error 13)")
    assert caught.value.errno == errno.EACCES
