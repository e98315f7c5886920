"""Attention along the packed axis: a block of queries meets the band of keys that any of them sees.

Made for windows and short sequences: sequences share blocks, so that none is half empty, and a layout whose
sequences change costs nothing but its table of places.
"""

from __future__ import annotations

import triton
import triton.language as tl

from modernbert.ops.gpu.products import await_inputs


@triton.jit(do_not_specialize=["num_tokens"])
def attend(
    qkv, out, firsts, ends, num_tokens, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, WINDOW: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Attend over `[T, 3, HEADS, HEAD]`; one program a block of queries and head; `WINDOW` -1: none.

    `scale` is that of scores, times the binary logarithm of e.
    """
    await_inputs(IS_EARLY)
    head, row = tl.program_id(0), tl.program_id(1) * ROWS
    rows, width = row + tl.arange(0, ROWS), tl.arange(0, HEAD)
    is_token = rows < num_tokens
    first = tl.load(firsts + rows, mask=is_token, other=0)
    end = tl.load(ends + rows, mask=is_token, other=1)
    begin, stop = tl.load(firsts + row), tl.load(ends + tl.minimum(row + ROWS, num_tokens) - 1)
    if WINDOW >= 0:
        first, end = tl.maximum(first, rows - WINDOW), tl.minimum(end, rows + WINDOW + 1)
        begin, stop = tl.maximum(begin, row - WINDOW), tl.minimum(stop, row + ROWS + WINDOW)
    base = qkv + head * HEAD
    stride: tl.constexpr = 3 * HEADS * HEAD
    q = tl.load(
        base + rows.to(tl.int64)[:, None] * stride + width[None, :], mask=is_token[:, None], other=0.0
    )
    most = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, HEAD), tl.float32)
    for start in range(begin, stop, COLUMNS):
        keys = start + tl.arange(0, COLUMNS)
        at = keys.to(tl.int64)[:, None] * stride + width[None, :]
        is_key = (keys < stop)[:, None]
        k = tl.load(base + HEADS * HEAD + at, mask=is_key, other=0.0)
        v = tl.load(base + 2 * HEADS * HEAD + at, mask=is_key, other=0.0)
        scores = tl.dot(q, k.T) * scale
        is_seen = (keys[None, :] >= first[:, None]) & (keys[None, :] < end[:, None])
        scores = tl.where(is_seen, scores, -float("inf"))
        higher = tl.maximum(most, tl.max(scores, axis=1))
        share = tl.exp2(scores - higher[:, None])
        shrunk = tl.exp2(most - higher)
        total = total * shrunk + tl.sum(share, axis=1)
        mixed = tl.dot(share.to(tl.bfloat16), v, mixed * shrunk[:, None])
        most = higher
    at = rows.to(tl.int64)[:, None] * (HEADS * HEAD) + head * HEAD + width[None, :]
    tl.store(out + at, (mixed / total[:, None]).to(tl.bfloat16), mask=is_token[:, None])
