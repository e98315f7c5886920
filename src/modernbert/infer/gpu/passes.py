"""The steps of the fused GPU encoder, each one pass over memory; and the same in plain torch, their judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.layers import Embeddings
from modernbert.ops.attention import attention
from modernbert.ops.rotary import rotary_table


class Passes(Protocol):
    """What a layer is made of. The stream holds, centred, what layers add to; its form is the passes' own."""

    dtype: torch.dtype
    """Of weights, and of what goes into products."""

    def placed(self, layout: SequenceLayout, num_tokens: int) -> Any:
        """Find out where each of `num_tokens` tokens stands; what the layout leaves over is filler."""

    def embedded(self, ids: Tensor, embeddings: Embeddings) -> tuple[Tensor, Any]:
        """Return normed embeddings `[T, D]`, as layer 0 takes them; and, centred, the stream."""

    def projected(self, x: Any, weight: Tensor, places: Any, theta: float, is_normed: bool) -> Tensor:
        """Compute rotated queries and keys, and values, `[T, 3, N, H]`.

        `x` is `[T, D]`, normed already, or the stream, whose norm is meant.
        """

    def attended(self, qkv: Tensor, places: Any, window: int | None) -> Tensor:
        """Attend: `[T, 3, N, H]` to `[T, D]`."""

    def added(self, stream: Any, x: Tensor, weight: Tensor) -> Any:
        """Return the stream with the product added; what was given may be overwritten."""

    def gated(self, stream: Any, weight: Tensor) -> Tensor:
        """Compute the GeGLU of the stream's norm, `[T, F]`."""

    def finished(self, stream: Any, weight: Tensor) -> Tensor:
        """Apply the final norm, `[T, D]` in fp32."""


@dataclass(frozen=True)
class TorchPasses:
    """By torch, on any device. Numbers are rounded where the kernels round them; in fp64 nowhere.

    The stream is a tensor `[T, D]`.
    """

    config: EncoderConfig
    dtype: torch.dtype

    def placed(self, layout: SequenceLayout, num_tokens: int) -> SequenceLayout:
        return layout

    def embedded(self, ids: Tensor, embeddings: Embeddings) -> tuple[Tensor, Tensor]:
        width, table, norm = (self.config.hidden_size,), embeddings.tok_embeddings.weight, embeddings.norm
        rows = table[ids].to(self._wide)
        normed = functional.layer_norm(rows, width, norm.weight.to(self._wide), None, self.config.norm_eps)
        return normed.to(self.dtype), normed - normed.mean(dim=1, keepdim=True)

    def projected(
        self, x: Tensor, weight: Tensor, places: SequenceLayout, theta: float, is_normed: bool
    ) -> Tensor:
        heads = (3, self.config.num_attention_heads, self.config.head_dim)
        product = self._product(x, weight)
        qkv = (product if is_normed else product * self._scales(x)).unflatten(1, heads)
        cosine, sine = (
            part.to(self._wide)[:, None] for part in rotary_table(places.positions, heads[2], theta)
        )
        first, second = qkv[:, :2, :, 0::2], qkv[:, :2, :, 1::2]
        rotated = torch.stack((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
        return torch.cat((rotated.flatten(3), qkv[:, 2:]), dim=1).to(self.dtype)

    def attended(self, qkv: Tensor, places: SequenceLayout, window: int | None) -> Tensor:
        q, k, v = qkv.to(self._wide).unbind(1)
        return attention(q, k, v, places, window, "plain").flatten(1).to(self.dtype)

    def added(self, stream: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return stream + self._product(x, weight)

    def gated(self, stream: Tensor, weight: Tensor) -> Tensor:
        product = self._product(stream, weight) * self._scales(stream)
        activated, gates = product.unflatten(1, (-1, 2)).unbind(2)
        return functional.gelu(activated).mul(gates).to(self.dtype)

    def finished(self, stream: Tensor, weight: Tensor) -> Tensor:
        return (stream * self._scales(stream) * weight.to(self._wide)).float()

    @property
    def _wide(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def _scales(self, stream: Tensor) -> Tensor:
        return torch.rsqrt(stream.square().mean(dim=1, keepdim=True) + self.config.norm_eps)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return x.to(self.dtype).to(self._wide) @ weight.to(self._wide).T
