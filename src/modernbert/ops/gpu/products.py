"""Matrix products whose epilogues do all that stands between products: no element-wise kernel is left.

Both sides are bf16 and sums fp32. Operands come through tensor descriptors (the copy engine on Hopper), a
row of weights an output. Pairs that belong together, the two halves of a rotation, or a gate and what it
gates, are neighbouring outputs, so that one thread holds both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from modernbert.ops.gpu.rows import joined, parted


@triton.jit
def _product(x, weight, row, column, DEPTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):  # fmt: skip  # noqa: E501
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for k in range(0, DEPTH, STEP):
        sums = tl.dot(x.load([row, k]), weight.load([column, k]).T, sums)
    return sums


@triton.jit
def _scales(squares, rows, mask, capacity, PARTS: tl.constexpr, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """Return what LayerNorm multiplies each row of the stream by; its mean is zero already."""
    total = tl.load(squares + rows, mask=mask, other=1.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(squares + part * capacity + rows, mask=mask, other=0.0)
    return tl.rsqrt(total / WIDTH + EPS)


@triton.jit
def _gelu(x):
    """Return the GELU by the error function: the normal distribution's logit is a polynomial, times x.

    Fitted for a relative error of 2e-4 where |x| < 4, a tenth of what rounding to bf16 costs.
    """
    u = tl.minimum(x * x, 31.0)
    logit = 4.85617549e-06 + u * (-1.191262e-07 + u * 1.11262433e-09)
    logit = 2.30141471 + u * (0.105959193 + u * (-0.000548146427 + u * (-8.1029256e-05 + u * logit)))
    root = tl.rsqrt(1.0 + tl.exp2(-x * logit))  # squared it is the reciprocal, which takes longer
    return x * root * root


@triton.jit
def await_inputs(IS_EARLY: tl.constexpr):
    """Wait for the kernel before, if this one was launched while that ran; and let the next be launched."""
    if IS_EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _project(
    tile, x, weight, out, squares, positions, turns, num_tokens, capacity,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, ROTATED: tl.constexpr, HEAD: tl.constexpr,
    NORMED: tl.constexpr, PARTS: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = tl.cdiv(WIDTH, COLUMNS)
    heads: tl.constexpr = max(COLUMNS // HEAD, 1)  # of a tile; a narrow one has a part of one
    pairs: tl.constexpr = COLUMNS // heads // 2
    row, column = tile // across * ROWS, tile % across * COLUMNS
    sums = _product(x, weight, row, column, DEPTH, ROWS, COLUMNS, STEP)
    rows = row + tl.arange(0, ROWS)
    mask = rows < num_tokens
    if NORMED:
        sums = sums * _scales(squares, rows, mask, capacity, PARTS, DEPTH, EPS)[:, None]
    if column < ROTATED:
        at = tl.load(positions + rows, mask=mask, other=0)[:, None] * (HEAD // 2)
        turn = tl.load(turns + at + column % HEAD // 2 + tl.arange(0, pairs)[None, :])[:, None, :]
        cosine = (turn & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        sine = (turn >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        is_value = (column + tl.arange(0, heads) * HEAD >= ROTATED)[None, :, None]
        cosine, sine = tl.where(is_value, 1.0, cosine), tl.where(is_value, 0.0, sine)
        first, second = tl.split(sums.reshape(ROWS, heads, pairs, 2))
        turned = tl.join(first * cosine - second * sine, second * cosine + first * sine)
        sums = turned.reshape(ROWS, COLUMNS)
    out.store([row, column], sums.to(tl.bfloat16))


@triton.jit(do_not_specialize=["num_tokens", "capacity"])
def project(
    x, weight, out, squares, positions, turns, num_tokens, capacity,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, ROTATED: tl.constexpr, HEAD: tl.constexpr,
    NORMED: tl.constexpr, PARTS: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STEP: tl.constexpr, IS_PERSISTENT: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Compute queries, keys and values: products, row scales, rotation of the first `ROTATED` outputs.

    `turns` holds cosine and sine of each position and pair, as fp16, in one int32.
    """
    await_inputs(IS_EARLY)
    if IS_PERSISTENT:
        tiles = tl.cdiv(num_tokens, ROWS) * tl.cdiv(WIDTH, COLUMNS)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            _project(
                tile, x, weight, out, squares, positions, turns, num_tokens, capacity,
                DEPTH, WIDTH, ROTATED, HEAD, NORMED, PARTS, EPS, ROWS, COLUMNS, STEP,
            )  # fmt: skip
    else:
        _project(
            tl.program_id(0), x, weight, out, squares, positions, turns, num_tokens, capacity,
            DEPTH, WIDTH, ROTATED, HEAD, NORMED, PARTS, EPS, ROWS, COLUMNS, STEP,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens", "capacity"])
def add(
    x, weight, high, low, squares, num_tokens, capacity,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Add products to the stream, and sum the squares of what it is then, a part for each tile of columns.

    Sums begin with what the stream holds, so that nothing is left to be read when they are done.
    """
    await_inputs(IS_EARLY)
    across: tl.constexpr = tl.cdiv(WIDTH, COLUMNS)
    tile = tl.program_id(0)
    row, column = tile // across * ROWS, tile % across * COLUMNS
    sums = joined(high.load([row, column]), low.load([row, column]))
    for k in range(0, DEPTH, STEP):
        sums = tl.dot(x.load([row, k]), weight.load([column, k]).T, sums)
    upper, lower = parted(sums)
    high.store([row, column], upper)
    low.store([row, column], lower)
    rows = row + tl.arange(0, ROWS)
    tl.store(squares + tile % across * capacity + rows, tl.sum(sums * sums, axis=1), mask=rows < num_tokens)


@triton.jit
def _gate(
    tile, x, weight, out, squares, num_tokens, capacity,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = tl.cdiv(WIDTH, COLUMNS)
    row, column = tile // across * ROWS, tile % across * COLUMNS
    sums = _product(x, weight, row, column, DEPTH, ROWS, COLUMNS, STEP)
    rows = row + tl.arange(0, ROWS)
    sums = sums * _scales(squares, rows, rows < num_tokens, capacity, PARTS, DEPTH, EPS)[:, None]
    activated, gates = tl.split(sums.reshape(ROWS, COLUMNS // 2, 2))
    out.store([row, column // 2], (_gelu(activated) * gates).to(tl.bfloat16))


@triton.jit(do_not_specialize=["num_tokens", "capacity"])
def gate(
    x, weight, out, squares, num_tokens, capacity,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, STEP: tl.constexpr, IS_PERSISTENT: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Compute the GeGLU of products of normed rows: half as many outputs as `WIDTH`."""
    await_inputs(IS_EARLY)
    if IS_PERSISTENT:
        tiles = tl.cdiv(num_tokens, ROWS) * tl.cdiv(WIDTH, COLUMNS)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            _gate(
                tile, x, weight, out, squares, num_tokens, capacity,
                DEPTH, WIDTH, PARTS, EPS, ROWS, COLUMNS, STEP,
            )  # fmt: skip
    else:
        _gate(
            tl.program_id(0), x, weight, out, squares, num_tokens, capacity,
            DEPTH, WIDTH, PARTS, EPS, ROWS, COLUMNS, STEP,
        )  # fmt: skip
