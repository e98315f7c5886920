"""ModernBERT from raw text to a filled mask: packed tokens, one plain definition of each operation.

The names below are loaded on first use, so that `import modernbert` costs nothing: not even torch.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modernbert.data.tokenizer import Tokenizer
    from modernbert.errors import (
        BackendError,
        CheckpointError,
        ConfigError,
        DivergenceError,
        InputError,
        ModernBertError,
        StorageError,
    )
    from modernbert.infer.fill_mask import FillMask
    from modernbert.layout import SequenceLayout, pack
    from modernbert.model.config import EncoderConfig
    from modernbert.model.encoder import ModernBertModel
    from modernbert.model.heads import ModernBertForMaskedLM
    from modernbert.train.optim import StableAdamW

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DivergenceError",
    "EncoderConfig",
    "FillMask",
    "InputError",
    "ModernBertError",
    "ModernBertForMaskedLM",
    "ModernBertModel",
    "SequenceLayout",
    "StableAdamW",
    "StorageError",
    "Tokenizer",
    "pack",
]

_MODULES = {
    "BackendError": "modernbert.errors",
    "CheckpointError": "modernbert.errors",
    "ConfigError": "modernbert.errors",
    "DivergenceError": "modernbert.errors",
    "EncoderConfig": "modernbert.model.config",
    "FillMask": "modernbert.infer.fill_mask",
    "InputError": "modernbert.errors",
    "ModernBertError": "modernbert.errors",
    "ModernBertForMaskedLM": "modernbert.model.heads",
    "ModernBertModel": "modernbert.model.encoder",
    "SequenceLayout": "modernbert.layout",
    "StableAdamW": "modernbert.train.optim",
    "StorageError": "modernbert.errors",
    "Tokenizer": "modernbert.data.tokenizer",
    "pack": "modernbert.layout",
}

try:
    __version__ = metadata.version("modernbert")
except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH that was never installed
    __version__ = "0+checkout"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `modernbert` has no public name `{name}`; see `modernbert.__all__`")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
