"""Rotation of queries and keys: relative positions are all that a score can see."""

from __future__ import annotations

import torch

from modernbert.ops.rotary import rotary_table, rotate


def test_position_zero_is_not_turned() -> None:
    x = torch.randn(3, 2, 8)
    assert torch.equal(rotate(x, rotary_table(torch.zeros(3, dtype=torch.int64), 8, 10_000.0)), x)


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float64)
    near = [rotate(x, rotary_table(torch.tensor([at]), 16, 100.0)) for x, at in ((q, 3), (k, 8))]
    far = [rotate(x, rotary_table(torch.tensor([at]), 16, 100.0)) for x, at in ((q, 503), (k, 508))]
    torch.testing.assert_close((near[0] * near[1]).sum(), (far[0] * far[1]).sum(), rtol=0, atol=1e-4)


def test_table_is_fp32_and_halves_share_an_angle() -> None:
    cos, sin = rotary_table(torch.tensor([5]), 4, 100.0)
    assert cos.dtype == torch.float32
    torch.testing.assert_close(cos[0, 0], torch.tensor([5.0, 0.5]).cos())
    torch.testing.assert_close(sin[0, 0], torch.tensor([5.0, 0.5]).sin())
    turned = rotate(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]), (cos, sin))
    torch.testing.assert_close(
        turned[0, 0], torch.stack([cos[0, 0, 0], cos.new_zeros(()), sin[0, 0, 0], cos.new_zeros(())])
    )
