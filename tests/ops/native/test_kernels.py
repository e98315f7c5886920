"""The native kernels against their plain definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modernbert.layout import SequenceLayout
from modernbert.ops import reference
from modernbert.ops.native import build, kernels
from modernbert.ops.native.kernels import Codes
from modernbert.ops.rotary import rotary_table

pytestmark = pytest.mark.skipif(kernels.refusal(64) is not None, reason=str(kernels.refusal(64)))
needs_halves = pytest.mark.skipif(not build.multiplies_halves(), reason="this CPU does not multiply bf16")

# Around the sizes of what the kernel works on: a tile of queries, a panel and a block of keys, a chunk.
BORDERS = (1, 2, 5, 12, 13, 31, 32, 33, 64, 65, 128, 129, 769)


def qkv_of(layout: SequenceLayout, num_heads: int, head_dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layout.num_tokens, 3 * num_heads * head_dim, generator=generator) * 1.5


def turns_of(layout: SequenceLayout, head_dim: int) -> Tensor:
    return torch.complex(*rotary_table(layout.positions, head_dim, 10_000.0))


def plainly(qkv: Tensor, layout: SequenceLayout, window: int | None, num_heads: int) -> Tensor:
    """Rotate and attend in fp64, by the definition."""
    heads = qkv.double().unflatten(1, (3, num_heads, -1))
    pairs = torch.view_as_complex(heads[:, :2].unflatten(3, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * turns_of(layout, heads.shape[-1])[:, None].to(torch.complex128))
    q, k = turned.flatten(3).unbind(1)
    return reference.attention(q, k, heads[:, 2], layout, window).flatten(1)


def attend(
    qkv: Tensor, layout: SequenceLayout, window: int | None, num_heads: int, **options: object
) -> Tensor:
    turns = turns_of(layout, qkv.shape[1] // 3 // num_heads)
    return kernels.attention(qkv, turns, layout, window, num_heads, **options)  # type: ignore[arg-type]


class TestAttention:
    @pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
    @pytest.mark.parametrize("window", [None, 0, 1, 16, 64])
    def test_is_the_definition(self, window: int | None, head_dim: int) -> None:
        layout = SequenceLayout.of(BORDERS)
        qkv = qkv_of(layout, 2, head_dim)
        expected = plainly(qkv, layout, window, 2)
        found = attend(qkv, layout, window, 2)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)

    def test_of_several_chunks(self) -> None:
        layout = SequenceLayout.of((1600,))
        qkv = qkv_of(layout, 1, 32)
        for window in (None, 64):
            expected = plainly(qkv, layout, window, 1)
            torch.testing.assert_close(attend(qkv, layout, window, 1).double(), expected, rtol=0, atol=2e-5)

    @needs_halves
    @pytest.mark.parametrize("window", [None, 16, 64])
    def test_is_near_it_in_halves(self, window: int | None) -> None:
        layout = SequenceLayout.of(BORDERS)
        qkv = qkv_of(layout, 2, 64)
        for given in (qkv, qkv.bfloat16()):
            expected = plainly(given, layout, window, 2)
            found = attend(given, layout, window, 2, half_products=True)
            assert found.dtype == given.dtype
            for ours, plain in zip(layout.split(found.double()), layout.split(expected), strict=True):
                assert (ours - plain).norm() <= 0.02 * plain.norm()

    @pytest.mark.parametrize("halves", [False, pytest.param(True, marks=needs_halves)])
    @pytest.mark.parametrize("window", [None, 64])
    def test_no_sequence_sees_another(self, window: int | None, halves: bool) -> None:
        layout = SequenceLayout.of((17, 130, 64, 1, 900))
        before = qkv_of(layout, 2, 64)
        whole = attend(before, layout, window, 2, half_products=halves)
        for index, (start, length) in enumerate(zip(layout.starts, layout.lengths)):
            after = qkv_of(layout, 2, 64, seed=1)
            after[start : start + length] = before[start : start + length]
            found = attend(after, layout, window, 2, half_products=halves)
            assert torch.equal(found[start : start + length], whole[start : start + length])
            alone = attend(
                before[start : start + length], SequenceLayout.of((length,)), window, 2, half_products=halves
            )
            assert torch.equal(alone, whole[start : start + length]), index

    def test_rows_are_scaled_first(self) -> None:
        layout = SequenceLayout.of((70, 9))
        qkv, scales = qkv_of(layout, 2, 64), torch.rand(79, 1) + 0.5
        found = attend(qkv, layout, 64, 2, scales=scales)
        torch.testing.assert_close(found, attend(qkv * scales, layout, 64, 2), rtol=0, atol=1e-5)

    def test_scores_of_any_size(self) -> None:
        """Of which only the highest counts, or all alike."""
        layout = SequenceLayout.of((300,))
        for size in (0.0, 1e-20, 1e3, 1e8):
            qkv = qkv_of(layout, 1, 64)
            qkv[:, :128] *= size
            found = attend(qkv, layout, None, 1)
            assert found.isfinite().all()
            if size <= 1e3:
                torch.testing.assert_close(
                    found.double(), plainly(qkv, layout, None, 1), rtol=0, atol=1e-2 * (size == 1e3) + 1e-5
                )

    def test_with_any_number_of_threads(self) -> None:
        layout = SequenceLayout.of((1000, 3, 80))
        qkv = qkv_of(layout, 4, 64)
        before = torch.get_num_threads()
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(attend(qkv, layout, None, 4))
        torch.set_num_threads(before)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


def plain_codes(x: Tensor) -> Tensor:
    steps = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (x / steps).round() * steps


def decoded(found: Tensor | Codes) -> Tensor:
    assert isinstance(found, Codes)
    assert found.codes.dtype == torch.uint8
    return (found.codes.float() - 128) * found.steps


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 100])
@pytest.mark.parametrize("width", [16, 64, 768])
class TestRows:
    def test_norm(self, rows: int, width: int) -> None:
        torch.manual_seed(0)
        x, weight = torch.randn(rows, width) * 3 + 1, torch.randn(width)
        expected = functional.layer_norm(x, (width,), weight, None, 1e-5)
        found = kernels.normed(x, weight, 1e-5, torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        halves = kernels.normed(x, weight, 1e-5, torch.bfloat16)
        torch.testing.assert_close(halves, expected.bfloat16(), rtol=8e-3, atol=1e-5)
        steps = expected.abs().amax(1, keepdim=True) / 127
        assert (
            (decoded(kernels.normed(x, weight, 1e-5, torch.uint8)) - expected).abs() <= 0.501 * steps
        ).all()

    def test_codes(self, rows: int, width: int) -> None:
        torch.manual_seed(0)
        x = torch.randn(rows, width) * torch.logspace(-9, 9, rows)[:, None]
        x[rows // 2] = 0
        found = kernels.coded(x)
        steps = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        torch.testing.assert_close(found.steps, steps, rtol=1e-6, atol=0)
        assert ((decoded(found) - x).abs() <= 0.501 * steps).all()
        assert (found.codes[rows // 2] == 128).all()

    def test_gate(self, rows: int, width: int) -> None:
        torch.manual_seed(0)
        x, scales = torch.randn(rows, 2 * width) * 4, torch.rand(rows, 1) + 0.1
        activated, gate = (x * scales).chunk(2, dim=1)
        expected = functional.gelu(activated) * gate
        steps = expected.abs().amax(1, keepdim=True) / 127
        assert ((decoded(kernels.gated(x, scales)) - expected).abs() <= 0.51 * steps + 1e-5).all()


def test_what_does_not_fit() -> None:
    assert kernels.refusal(48) == "heads are 48 wide; they must be a multiple of 32, at most 128"
    assert kernels.refusal(160) == "heads are 160 wide; they must be a multiple of 32, at most 128"
    assert (
        kernels.refusal(64, 768, 1153) == "rows are 1153 wide; they must be a multiple of 16, at most 16384"
    )
    assert kernels.refusal(64, math.prod((16, 1024))) is None
