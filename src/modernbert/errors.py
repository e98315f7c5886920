"""The package's exceptions. One message pattern: what it is; what it must be; what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ModernBertError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(ModernBertError, ValueError):
    """A setting that is unknown, missing, ill-typed or contradicts another."""


class InputError(ModernBertError, ValueError):
    """Text, tokens or files that cannot be used as they are."""


class BackendError(ModernBertError, RuntimeError):
    """A named backend that cannot serve this device, dtype or shape."""


class CheckpointError(ModernBertError, RuntimeError):
    """A checkpoint that cannot be read, or does not fit the model."""


class StorageError(ModernBertError, OSError):
    """A file that could not be written: full disk, no permission."""


class DivergenceError(ModernBertError, ArithmeticError):
    """A training loss or gradient that is not finite, or leaps beyond what the run allows."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `; did you mean `x`?` for the nearest of `choices`, or their list if none is near."""
    known = sorted(choices)
    near = nearest(name, known)
    return f"; it must be one of: {', '.join(known)}" if near is None else f"; did you mean `{near}`?"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the one of `choices` that `name` may have been meant for; None if none is near."""
    return next(iter(difflib.get_close_matches(name, sorted(choices), n=1, cutoff=0.65)), None)
