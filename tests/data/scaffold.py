"""What tests of token shards stand on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modernbert.errors import InputError, ModernBertError


class Bytes:
    """A tokenizer whose tokens are bytes, spaced out over its vocabulary."""

    def __init__(self, vocab_size: int = 300, fingerprint: str = "bytes") -> None:
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint
        self.encoded: list[str] = []

    def encode_batch(self, texts: list[str], *, special: bool, literal: bool) -> list[list[int]]:
        assert not special
        self.encoded += texts
        step = self.vocab_size // 256
        return [[byte * step for byte in text.encode().strip(b"\0")] for text in texts]


def refusal(call: Callable[[], Any], kind: type[ModernBertError] = InputError) -> str:
    """Return the message with which a call fails."""
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def content(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
