"""The Triton kernels, of encoder and optimizer, against plain torch; `test_gpu_kernels.py` runs this file.

On a CPU, by Triton's interpreter, which must be asked for before Triton is imported; on a GPU, compiled.
What kernels have not written is NaN here, or -1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from modernbert.infer.gpu import kernel_passes
from modernbert.infer.gpu.encoder import GpuEncoder
from modernbert.infer.gpu.kernel_passes import KernelPasses, Places, Stream
from modernbert.infer.gpu.passes import TorchPasses
from modernbert.infer.gpu.tiles import CUTS, MANY, Cut, Tile
from modernbert.layout import SequenceLayout, pack
from modernbert.model.config import EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.layers import Embeddings
from modernbert.ops import reference
from modernbert.ops.gpu.products import _gelu
from modernbert.ops.gpu.rows import joined, parted
from modernbert.ops.rotary import rotary_table
from modernbert.train import stable_adamw
from modernbert.train.stable_adamw import StableAdamW

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu") if IS_INTERPRETED else torch.device("cuda", 0)
HALF_STEP = 2**-8
"""The most that rounding to bf16 changes a number by, as a share of it."""
SUMS = 2e-5
"""What sums in fp32, in whatever order, and an approximate root differ by, as a share of their terms."""

SMALL = Cut(Tile(64, 32, 32, 4, 2), Tile(64, 32, 32, 4, 2), Tile(64, 32, 32, 4, 2), (64, 64, 4, 2))
"""Several tiles across and down for the sizes of these tests; sums of 96 terms in whole steps."""
WIDE = Cut(Tile(64, 64, 64, 4, 2), Tile(64, 64, 64, 4, 2), Tile(64, 64, 64, 4, 2), (64, 32, 4, 2))
"""Tiles wider than what is left, and sums whose last step is half empty."""
PERSISTENT = SMALL._replace(
    project=SMALL.project._replace(programs=1), gate=SMALL.gate._replace(programs=1), attend=(32, 64, 4, 2)
)
"""Programs that go through several tiles each; `add` has none such."""
WAYS = {"small": SMALL, "wide": WIDE, "persistent": PERSISTENT}
CASES = [*((count, 64, 32) for count in (1, 2, 64, 65, 129)), (129, 64, 16), (129, 64, 64), (129, 96, 32)]
"""Numbers of tokens, widths of the model, and of its heads."""


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Poison fresh memory; and, where kernels are interpreted, watch them.

    Yields a list for tensors that kernels are told of by their addresses alone.
    """
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(tensor: Tensor) -> Tensor:
        tensor.view(torch.uint8).fill_(255)
        return tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    if not IS_INTERPRETED:
        yield []
        return
    from tests.ops.interpreter import mended

    with mended() as tensors:
        yield tensors


def passes_of(width: int, head: int, intermediate: int = 40) -> KernelPasses:
    shape = {"hidden_size": width, "num_attention_heads": width // head, "intermediate_size": intermediate}
    passes = KernelPasses(EncoderConfig.preset("tiny", max_position_embeddings=256, **shape), DEVICE)
    passes.__dict__["_num_processors"] = 3  # so that programs go through several tiles each
    return passes


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape)).to(DEVICE)


def bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)


