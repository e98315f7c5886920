"""Kernels that go over rows once: where tokens stand, embeddings in, hidden states out.

The residual stream is kept in 24 bits: `high`, its rounding to bf16, which products read as it is, and `low`,
the next 8 bits of the mantissa. So it costs 3 bytes a number and is, beside bf16 products, as good as fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def joined(high, low):
    """Return the fp32 numbers of the stream, from int16 and int8."""
    return ((high.to(tl.int32) << 16) + (low.to(tl.int32) << 8)).to(tl.float32, bitcast=True)


@triton.jit
def parted(x):
    """Return int16 `high` and int8 `low` of fp32 numbers; see `joined`."""
    bits = x.to(tl.int32, bitcast=True)
    high = (bits + 0x8000) >> 16
    low = tl.minimum((bits - (high << 16) + 0x80) >> 8, 127)
    return high.to(tl.int16), low.to(tl.int8)


@triton.jit(do_not_specialize=["num_sequences", "num_tokens"])
def place(offsets, positions, firsts, ends, num_sequences, num_tokens, BLOCK: tl.constexpr):
    """Write each token's position, and where its sequence begins and ends; one program a sequence.

    The last program has what no sequence claims, up to `num_tokens`: filler, each token by itself.
    """
    sequence = tl.program_id(0)
    is_filler = sequence == num_sequences
    begin = tl.load(offsets + sequence)
    end = num_tokens
    if not is_filler:
        end = tl.load(offsets + sequence + 1)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < end
        tl.store(positions + token, tl.where(is_filler, 0, token - begin), mask=mask)
        tl.store(firsts + token, tl.where(is_filler, token, begin), mask=mask)
        tl.store(ends + token, tl.where(is_filler, token + 1, end), mask=mask)


@triton.jit(do_not_specialize=["capacity"])
def embed(
    ids, table, weight, taken, high, low, squares, capacity,
    WIDTH: tl.constexpr, PARTS: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gather and norm a token's embedding: as layer 0 takes it, and centred into the stream."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    x = tl.load(table + tl.load(ids + row) * WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    x = tl.where(mask, x - tl.sum(x) / WIDTH, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x) / WIDTH + EPS) * tl.load(weight + column, mask=mask, other=0.0)
    at = row * WIDTH + column
    tl.store(taken + at, x.to(tl.bfloat16), mask=mask)
    x = tl.where(mask, x - tl.sum(x) / WIDTH, 0.0)
    upper, lower = parted(x)
    tl.store(high + at, upper, mask=mask)
    tl.store(low + at, lower, mask=mask)
    tl.store(squares + row, tl.sum(x * x))
    for part in tl.static_range(1, PARTS):
        tl.store(squares + part * capacity + row, 0.0)


@triton.jit(do_not_specialize=["capacity"])
def finish(
    high, low, squares, weight, out, capacity,
    WIDTH: tl.constexpr, PARTS: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Apply the final norm to a row of the stream, in fp32."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    at = row * WIDTH + column
    x = joined(tl.load(high + at, mask=mask, other=0), tl.load(low + at, mask=mask, other=0))
    total = 0.0
    for part in tl.static_range(PARTS):
        total += tl.load(squares + part * capacity + row)
    scale = tl.rsqrt(total / WIDTH + EPS)
    tl.store(out + at, x * scale * tl.load(weight + column, mask=mask, other=0.0), mask=mask)
