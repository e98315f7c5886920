"""StableAdamW in three launches for all tensors: means and overshoots, the norms of these, the update.

It reads and writes nine numbers for each parameter where a step of single operations takes some thirty.
Tensors are told by a table of their addresses; each is cut into blocks, a program a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
SUMMED_AT_ONCE = 1024


@triton.jit
def _place(table, blocks, BLOCK: tl.constexpr):
    """Return which tensor a program works on, how many there are, and where and whether its numbers lie."""
    tensor = tl.load(blocks + 2 * tl.program_id(0))
    at = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    entry = table + 5 * tensor
    return tensor, entry, at, at < tl.load(entry + 4)


@triton.jit
def _address(entry):
    return tl.load(entry).to(tl.pointer_type(tl.float32))


@triton.jit
def _take_means(table, blocks, overshoots, beta1, beta2, eps, BLOCK: tl.constexpr):
    _, entry, at, mask = _place(table, blocks, BLOCK)
    mean, square = _address(entry + 2) + at, _address(entry + 3) + at
    g = tl.load(_address(entry + 1) + at, mask=mask, other=0.0)
    m = tl.load(mean, mask=mask, other=0.0)
    v = tl.load(square, mask=mask, other=0.0)
    v = beta2 * v + (1 - beta2) * g * g
    tl.store(mean, m + (1 - beta1) * (g - m), mask=mask)
    tl.store(square, v, mask=mask)
    ratio = g / tl.maximum(tl.sqrt(v), eps)
    tl.store(overshoots + tl.program_id(0), tl.sum(ratio * ratio))


@triton.jit
def _sum_up(overshoots, ranges, norms, AT_ONCE: tl.constexpr):
    """Sum the blocks of a tensor in their order: always the same bits."""
    tensor = tl.program_id(0)
    begin, end = tl.load(ranges + tensor), tl.load(ranges + tensor + 1)
    total = tl.zeros((AT_ONCE,), tl.float32)
    for start in range(begin, end, AT_ONCE):
        at = start + tl.arange(0, AT_ONCE)
        total += tl.load(overshoots + at, mask=at < end, other=0.0)
    tl.store(norms + tensor, tl.sqrt(tl.sum(total)))


@triton.jit
def _take_step(table, blocks, clips, lr, decay, eps, BLOCK: tl.constexpr):
    tensor, entry, at, mask = _place(table, blocks, BLOCK)
    share = 1.0 / tl.load(clips + tensor)
    param = _address(entry) + at
    p = tl.load(param, mask=mask, other=0.0)
    m = tl.load(_address(entry + 2) + at, mask=mask, other=0.0)
    v = tl.load(_address(entry + 3) + at, mask=mask, other=0.0)
    p = p * (1.0 - share * decay) - lr * share * m / (tl.sqrt(v) + eps)
    tl.store(param, p, mask=mask)


@lru_cache(maxsize=64)
def _blocks(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Cut tensors into blocks: int32 `[blocks, 2]`, tensor and place; `[tensors + 1]`, each one's first."""
    counts = torch.tensor([-(-size // BLOCK) for size in sizes])
    ends = counts.cumsum(0)
    tensors = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    places = torch.arange(int(ends[-1])) - (ends - counts)[tensors]
    ranges = torch.cat((torch.zeros(1, dtype=torch.int64), ends))
    return torch.stack((tensors, places), dim=1).int().to(device), ranges.int().to(device)


def step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    betas: tuple[float, float],
    eps: float,
    lr: float,
    decay: float,
    clips_of: Callable[[list[Tensor]], list[Tensor]],
) -> None:
    """Take a step in place.

    Args:
        params: fp32, contiguous, on one device.
        grads: As `params`.
        means: Of gradients, as `params`.
        squares: Means of their squares, as `params`.
        betas: Debiased coefficients of both.
        eps: Added to the root of the mean square.
        lr: Learning rate before it is clipped.
        decay: Share of a weight that a step takes away before it is clipped.
        clips_of: From the norms of how far tensors overshoot, fp32 scalars, to what their learning rates are
            divided by.
    """
    device, sizes = params[0].device, tuple(param.numel() for param in params)
    blocks, ranges = _blocks(sizes, device)
    lists = zip(params, grads, means, squares, strict=True)
    entries = [[*(it.data_ptr() for it in four), size] for four, size in zip(lists, sizes, strict=True)]
    host = torch.tensor(entries, dtype=torch.int64)
    table = (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
    overshoots = torch.empty(len(blocks), dtype=torch.float32, device=device)
    norms = torch.empty(len(params), dtype=torch.float32, device=device)
    grid = (len(blocks),)
    _take_means[grid](table, blocks, overshoots, *betas, eps, BLOCK=BLOCK)
    _sum_up[(len(params),)](overshoots, ranges, norms, AT_ONCE=SUMMED_AT_ONCE)
    clips = torch.stack(clips_of(list(norms.unbind())))
    _take_step[grid](table, blocks, clips, lr, decay, eps, BLOCK=BLOCK)
