"""The steps of the fused GPU encoder by Triton kernels, each one launch; see `modernbert.ops.gpu`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from modernbert.infer.gpu.tiles import FEW_TOKENS, SHORT, Cut, Tile, cut
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.layers import Embeddings
from modernbert.ops.attention import BACKENDS, choose
from modernbert.ops.gpu import attend, products, rows
from modernbert.ops.rotary import rotary_table

PLACED_AT_ONCE = 1024


@dataclass(frozen=True)
class Places:
    """Where each token stands, int32 `[T]`: its position, and where its sequence begins and ends."""

    layout: SequenceLayout
    positions: Tensor
    firsts: Tensor
    ends: Tensor
    cut: Cut


@dataclass(frozen=True)
class Stream:
    """The residual stream `[T, D]` in 24 bits, and the squares of each token's numbers, summed in parts.

    `high` is int16, the bits of bf16; `low` int8; `squares` fp32 `[parts, T]`. See `ops.gpu.rows`.
    """

    high: Tensor
    low: Tensor
    squares: Tensor
    cut: Cut


class KernelPasses:
    """By Triton, on CUDA devices; see `passes.Passes`.

    Args:
        config: Of the encoder.
        device: On which it runs.
    """

    dtype = torch.bfloat16

    def __init__(self, config: EncoderConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._turns: dict[float, Tensor] = {}

    def placed(self, layout: SequenceLayout, num_tokens: int) -> Places:
        positions, firsts, ends = torch.empty((3, num_tokens), dtype=torch.int32, device=self._device)
        offsets = layout.offsets
        count = len(offsets) - 1
        rows.place[(count + 1,)](offsets, positions, firsts, ends, count, num_tokens, BLOCK=PLACED_AT_ONCE)
        return Places(layout, positions, firsts, ends, cut(num_tokens))

    def embedded(self, ids: Tensor, embeddings: Embeddings) -> tuple[Tensor, Stream]:
        config, count = self._config, len(ids)
        how = cut(count)
        shape = (count, config.hidden_size)
        taken = torch.empty(shape, dtype=torch.bfloat16, device=self._device)
        high, low = torch.empty_like(taken, dtype=torch.int16), torch.empty_like(taken, dtype=torch.int8)
        parts = triton.cdiv(config.hidden_size, how.add.columns)
        squares = torch.empty((parts, count), dtype=torch.float32, device=self._device)
        table, weight = embeddings.tok_embeddings.weight, embeddings.norm.weight
        rows.embed[(count,)](ids, table, weight, taken, high, low, squares, count, **self._row(parts))
        return taken, Stream(high, low, squares, how)

    def projected(
        self, x: Tensor | Stream, weight: Tensor, places: Places, theta: float, is_normed: bool
    ) -> Tensor:
        config, tile = self._config, places.cut.project
        stream = None if isinstance(x, Tensor) else x
        given = x if isinstance(x, Tensor) else x.high.view(torch.bfloat16)
        out = torch.empty((len(given), len(weight)), dtype=torch.bfloat16, device=self._device)
        products.project[self._grid(tile, out.shape)](
            *_operands(given, weight, tile),
            TensorDescriptor.from_tensor(out, [tile.rows, tile.columns]),
            places.positions if stream is None else stream.squares,  # not read in layer 0
            places.positions,
            self._turns_of(theta),
            len(given),
            len(given),
            WIDTH=len(weight),
            ROTATED=2 * config.hidden_size,
            HEAD=config.head_dim,
            NORMED=not is_normed,
            IS_PERSISTENT=tile.programs > 0,
            PARTS=1 if stream is None else len(stream.squares),
            EPS=config.norm_eps,
            **self._shape(given, tile),
        )
        heads: Tensor = out.unflatten(1, (3, config.num_attention_heads, config.head_dim))
        return heads

    def attended(self, qkv: Tensor, places: Places, window: int | None) -> Tensor:
        # No backend that knows of sequences alone: filler would stay unwritten, and reach others as NaN.
        if window is None and len(qkv) > FEW_TOKENS and places.layout.longest > SHORT:
            q, k, v = qkv.unbind(1)
            name = choose("auto", qkv.device, qkv.dtype, qkv.shape[-1], is_windowed=False)
            return BACKENDS[name].run(q, k, v, places.layout, None).flatten(1)
        num_tokens, _, num_heads, head_dim = qkv.shape
        queries, keys, warps, stages = places.cut.attend
        out = torch.empty((num_tokens, num_heads * head_dim), dtype=qkv.dtype, device=self._device)
        attend.attend[(num_heads, triton.cdiv(num_tokens, queries))](
            qkv,
            out,
            places.firsts,
            places.ends,
            num_tokens,
            math.log2(math.e) / head_dim**0.5,
            HEADS=num_heads,
            HEAD=head_dim,
            WINDOW=-1 if window is None else window,
            ROWS=queries,
            COLUMNS=keys,
            num_warps=warps,
            num_stages=stages,
            **self._early,
        )
        return out

    def added(self, stream: Stream, x: Tensor, weight: Tensor) -> Stream:
        tile = stream.cut.add
        products.add[self._grid(tile, stream.high.shape)](
            *_operands(x, weight, tile),
            TensorDescriptor.from_tensor(stream.high, [tile.rows, tile.columns]),
            TensorDescriptor.from_tensor(stream.low, [tile.rows, tile.columns]),
            stream.squares,
            len(x),
            len(x),
            WIDTH=len(weight),
            **self._shape(x, tile),
        )
        return stream

    def gated(self, stream: Stream, weight: Tensor) -> Tensor:
        tile, x = stream.cut.gate, stream.high.view(torch.bfloat16)
        out = torch.empty((len(x), len(weight) // 2), dtype=torch.bfloat16, device=self._device)
        products.gate[self._grid(tile, (len(x), len(weight)))](
            *_operands(x, weight, tile),
            TensorDescriptor.from_tensor(out, [tile.rows, tile.columns // 2]),
            stream.squares,
            len(x),
            len(x),
            WIDTH=len(weight),
            PARTS=len(stream.squares),
            EPS=self._config.norm_eps,
            IS_PERSISTENT=tile.programs > 0,
            **self._shape(x, tile),
        )
        return out

    def finished(self, stream: Stream, weight: Tensor) -> Tensor:
        out = torch.empty(stream.high.shape, dtype=torch.float32, device=self._device)
        rows.finish[(len(out),)](
            stream.high, stream.low, stream.squares, weight, out, len(out), **self._row(len(stream.squares))
        )
        return out

    def _row(self, parts: int) -> dict[str, Any]:
        width, eps = self._config.hidden_size, self._config.norm_eps
        return {"WIDTH": width, "PARTS": parts, "EPS": eps, "BLOCK": triton.next_power_of_2(width)}

    def _grid(self, tile: Tile, shape: tuple[int, ...]) -> tuple[int]:
        tiles = triton.cdiv(shape[0], tile.rows) * triton.cdiv(shape[1], tile.columns)
        return (min(tiles, tile.programs * self._num_processors) if tile.programs else tiles,)

    def _shape(self, x: Tensor, tile: Tile) -> dict[str, Any]:
        return {
            "DEPTH": x.shape[1],
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "STEP": tile.step,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            **self._early,
        }

    @cached_property
    def _early(self) -> dict[str, bool]:
        """Whether a kernel is launched before the one before has ended, as Hopper and newer can."""
        can = self._device.type == "cuda" and torch.cuda.get_device_capability(self._device) >= (9, 0)
        return {"IS_EARLY": can, "launch_pdl": can}

    @cached_property
    def _num_processors(self) -> int:
        if self._device.type != "cuda":  # Triton's interpreter: one program after another
            return 1
        return int(torch.cuda.get_device_properties(self._device).multi_processor_count)

    def _turns_of(self, theta: float) -> Tensor:
        """Return cosine and sine of all positions, fp16 side by side, int32 `[positions, H / 2]`."""
        if theta not in self._turns:
            positions = torch.arange(self._config.max_position_embeddings, device=self._device)
            table = torch.cat(rotary_table(positions, self._config.head_dim, theta), dim=1)
            both = table.transpose(1, 2).to(torch.float16, memory_format=torch.contiguous_format)
            self._turns[theta] = both.contiguous().view(torch.int32).flatten(1)
        return self._turns[theta]


def _operands(x: Tensor, weight: Tensor, tile: Tile) -> tuple[TensorDescriptor, TensorDescriptor]:
    return (
        TensorDescriptor.from_tensor(x, [tile.rows, tile.step]),
        TensorDescriptor.from_tensor(weight, [tile.columns, tile.step]),
    )
