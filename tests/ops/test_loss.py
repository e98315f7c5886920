"""The chunked decoder loss against its plain definition."""

from __future__ import annotations

import weakref

import pytest
import torch

from modernbert.ops import loss, reference


@pytest.mark.parametrize("logits_at_once", [1, 500, 10**9])
@pytest.mark.parametrize("num_predictions", [0, 1, 37])
def test_equals_definition(
    num_predictions: int, logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", logits_at_once)
    torch.manual_seed(0)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((num_predictions, 16), (101, 16), (101,))]
    labels = torch.randint(0, 101, (num_predictions,))
    expected, expected_correct = reference.linear_cross_entropy(*leaves, labels)
    actual, correct = loss.linear_cross_entropy(*leaves, labels)
    torch.testing.assert_close(actual, expected)
    assert correct == expected_correct
    ours, plain = (torch.autograd.grad(3 * x, leaves) for x in (actual, expected))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_never_holds_more_logits_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 64 * 10)
    sizes, linear = [], torch.nn.functional.linear
    last: weakref.ref[torch.Tensor] | None = None

    def counted(hidden: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        nonlocal last
        assert last is None or last() is None, "those of the chunk before are still there"
        logits = linear(hidden, *args)
        sizes.append(len(hidden))
        last = weakref.ref(logits)
        return logits

    monkeypatch.setattr(loss.functional, "linear", counted)
    for wanted in (False, True):
        hidden = torch.randn(35, 8, requires_grad=wanted)
        loss.linear_cross_entropy(hidden, torch.randn(64, 8), torch.zeros(64), torch.zeros(35).long())
    assert sizes == [10, 10, 10, 5] * 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_computes_no_gradient_that_nobody_wants(mode, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((3, 8), (64, 8), (64,))]
    monkeypatch.setattr(torch.Tensor, "scatter_add_", lambda *_: pytest.fail("a gradient was computed"))
    with mode():
        loss.linear_cross_entropy(*leaves, torch.zeros(3).long())


@pytest.mark.parametrize("learned", [(0,), (1,), (2,), (0, 2)])
def test_makes_no_gradient_of_what_is_frozen(learned: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(shape) for shape in ((37, 16), (101, 16), (101,))]
    trained = [leaves[place].requires_grad_() for place in learned]
    labels = torch.randint(0, 101, (37,))
    held: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda it: held.append(it.shape) or it, lambda it: it):
        actual, _ = loss.linear_cross_entropy(*leaves, labels)
    assert held == [tensor.shape for tensor in trained]
    expected, _ = reference.linear_cross_entropy(*leaves, labels)
    for ours, plain in zip(torch.autograd.grad(actual, trained), torch.autograd.grad(expected, trained)):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_under_autocast_the_products_run_in_bfloat16() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(20, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (20,))
    exact, _ = loss.linear_cross_entropy(hidden, weight, torch.zeros(50), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = loss.linear_cross_entropy(hidden, weight, torch.zeros(50), labels)
    rough.backward()
    assert rough.dtype == torch.float32
    assert weight.grad.dtype == torch.float32
    assert rough != exact
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.0)
