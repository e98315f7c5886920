"""Packed attention, global or windowed: the table of backends and the rule that chooses one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from modernbert.errors import BackendError, did_you_mean
from modernbert.layout import SequenceLayout
from modernbert.ops import portable, reference, varlen

log = logging.getLogger(__name__)

AttentionFunction = Callable[[Tensor, Tensor, Tensor, SequenceLayout, int | None], Tensor]


class Backend(NamedTuple):
    """One way to compute `reference.attention`, and why it cannot serve a device, dtype and head width."""

    run: AttentionFunction
    refusal: Callable[[torch.device, torch.dtype, int], str | None]


def _serves_all(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    return None


# In order of preference: `auto` takes the first that can serve.
BACKENDS: dict[str, Backend] = {
    "varlen": Backend(varlen.attention, varlen.refusal),
    "portable": Backend(portable.attention, _serves_all),
    "plain": Backend(reference.attention, _serves_all),
}


def attention(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, window: int | None, backend: str = "auto"
) -> Tensor:
    """Bidirectional softmax attention inside each sequence of a packed row (paper 2.1.2).

    Args:
        q: Queries `[T, N, H]`, already rotated.
        k: Keys `[T, N, H]`, already rotated.
        v: Values `[T, N, H]`.
        layout: Where each sequence lies; no token sees another sequence.
        window: Tokens visible on each side, or None for all of the sequence.
        backend: A name in `BACKENDS`, or `auto`.

    Returns:
        `[T, N, H]`.

    Raises:
        BackendError: The named backend is unknown or cannot serve these tensors.
    """
    return choose(backend, q.device, q.dtype, q.shape[-1]).run(q, k, v, layout, window)


@cache
def choose(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """Return the named backend, or for `auto` the first that can serve; `auto` logs its choice once.

    Raises:
        BackendError: The name is unknown, or the backend cannot serve.
    """
    if name != "auto":
        return _named(name, device, dtype, head_dim)
    refusals: list[tuple[str, str]] = []
    for candidate, backend in BACKENDS.items():
        why = backend.refusal(device, dtype, head_dim)
        if why is None:
            passed_over = "".join(f"; not {other}: {reason}" for other, reason in refusals)
            log.info("attention backend for %s, %s: %s%s", device, dtype, candidate, passed_over)
            return backend
        refusals.append((candidate, why))
    raise BackendError(f"no attention backend serves {device}, {dtype}, head width {head_dim}: {refusals}")


def _named(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    if name not in BACKENDS:
        raise BackendError(f"unknown attention backend `{name}`{did_you_mean(name, ['auto', *BACKENDS])}")
    why = BACKENDS[name].refusal(device, dtype, head_dim)
    if why is not None:
        raise BackendError(f"attention backend `{name}` cannot serve: {why}; choose `auto` or `portable`")
    return BACKENDS[name]
