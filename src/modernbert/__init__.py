"""ModernBERT through its whole life: packed tokens, one plain definition of each operation.

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
    from modernbert.infer.encoder import Encoder
    from modernbert.infer.loading import load
    from modernbert.infer.sparse import SparseEncoder
    from modernbert.layout import SequenceLayout, pack
    from modernbert.model.config import EncoderConfig, HeadConfig
    from modernbert.model.encoder import ModernBertModel
    from modernbert.model.heads import (
        ModernBertForMaskedLM,
        ModernBertForMultipleChoice,
        ModernBertForQuestionAnswering,
        ModernBertForSequenceClassification,
        ModernBertForTokenClassification,
    )
    from modernbert.model.padded import PaddedModel
    from modernbert.train.stable_adamw import StableAdamW

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DivergenceError",
    "Encoder",
    "EncoderConfig",
    "HeadConfig",
    "InputError",
    "ModernBertError",
    "ModernBertForMaskedLM",
    "ModernBertForMultipleChoice",
    "ModernBertForQuestionAnswering",
    "ModernBertForSequenceClassification",
    "ModernBertForTokenClassification",
    "ModernBertModel",
    "PaddedModel",
    "SequenceLayout",
    "SparseEncoder",
    "StableAdamW",
    "StorageError",
    "Tokenizer",
    "load",
    "pack",
]

_MODULES = {
    "BackendError": "modernbert.errors",
    "CheckpointError": "modernbert.errors",
    "ConfigError": "modernbert.errors",
    "DivergenceError": "modernbert.errors",
    "Encoder": "modernbert.infer.encoder",
    "EncoderConfig": "modernbert.model.config",
    "HeadConfig": "modernbert.model.config",
    "InputError": "modernbert.errors",
    "ModernBertError": "modernbert.errors",
    "ModernBertForMaskedLM": "modernbert.model.heads",
    "ModernBertForMultipleChoice": "modernbert.model.heads",
    "ModernBertForQuestionAnswering": "modernbert.model.heads",
    "ModernBertForSequenceClassification": "modernbert.model.heads",
    "ModernBertForTokenClassification": "modernbert.model.heads",
    "ModernBertModel": "modernbert.model.encoder",
    "PaddedModel": "modernbert.model.padded",
    "SequenceLayout": "modernbert.layout",
    "SparseEncoder": "modernbert.infer.sparse",
    "StableAdamW": "modernbert.train.stable_adamw",
    "StorageError": "modernbert.errors",
    "Tokenizer": "modernbert.data.tokenizer",
    "load": "modernbert.infer.loading",
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
