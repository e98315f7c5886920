"""Packed attention, global or windowed: the table of backends and the rule that chooses one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from modernbert.errors import BackendError, did_you_mean
from modernbert.layout import SequenceLayout
from modernbert.ops import contest, portable, reference, varlen
from modernbert.ops.contest import AttentionFunction
from modernbert.ops.hopper import fa3, fa4

log = logging.getLogger(__name__)


class Backend(NamedTuple):
    """One way to compute `reference.attention`, and why it cannot serve a device, dtype and head width."""

    run: AttentionFunction
    refusal: Callable[[torch.device, torch.dtype, int], str | None]


def _serves_all(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    return None


BACKENDS: dict[str, Backend] = {
    "varlen": Backend(varlen.attention, varlen.refusal),
    "fa3": Backend(fa3.attention, fa3.refusal),
    "fa4": Backend(fa4.attention, fa4.refusal),
    "portable": Backend(portable.attention, _serves_all),
    "plain": Backend(reference.attention, _serves_all),
}
"""By name. Two names joined by `+` are a pair: the first for global layers, the second for windowed ones."""

RIVALS = ("varlen", "fa3")
"""Those that `auto` times against one another. Where none can serve it takes `portable`.

`fa4` is taken by name alone, until all of its tests have run on a GPU.
"""


class Pair(NamedTuple):
    """The names of the backends for global and for windowed layers."""

    globally: str
    windowed: str

    def __str__(self) -> str:
        if self.globally == self.windowed:
            return self.globally
        return f"{self.globally} for global layers, {self.windowed} for windowed ones"


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
        backend: A name in `BACKENDS`, a pair such as `fa3+varlen`, or `auto`.

    Returns:
        `[T, N, H]`.

    Raises:
        BackendError: The named backend is unknown or cannot serve these tensors.
    """
    name = choose(backend, q.device, q.dtype, q.shape[-1], window is not None)
    return BACKENDS[name].run(q, k, v, layout, window)


def choose(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int, is_windowed: bool = False
) -> str:
    """Return which row of `BACKENDS` serves: for `auto` the fastest that can, which is logged once.

    `auto` measures where several rivals can serve, once a process for training and once for inference. With
    deterministic algorithms it takes the first rival instead: a stopped run must go on with the same one.

    Raises:
        BackendError: The name is unknown, or the backend cannot serve.
    """
    if name == "auto":
        is_fixed = torch.are_deterministic_algorithms_enabled()
        pair = _automatic(device, dtype, head_dim, torch.is_grad_enabled(), is_fixed)
    else:
        pair = _named(name, device, dtype, head_dim)
    return pair.windowed if is_windowed else pair.globally


# The compiler calls it, instead of tracing into it, and takes the answer for a constant. So says
# `torch.compiler.assume_constant_result` too, but it imports the compiler.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def parse(name: str) -> Pair:
    """Return what a name stands for; `auto` is not among them.

    Raises:
        BackendError: It, or half of it, is unknown.
    """
    parts = name.split("+")
    known = [*BACKENDS] if len(parts) > 1 else ["auto", *BACKENDS]
    for part in parts:
        if part not in BACKENDS:
            raise BackendError(f"unknown attention backend `{part}`{did_you_mean(part, known)}")
    if len(parts) > 2:
        raise BackendError(
            f"the attention backend `{name}` names {len(parts)}; it must be one, or two joined by `+`: the "
            "first for global layers, the second for windowed ones"
        )
    return Pair(parts[0], parts[-1])


@cache
def _named(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Pair:
    pair = parse(name)
    for part in pair:
        why = BACKENDS[part].refusal(device, dtype, head_dim)
        if why is not None:
            raise BackendError(f"attention backend `{part}` cannot serve: {why}; choose `auto` or `portable`")
    return pair


@cache
def _automatic(
    device: torch.device, dtype: torch.dtype, head_dim: int, has_backward: bool, is_fixed: bool
) -> Pair:
    refusals = {name: BACKENDS[name].refusal(device, dtype, head_dim) for name in RIVALS}
    serving = [name for name, why in refusals.items() if why is None]
    passed_over = "".join(
        f"; not {', '.join(name for name in RIVALS if refusals[name] == why)}: {why}"
        for why in dict.fromkeys(filter(None, refusals.values()))
    )
    if len(serving) < 2 or is_fixed:
        chosen = serving[0] if serving else "portable"
        _say(f"attention backend for {device}, {dtype}: {chosen}{passed_over}")
        return Pair(chosen, chosen)
    pair, figures = _fastest(serving, device, dtype, head_dim, has_backward)
    _say(f"attention backend for {device}, {dtype}: {pair} ({figures}){passed_over}")
    return pair


def _fastest(
    names: Sequence[str], device: torch.device, dtype: torch.dtype, head_dim: int, has_backward: bool
) -> tuple[Pair, str]:
    """Measure backends on both kinds of layers; return the fastest of each, and the figures in words."""
    runs = {name: BACKENDS[name].run for name in names}
    chosen, figures = [], []
    for kind, window in (("global", None), ("windowed", contest.WINDOW)):
        times = contest.measure(runs, device, dtype, head_dim, window=window, has_backward=has_backward)
        chosen.append(min(times, key=times.__getitem__))
        figures.append(f"{kind} " + ", ".join(f"{name} {times[name]:.2f}" for name in names))
    passes = "forward and backward" if has_backward else "forward"
    return Pair(*chosen), f"{passes}, ms for {sum(contest.LENGTHS):,} tokens: {'; '.join(figures)}"


@cache
def _say(message: str) -> None:
    log.info(message)
