"""Every attention backend against the plain definition: forward, gradients, isolation of sequences."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modernbert.errors import BackendError
from modernbert.layout import SequenceLayout
from modernbert.ops import reference
from modernbert.ops.attention import _automatic, _say, attention

LENGTHS = {
    "border lengths": [1, 2, 63, 64, 65, 128, 129, 200],
    "equal": [70, 70, 70],
    "one": [1],
    "one long": [1024],
    "near-equal groups": [100, 99, 97, 33, 32, 31, 5, 90],
    "short": [3, 9, 4],
}
WINDOWS = [None, 64, 8]


def draw(
    layout: SequenceLayout, dtype: torch.dtype = torch.float64, heads: int = 2, width: int = 16
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(layout.num_tokens)
    shape = (layout.num_tokens, heads, width)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(layout.device)
        for _ in range(4)
    ]


def with_gradients(run, q: Tensor, k: Tensor, v: Tensor, outer: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, outer)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_portable_equals_definition(lengths: list[int], window: int | None) -> None:
    layout = SequenceLayout.of(lengths)
    tensors = draw(layout)
    expected = with_gradients(lambda *qkv: reference.attention(*qkv, layout, window), *tensors)
    actual = with_gradients(lambda *qkv: attention(*qkv, layout, window, "portable"), *tensors)
    for ours, plain in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", [None, 64])
def test_portable_at_full_length(window: int | None) -> None:
    layout = SequenceLayout.of([8192])
    tensors = draw(layout, torch.float32, heads=1, width=8)
    expected = with_gradients(lambda *qkv: reference.attention(*qkv, layout, window), *tensors)
    actual = with_gradients(lambda *qkv: attention(*qkv, layout, window, "portable"), *tensors)
    for ours, plain in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["plain", "portable"])
@pytest.mark.parametrize("window", WINDOWS)
def test_packed_equals_separate(backend: str, window: int | None) -> None:
    layout = SequenceLayout.of(LENGTHS["border lengths"])
    q, k, v, _ = draw(layout)
    packed = attention(q, k, v, layout, window, backend)
    for i, part in enumerate(layout.split(packed)):
        alone = SequenceLayout.of([layout.lengths[i]])
        one = (layout.split(x)[i] for x in (q, k, v))
        torch.testing.assert_close(part, attention(*one, alone, window, backend), rtol=1e-10, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 6e-4)], ids=str)
def test_packed_equals_separate_in_varlen(dtype: torch.dtype, tolerance: float, window: int | None) -> None:
    layout = SequenceLayout.of(LENGTHS["border lengths"], "cuda")
    q, k, v, _ = draw(layout, dtype, width=64)
    packed = attention(q, k, v, layout, window, "varlen")
    for i, part in enumerate(layout.split(packed)):
        alone = SequenceLayout.of([layout.lengths[i]], "cuda")
        separate = attention(*(layout.split(x)[i] for x in (q, k, v)), alone, window, "varlen").float()
        error = torch.linalg.vector_norm(part.float() - separate) / torch.linalg.vector_norm(separate)
        assert error <= tolerance


@pytest.mark.parametrize(
    ("backend", "device", "dtype"),
    [
        ("plain", "cpu", torch.float32),
        ("portable", "cpu", torch.float32),
        pytest.param("varlen", "cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("window", WINDOWS)
def test_no_sequence_sees_its_neighbour(
    backend: str, device: str, dtype: torch.dtype, window: int | None
) -> None:
    """Changing one sequence changes no bit of another's output."""
    layout = SequenceLayout.of([65, 64, 66, 3], device)
    q, k, v, _ = draw(layout, dtype, width=64)
    before = attention(q, k, v, layout, window, backend)
    changed = slice(layout.starts[1], layout.starts[2])
    for x in (q, k, v):
        x[changed] = x[changed] * 100 + 7
    after = attention(q, k, v, layout, window, backend)
    others = layout.sequence_ids != 1
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[changed], after[changed])


def test_window_of_64_shows_129_tokens() -> None:
    """A query in the middle sees |i - j| <= 64 and nothing beyond."""
    layout = SequenceLayout.of([400])
    q, k, _, _ = draw(layout)
    for backend in ("plain", "portable"):
        for distance, seen in ((64, True), (-64, True), (65, False), (-65, False), (0, True)):
            v = torch.zeros_like(q)
            v[200 + distance] = 1.0
            out = attention(q, k, v, layout, 64, backend)
            assert bool(out[200].abs().sum() > 0) is seen, (backend, distance)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=8), st.sampled_from([None, 1, 7, 64]), st.randoms())
def test_permuting_sequences_permutes_the_result(lengths: list[int], window: int | None, random) -> None:
    layout = SequenceLayout.of(lengths)
    q, k, v, _ = draw(layout, heads=1, width=4)
    order = list(range(len(lengths)))
    random.shuffle(order)
    shuffled_layout = SequenceLayout.of([lengths[i] for i in order])
    shuffled = (torch.cat([layout.split(x)[i] for i in order]) for x in (q, k, v))
    actual = attention(*shuffled, shuffled_layout, window, "portable")
    expected = layout.split(attention(q, k, v, layout, window, "portable"))
    torch.testing.assert_close(actual, torch.cat([expected[i] for i in order]), rtol=1e-10, atol=1e-12)


def test_a_named_backend_that_cannot_serve_says_why() -> None:
    layout = SequenceLayout.of([4])
    q, k, v, _ = draw(layout)
    with pytest.raises(
        BackendError, match=r"`varlen` cannot serve: it runs on CUDA devices only.*`auto` or `portable`"
    ):
        attention(q, k, v, layout, None, "varlen")
    with pytest.raises(BackendError, match="unknown attention backend `portabel`; did you mean `portable`"):
        attention(q, k, v, layout, None, "portabel")


def test_auto_logs_its_choice_once(caplog: pytest.LogCaptureFixture) -> None:
    _automatic.cache_clear()
    _say.cache_clear()
    layout = SequenceLayout.of([4])
    q, k, v, _ = draw(layout)
    with caplog.at_level(logging.INFO, logger="modernbert"):
        for _ in range(3):
            attention(q, k, v, layout, None)
    assert len(caplog.records) == 1
    assert "portable; not varlen, fa3: it runs on CUDA devices only" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "lengths", [[1, 2, 63, 64, 65, 128, 129, 200, 1024], [8192], [8192, 1, 129]], ids=str
)
def test_varlen_is_as_near_to_the_definition_as_its_dtype(
    lengths: list[int], dtype: torch.dtype, window: int | None
) -> None:
    """Against fp32, `varlen` errs no more than twice what the plain definition does in the same dtype."""
    layout = SequenceLayout.of(lengths, "cuda")
    half = draw(layout, dtype, heads=2, width=64)
    exact = with_gradients(lambda *qkv: reference.attention(*qkv, layout, window), *(x.float() for x in half))
    plain = with_gradients(lambda *qkv: reference.attention(*qkv, layout, window), *half)
    fast = with_gradients(lambda *qkv: attention(*qkv, layout, window, "varlen"), *half)
    for ours, rough, truth in zip(fast, plain, exact, strict=True):
        error, allowed = (
            torch.linalg.vector_norm(x.float() - truth) / torch.linalg.vector_norm(truth)
            for x in (ours, rough)
        )
        assert error <= 2 * allowed + 1e-6
