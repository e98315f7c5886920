"""The exceptions keep their families, and a wrong name gets the nearest right one."""

from __future__ import annotations

import pytest

from modernbert import errors
from modernbert.errors import ModernBertError, did_you_mean


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ConfigError", ValueError),
        ("InputError", ValueError),
        ("BackendError", RuntimeError),
        ("CheckpointError", RuntimeError),
        ("StorageError", OSError),
        ("DivergenceError", ArithmeticError),
    ],
)
def test_an_error_is_caught_as_ours_and_as_pythons(name: str, family: type[Exception]) -> None:
    error = getattr(errors, name)
    assert issubclass(error, ModernBertError)
    assert issubclass(error, family)
    assert str(error("`x` is 1; it must be 2")) == "`x` is 1; it must be 2"


def test_did_you_mean() -> None:
    assert did_you_mean("weight_deacy", ["weight_decay", "lr"]) == "; did you mean `weight_decay`?"
    assert did_you_mean("colour", ["b", "a"]) == "; it must be one of: a, b"
    assert did_you_mean("", iter(["b", "a"])) == "; it must be one of: a, b"