def stream_of(x: Tensor, cut: Cut) -> Stream:
    """A stream of these numbers, of no more than 16 bits, and of their squares."""
    high = bf16(x).view(torch.int16)
    low = torch.zeros_like(high, dtype=torch.int8)
    parts = -(-x.shape[1] // cut.add.columns)
    squares = torch.zeros((parts, len(x)), device=DEVICE)
    squares[0] = bf16(x).float().square().sum(dim=1)
    return Stream(high.contiguous(), low, squares, cut)


def numbers(stream: Stream) -> Tensor:
    """The stream as fp64."""
    whole = (stream.high.int() << 16) + (stream.low.int() << 8)
    return whole.view(torch.float32).double()


def close(found: Tensor, expected: Tensor, share: float, terms: Tensor | float = 0.0) -> None:
    """Each number within a share of itself, and a small one of the terms that it is the sum of."""
    assert bool(torch.isfinite(found).all())
    bound = share * 1.01 * expected.abs() + SUMS * terms + 1e-30
    assert bool(((found.double() - expected).abs() <= bound).all())


@triton.jit
def _through(x, out, activated, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    given = tl.load(x + at)
    high, low = parted(given)
    tl.store(out + at, joined(high, low))
    tl.store(activated + at, _gelu(given))


@triton.jit
def _copy(x, out, SHIFT: tl.constexpr, IS_SHARED: tl.constexpr):
    program = tl.program_id(0)
    tl.store(out + (0 if IS_SHARED else program), tl.load(x + program + SHIFT))


@pytest.mark.skipif(not IS_INTERPRETED, reason="the interpreter is meant")
class TestTheWatch:
    """What would go unnoticed in an interpreter that runs one program after another."""

    def test_nothing_to_notice(self) -> None:
        x = drawn(8)
        out = torch.empty_like(x)
        _copy[(8,)](x, out, SHIFT=0, IS_SHARED=False)
        assert torch.equal(x, out)

    def test_two_write_one_place(self) -> None:
        with pytest.raises(AssertionError, match="`_copy`: two programs write one place"):
            _copy[(8,)](drawn(8), drawn(8), SHIFT=0, IS_SHARED=True)

    def test_one_reads_what_another_writes(self) -> None:
        x = drawn(9)
        with pytest.raises(AssertionError, match="`_copy`: a program reads what another writes"):
            _copy[(8,)](x, x, SHIFT=1, IS_SHARED=False)

    @pytest.mark.parametrize("shift", [-1, 1])
    def test_a_read_outside(self, shift: int) -> None:
        whole = drawn(10)
        with pytest.raises(AssertionError, match="`_copy` reads outside of what it was given"):
            _copy[(8,)](whole[1:9], drawn(8), SHIFT=shift, IS_SHARED=False)


class TestNumbers:
    def test_a_stream_of_24_bits(self) -> None:
        special = torch.tensor([0.0, -0.0, 1.0, 1.9999999, -1.99999, 255.99, 1e-20, 3e30] * 3, device=DEVICE)
        x = torch.cat((drawn(1000, scale=3), special))
        out, activated = torch.empty_like(x), torch.empty_like(x)
        _through[(1,)](x, out, activated, COUNT=1024)
        # 7 bits after the point in bf16, and 8 more; the uppermost of `low` is cut: one more of its steps.
        close(out, x.double(), 2**-15)
        assert (((out - x) / x)[:1000].abs() <= 2**-16).double().mean() > 0.99

    def test_gelu(self) -> None:
        x = torch.linspace(-8, 8, 1024).to(DEVICE)
        out, activated = torch.empty_like(x), torch.empty_like(x)
        _through[(1,)](x, out, activated, COUNT=1024)
        expected = functional.gelu(x.double())
        error = (activated.double() - expected).abs()
        is_near = x.abs() < 4
        assert bool((error <= 2.5e-4 * expected.abs())[is_near].all())
        assert error.max() < 5e-4


class TestRows:
    @pytest.mark.parametrize("lengths", [[1], [2, 64, 65], [129], [1] * 7, [1500, 3]], ids=str)
    @pytest.mark.parametrize("filler", [0, 1, 30])
    def test_places(self, lengths: list[int], filler: int) -> None:
        layout = SequenceLayout.of(lengths, DEVICE)
        total = layout.num_tokens
        found = passes_of(64, 32).placed(layout, total + filler)
        starts = torch.tensor(layout.starts, device=DEVICE)
        own = torch.arange(total, total + filler, device=DEVICE)
        sequence = layout.sequence_ids.long()
        for tensor, real, spare in (
            (found.positions, layout.positions, torch.zeros_like(own)),
            (found.firsts, starts[sequence], own),
            (found.ends, starts[sequence + 1], own + 1),
        ):
            assert torch.equal(tensor.long(), torch.cat((real, spare)))

    @pytest.mark.parametrize("width", [64, 96])
    @pytest.mark.parametrize("count", [1, 65])
    def test_embed_and_finish(self, width: int, count: int) -> None:
        passes = passes_of(width, 32)
        embeddings = Embeddings(vocab_size=50, dim=width, norm_eps=1e-5)
        with torch.no_grad():
            for parameter in embeddings.parameters():
                parameter.copy_(1 + torch.randn_like(parameter))
        embeddings.to(DEVICE)
        ids = torch.randint(50, (count,)).to(DEVICE)
        with torch.no_grad():
            taken, stream = passes.embedded(ids, embeddings)
            rows = embeddings.tok_embeddings.weight[ids].double()
            weight = embeddings.norm.weight.double()
            normed = functional.layer_norm(rows, (width,), weight, None, passes._config.norm_eps)
            final = 1 + drawn(width)
            finished = passes.finished(stream, final)
        size = normed.abs().amax(dim=1, keepdim=True)
        close(taken, normed, HALF_STEP, size)
        centred = normed - normed.mean(dim=1, keepdim=True)
        close(numbers(stream), centred, 2**-15, size)
        close(stream.squares.sum(dim=0), centred.square().sum(dim=1), SUMS)
        expected = functional.layer_norm(centred, (width,), final.double(), None, passes._config.norm_eps)
        close(finished, expected, 2**-15, 8 * size * final.abs())


class TestProducts:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(("count", "width", "head"), CASES)
    def test_project(self, count: int, width: int, head: int, way: str) -> None:
        passes, cut = passes_of(width, head), WAYS[way]
        weight = bf16(drawn(3 * width, width, scale=width**-0.5))
        lengths = [count] if count < 65 else [3, count - 3]
        places = passes.placed(SequenceLayout.of(lengths, DEVICE), count)
        places = Places(places.layout, places.positions, places.firsts, places.ends, cut)
        x = bf16(drawn(count, width))
        stream = stream_of(x, cut)
        scale = torch.rsqrt(x.double().square().mean(dim=1, keepdim=True) + passes._config.norm_eps)
        # Cosines and sines as the kernel has them, in fp16; `test_turns` judges these.
        cosine, sine = (
            part.half().double()[:, None] for part in rotary_table(places.layout.positions, head, 10.0)
        )
        for given, is_normed in ((x, True), (stream, False)):
            found = passes.projected(given, weight, places, 10.0, is_normed)
            rows = x.double() if is_normed else x.double() * scale
            qkv = (rows @ weight.double().T).unflatten(1, (3, width // head, head))
            first, second = qkv[:, :2, :, 0::2], qkv[:, :2, :, 1::2]
            turned = torch.stack((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
            expected = torch.cat((turned.flatten(3), qkv[:, 2:]), dim=1)
            terms = (rows.abs() @ weight.double().abs().T).amax()
            close(found, expected, HALF_STEP, terms)

    def test_turns(self) -> None:
        """Half of a step of fp16, which has 10 bits after the point."""
        turns = passes_of(64, 32)._turns_of(10.0).contiguous().view(torch.float16).unflatten(1, (-1, 2))
        expected = rotary_table(torch.arange(256), 32, 10.0)
        for found, exact in zip(turns.unbind(2), expected, strict=True):
            torch.testing.assert_close(found.float().cpu(), exact[:, 0], atol=2**-12, rtol=0)

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(("count", "width", "head"), CASES[:4] + CASES[-1:])
    def test_add(self, count: int, width: int, head: int, way: str) -> None:
        passes, cut = passes_of(width, head), WAYS[way]
        for depth in (40, 96):
            stream = stream_of(drawn(count, width), cut)
            stream.low.copy_(torch.randint(-128, 128, stream.low.shape))
            before, x, weight = (
                numbers(stream),
                bf16(drawn(count, depth)),
                bf16(drawn(width, depth, scale=0.1)),
            )
            after = passes.added(stream, x, weight)
            expected = before + x.double() @ weight.double().T
            terms = before.abs() + x.double().abs() @ weight.double().abs().T
            close(numbers(after), expected, 2**-15, terms)
            close(
                after.squares.sum(dim=0),
                numbers(after).square().sum(dim=1),
                2**-14,
                terms.square().sum(dim=1),
            )

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(("count", "width", "head"), CASES[:4] + CASES[-1:])
    def test_gate(self, count: int, width: int, head: int, way: str) -> None:
        passes, cut = passes_of(width, head), WAYS[way]
        for intermediate in (40, 96):
            x, weight = bf16(drawn(count, width)), bf16(drawn(2 * intermediate, width, scale=2 * width**-0.5))
            found = passes.gated(stream_of(x, cut), weight)
            rows = x.double() * torch.rsqrt(
                x.double().square().mean(1, keepdim=True) + passes._config.norm_eps
            )
            activated, gates = (rows @ weight.double().T).unflatten(1, (-1, 2)).unbind(2)
            terms = (rows.abs() @ weight.double().abs().T).amax() * (activated.abs() + gates.abs() + 1)
            # The approximate GELU, see `test_gelu`, errs by a tenth of what rounding does.
            close(found, functional.gelu(activated) * gates, 1.15 * HALF_STEP, terms)


class TestAttend:
    LENGTHS = ([1], [2], [64], [65], [129], [1, 2, 64, 65, 3], [17, 130, 64, 1, 20])

    @staticmethod
    def qkv(count: int, head: int) -> Tensor:
        return bf16(drawn(count, 3, 64 // head, head, scale=1.5))

    @pytest.mark.parametrize(
        ("head", "way"), [(16, "small"), (32, "small"), (32, "wide"), (32, "persistent"), (64, "wide")]
    )
    @pytest.mark.parametrize("window", [None, 0, 5, 64])
    def test_attend(self, window: int | None, head: int, way: str) -> None:
        for lengths in self.LENGTHS[:: 1 if head == 32 else 3]:
            passes, layout = passes_of(64, head), SequenceLayout.of(lengths, DEVICE)
            places = passes.placed(layout, layout.num_tokens)
            places = Places(layout, places.positions, places.firsts, places.ends, WAYS[way])
            qkv = self.qkv(layout.num_tokens, head)
            found = passes.attended(qkv, places, window)
            q, k, v = qkv.double().unbind(1)
            expected = reference.attention(q, k, v, layout, window).flatten(1)
            # Shares are rounded to bf16 before they meet the values, and their sum is not.
            terms = reference.attention(q, k, v.abs(), layout, window).flatten(1)
            close(found, expected, HALF_STEP, (HALF_STEP / SUMS + 1) * terms)

    def test_filler_sees_itself(self) -> None:
        passes, layout = passes_of(64, 32), SequenceLayout.of([3, 60], DEVICE)
        qkv = self.qkv(100, 32)
        places = passes.placed(layout, 100)
        for window in (None, 64, 2):
            found = passes.attended(qkv, places, window)
            assert torch.equal(found[63:], qkv[63:, 2].flatten(1))
            alone = passes.placed(layout, 63)
            assert torch.equal(found[:63], passes.attended(qkv[:63].contiguous(), alone, window))

    @pytest.mark.parametrize("window", [None, 5, 64])
    def test_no_sequence_sees_its_neighbour(self, window: int | None) -> None:
        passes, layout = passes_of(64, 32), SequenceLayout.of([20, 64, 65, 3, 30], DEVICE)
        places, qkv = passes.placed(layout, layout.num_tokens), self.qkv(layout.num_tokens, 32)
        before = layout.split(passes.attended(qkv, places, window))
        for changed in range(layout.num_sequences):
            other = qkv.clone()
            layout.split(other)[changed].mul_(-30)
            after = layout.split(passes.attended(other, places, window))
            for index, (one, two) in enumerate(zip(before, after, strict=True)):
                assert torch.equal(one, two) == (index != changed)


class TestStableAdamW:
    @pytest.mark.parametrize("decay", [0.0, 0.01])
    def test_as_by_single_operations(
        self, decay: float, known: list[Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stable_adamw, "_fit_kernels", lambda parts: True)
        shapes = ((5, 7), (1,), (), (130, 97), (3, 2, 4))
        one = [drawn(*shape).requires_grad_() for shape in shapes]
        two = [param.detach().clone().requires_grad_() for param in one]
        optimizers = []
        for params, is_fused in ((one, False), (two, True)):
            optimizer = StableAdamW(params, lr=0.02, weight_decay=decay, max_lr=0.05)
            for param in params:
                param.grad = torch.zeros_like(param)
            optimizer.step()  # makes the state
            optimizer._is_fused = is_fused
            optimizers.append(optimizer)
        states = [state for it in two for name, state in optimizers[1].state[it].items() if name != "step"]
        known += [*two, *(it.grad for it in two if it.grad is not None), *states]
        for step in range(8):
            for first, second in zip(one, two, strict=True):
                grad = drawn(*first.shape, scale=30.0 if step % 4 == 3 else 0.1)  # some are clipped
                first.grad.copy_(grad)  # type: ignore[union-attr]
                second.grad.copy_(grad)  # type: ignore[union-attr]
            for optimizer in optimizers:
                optimizer.step()
            for first, second in zip(one, two, strict=True):
                torch.testing.assert_close(second, first, atol=1e-6, rtol=1e-6)
                for name in ("exp_avg", "exp_avg_sq"):
                    expected, found = (
                        it.state[param][name] for it, param in zip(optimizers, (first, second))
                    )
                    size = expected.abs().max().item()
                    torch.testing.assert_close(found, expected, atol=1e-6 * size, rtol=1e-6)


IDS = {"vocab_size": 512, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 3}


class TestEncoder:
    @pytest.fixture
    def plain(self) -> ModernBertModel:
        """Random weights, whose norms are not all one, and under which attention matters."""
        shape = {"max_position_embeddings": 256, "window": 16, **IDS}
        model = ModernBertModel(EncoderConfig.preset("tiny", **shape), backend="plain")
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape)
                parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else noise / parameter.shape[1] ** 0.5)
        return model.eval().to(DEVICE)

    @staticmethod
    def encoder(plain: ModernBertModel) -> GpuEncoder:
        """On a GPU without graphs, of which `tests/infer/test_gpu_fused.py` has its own."""
        model = GpuEncoder(plain, DEVICE, KernelPasses(plain.config, DEVICE))
        model._graphs = None
        return model

    @staticmethod
    def batch(*lengths: int) -> tuple[Tensor, SequenceLayout]:
        return pack([torch.randint(4, 512, (length,)) for length in lengths], DEVICE)

    @pytest.mark.parametrize("cut", [*(cut for _, cut in CUTS), MANY], ids=["128", "1024", "4096", "more"])
    @torch.inference_mode()
    def test_no_further_than_the_plain_model_in_bf16(
        self, plain: ModernBertModel, cut: Cut, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kernel_passes, "cut", lambda num_tokens: cut)
        ids, layout = self.batch(*((1, 2, 64, 65, 129) if cut is CUTS[1][1] else (1, 2, 64, 65)))
        exact = plain(ids, layout)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            rough = plain(ids, layout)
        found = self.encoder(plain)(ids, layout)
        judge = GpuEncoder(plain, DEVICE, TorchPasses(plain.config, torch.bfloat16))
        judge._graphs = None
        for of in (torch.max, torch.mean):
            assert of((found - exact).abs()) <= of((rough.float() - exact).abs())
        # Rounded at the same places: what differs is what sums, and so roundings, fall on the other side.
        assert (found - judge(ids, layout)).abs().mean() <= (found - exact).abs().mean()

    @torch.inference_mode()
    def test_filler_changes_nothing(self, plain: ModernBertModel) -> None:
        ids, layout = self.batch(5, 40, 20)
        model, padded = self.encoder(plain), functional.pad(ids, (0, 31))
        assert torch.equal(model._encoded(padded, layout)[: len(ids)], model(ids, layout))

    @torch.inference_mode()
    def test_no_sequence_sees_another(self, plain: ModernBertModel) -> None:
        ids, layout = self.batch(17, 40, 1, 20)
        model, changed, other = self.encoder(plain), 1, ids.clone()
        layout.split(other)[changed].random_(4, 512)
        pairs = zip(*(layout.split(model(it, layout)) for it in (ids, other)), strict=True)
        for index, (one, two) in enumerate(pairs):
            assert torch.equal(one, two) == (index != changed)

    @torch.inference_mode()
    def test_long_sequences_are_left_to_an_attention_backend(
        self, plain: ModernBertModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids, layout = self.batch(70, 20)
        expected = self.encoder(plain)(ids, layout)
        monkeypatch.setattr(kernel_passes, "FEW_TOKENS", 64)
        monkeypatch.setattr(kernel_passes, "SHORT", 64)
        calls: list[Any] = []
        choose = kernel_passes.choose
        monkeypatch.setattr(
            kernel_passes, "choose", lambda *a, **k: (calls.append((a[0], k)), choose(*a, **k))[1]
        )
        found = self.encoder(plain)(ids, layout)
        num_global = sum(plan.window is None for plan in plain.config.layer_plan)
        assert calls == [("auto", {"is_windowed": False})] * num_global
        assert 0 < (found - expected).abs().mean() < 0.02
