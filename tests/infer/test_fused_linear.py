"""Linear layers on packed weights: near the exact product, whatever stands beside a row."""

from __future__ import annotations

import pytest
import torch

from modernbert.infer.fused import refusal
from modernbert.infer.fused_linear import DnnGated, DnnLinear, Int8Linear
from modernbert.infer.fused_passes import TorchPasses

CPU = torch.device("cpu")
FP32, INT8 = (TorchPasses(1, 1e-5, dtype) for dtype in (torch.float32, torch.uint8))
needs_int8 = pytest.mark.skipif(refusal(CPU, "int8") is not None, reason=str(refusal(CPU, "int8")))
pytestmark = pytest.mark.skipif(refusal(CPU, "fp32") is not None, reason=str(refusal(CPU, "fp32")))


def int8_product(linear: Int8Linear, x: torch.Tensor) -> torch.Tensor:
    product, steps = linear(INT8.stored(x))  # type: ignore[arg-type]
    return product * steps


@needs_int8
def test_an_int8_product_has_the_same_bits_whatever_the_neighbours() -> None:
    torch.manual_seed(0)
    linear = Int8Linear(torch.randn(96, 64))
    x = torch.randn(40, 64) * torch.logspace(-3, 3, 40)[:, None]
    whole = int8_product(linear, x)
    for rows in (slice(0, 1), slice(3, 11), slice(39, 40)):
        assert torch.equal(int8_product(linear, x[rows]), whole[rows])


@needs_int8
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e6])
def test_an_int8_product_is_near_the_exact_one_at_any_scale(scale: float) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64), torch.randn(5, 64) * scale
    x[2] = 0
    found, expected = int8_product(Int8Linear(weight), x), x @ weight.T
    assert found.isfinite().all()
    assert (found[2] == 0).all()
    # Two roundings of half a step each, in 64 products.
    assert (found - expected).abs().max() <= 0.05 * max(float(expected.abs().max()), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_result_added_to_the_residual(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x, residual = torch.randn(96, 64), torch.randn(5, 64), torch.randn(5, 96)
    expected = residual + x.to(dtype).float() @ weight.to(dtype).float().T
    found = DnnLinear(weight, dtype).plus(x.to(dtype), residual.clone())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)


def test_the_gate() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64), torch.randn(5, 64)
    activated, gate = (x @ weight.T).chunk(2, dim=1)
    found = DnnGated(weight, torch.float32)(x, FP32)
    torch.testing.assert_close(found, torch.nn.functional.gelu(activated) * gate, rtol=1e-4, atol=1e-4)
