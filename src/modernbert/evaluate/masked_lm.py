"""The masked language model that is measured."""

from __future__ import annotations

from modernbert.errors import ConfigError, InputError
from modernbert.infer.encoder import Encoder
from modernbert.infer.loading import load
from modernbert.model.heads import ModernBertForMaskedLM


def load_masked_lm(name: str, *, device: str = "auto", dtype: str = "float32") -> Encoder:
    """Load a model that fills masks; in bfloat16 many of its scores would be the same.

    Raises:
        CheckpointError: It cannot be loaded.
        InputError: It has another head.
    """
    model = load(name, device=device, dtype=dtype)
    if model.architecture != ModernBertForMaskedLM.__name__:
        raise InputError(
            f"`{name}` is a `{model.architecture}`; to be measured it must fill masks; give a "
            f"`{ModernBertForMaskedLM.__name__}`"
        )
    return model


def check_length(length: int, model: Encoder) -> None:
    """Make sure that a model takes sequences of this length.

    Raises:
        ConfigError: It does not.
    """
    if length > model.max_length:
        raise ConfigError(
            f"`length` is {length:,}; `{model.name}` takes {model.max_length:,} tokens at most; lower it"
        )
