"""Which of several attention backends is the fastest here: timed on one small batch, on the device itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from modernbert.layout import SequenceLayout
from modernbert.runtime import time_in_turn

AttentionFunction = Callable[[Tensor, Tensor, Tensor, SequenceLayout, int | None], Tensor]

LENGTHS = (1024,) * 32
"""Of the batch: so many tokens that a kernel takes longer than it takes to ask for it."""
WIDTH = 768
"""Of all heads together, as in the base shape."""
WINDOW = 64
ROUNDS, CALLS = 3, 5


def measure(
    backends: Mapping[str, AttentionFunction],
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    *,
    window: int | None,
    has_backward: bool,
) -> dict[str, float]:
    """Time backends on a CUDA device.

    Args:
        backends: By name; each is called once before, and may compile then.
        device: Where to compute.
        dtype: Of queries, keys and values.
        head_dim: Head width.
        window: As `reference.attention` takes it.
        has_backward: Whether to time the backward pass along with the forward.

    Returns:
        Milliseconds of one call, by name: the least of several rounds.
    """
    layout = SequenceLayout.of(LENGTHS, device)
    q, k, v, grad_out = _draw(layout, dtype, head_dim)

    def call(run: AttentionFunction) -> None:
        if not has_backward:
            with torch.no_grad():
                run(q, k, v, layout, window)
            return
        query, key, value = (x.detach().requires_grad_() for x in (q, k, v))
        with torch.enable_grad():
            torch.autograd.grad(run(query, key, value, layout, window), (query, key, value), grad_out)

    calls = {name: (lambda run=run: call(run)) for name, run in backends.items()}
    times = time_in_turn(calls, ROUNDS, device, clock=partial(device_clock, calls=CALLS))
    return {name: min(found) for name, found in times.items()}


def device_clock(run: Callable[[], object], device: torch.device, *, calls: int) -> float:
    """Return the milliseconds of one of several calls, by the clock of a CUDA device."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        began.record()
        for _ in range(calls):
            run()
        ended.record()
        ended.synchronize()
    return float(began.elapsed_time(ended)) / calls


def _draw(layout: SequenceLayout, dtype: torch.dtype, head_dim: int) -> list[Tensor]:
    """Draw queries, keys, values and a gradient, from a generator of their own: a run's seed is untouched."""
    generator = torch.Generator(layout.device).manual_seed(0)
    shape = (layout.num_tokens, max(1, WIDTH // head_dim), head_dim)
    return [
        torch.randn(shape, generator=generator, device=layout.device).to(dtype)
        for _ in ("q", "k", "v", "grad")
    ]
