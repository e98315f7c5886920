"""The chunked loss of a student and its teacher against its plain definition."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from modernbert.ops import distillation, loss, reference
from modernbert.ops.reference import Logits

V = 101


def student(num_predictions: int) -> Logits:
    return Logits(
        *(torch.randn(shape, requires_grad=True) for shape in ((num_predictions, 16), (V, 16), (V,)))
    )


def teacher(num_predictions: int) -> Logits:
    """Wider than the student."""
    return Logits(*(torch.randn(shape) for shape in ((num_predictions, 24), (V, 24), (V,))))


@pytest.mark.parametrize("logits_at_once", [1, 1000, 10**9])
@pytest.mark.parametrize("num_predictions", [0, 1, 37])
@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 1.0), (0.7, 2.0), (1.0, 0.5), (0.0, 1.0)])
def test_equals_definition(
    num_predictions: int,
    logits_at_once: int,
    weight: float,
    temperature: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", logits_at_once)
    learns, teaches = student(num_predictions), teacher(num_predictions)
    labels = torch.randint(0, V, (num_predictions,))
    given = {"weight": weight, "temperature": temperature}
    expected = reference.linear_distillation(learns, teaches, labels, **given)
    found = distillation.linear_distillation(learns, teaches, labels, **given)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert [part.requires_grad for part in found] == [True, False, False, False]
    ours, plain = (torch.autograd.grad(3 * it.loss, learns) for it in (found, expected))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_student_that_guesses_as_its_teacher_has_nothing_to_learn() -> None:
    learns, labels = student(9), torch.zeros(9, dtype=torch.int64)
    teaches = Logits(*(tensor.detach() for tensor in learns))
    found = distillation.linear_distillation(learns, teaches, labels, weight=1.0, temperature=2.0)
    assert found.divergence.item() == pytest.approx(0, abs=1e-5)
    for gradient in torch.autograd.grad(found.loss, learns):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


def test_the_logits_of_both_are_never_more_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 2 * V * 10)
    sizes, linear = [], torch.nn.functional.linear
    alive: list[weakref.ref[Tensor]] = []

    def counted(hidden: Tensor, *args: Tensor) -> Tensor:
        assert sum(it() is not None for it in alive) == 0, "those of the chunk before are still there"
        logits = linear(hidden, *args)
        sizes.append(len(hidden))
        if len(sizes) % 2 == 0:  # the teacher's are its chunk's first, and become its distribution
            alive.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(distillation.functional, "linear", counted)
    labels = torch.zeros(35, dtype=torch.int64)
    distillation.linear_distillation(student(35), teacher(35), labels, weight=0.5, temperature=1.0)
    assert sizes == [10, 10] * 3 + [5, 5]


def test_computes_no_gradient_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "scatter_add_", lambda *_: pytest.fail("a gradient was computed"))
    with torch.no_grad():
        distillation.linear_distillation(
            student(3), teacher(3), torch.zeros(3).long(), weight=0.5, temperature=1.0
        )


def test_under_autocast_each_model_computes_in_its_own_dtype() -> None:
    learns, exact_teacher, labels = student(20), teacher(20), torch.randint(0, V, (20,))
    rough_teacher = Logits(*(tensor.bfloat16() for tensor in exact_teacher))
    given = {"weight": 0.5, "temperature": 1.0}
    exact = distillation.linear_distillation(learns, exact_teacher, labels, **given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = distillation.linear_distillation(learns, rough_teacher, labels, **given)
    rough.loss.backward()
    assert rough.loss.dtype == learns.weight.grad.dtype == torch.float32
    assert rough.loss != exact.loss
    torch.testing.assert_close(rough.loss, exact.loss, rtol=0.02, atol=0.0)
