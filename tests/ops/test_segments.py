"""Reductions over parts of a row equal torch's own on each part alone, gradients too."""

from __future__ import annotations

import torch
from torch import Tensor

from modernbert.layout import SequenceLayout
from modernbert.ops import segments

LAYOUT = SequenceLayout.of([1, 2, 64, 65, 129])


def values() -> Tensor:
    return torch.randn(LAYOUT.num_tokens, 2) * 30


def test_log_sum_exp_and_its_gradient() -> None:
    given = values().requires_grad_()
    found = segments.log_sum_exp(given, LAYOUT.offsets, LAYOUT.sequence_ids)
    expected = torch.stack([part.logsumexp(0) for part in LAYOUT.split(given)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    outer = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(found, given, outer)
    (wanted,) = torch.autograd.grad(expected, given, outer)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


def test_large_values_do_not_overflow() -> None:
    given = torch.tensor([[3e38], [3e38], [-3e38], [-3e38]])
    layout = SequenceLayout.of([2, 2])
    found = segments.log_sum_exp(given, layout.offsets, layout.sequence_ids)
    assert torch.equal(found, torch.tensor([[3e38], [-3e38]]))


def test_argmax() -> None:
    given = values()
    found = segments.argmax(given, LAYOUT.offsets, LAYOUT.sequence_ids)
    expected = [part.argmax(0) + start for part, start in zip(LAYOUT.split(given), LAYOUT.starts)]
    assert torch.equal(found, torch.stack(expected))


def test_of_equal_values_the_first_is_the_largest() -> None:
    layout = SequenceLayout.of([3, 2])
    found = segments.argmax(torch.zeros(5, 1), layout.offsets, layout.sequence_ids)
    assert found.tolist() == [[0], [3]]


def test_what_is_no_number_is_nowhere() -> None:
    layout = SequenceLayout.of([1, 2])
    given = torch.tensor([[1.0], [float("nan")], [1.0]])
    assert segments.argmax(given, layout.offsets, layout.sequence_ids).tolist() == [[0], [3]]
