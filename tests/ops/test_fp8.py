"""fp8 linear layers against the same numbers multiplied in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modernbert.errors import BackendError, ConfigError
from modernbert.ops import fp8
from modernbert.ops.fp8 import Fp8Linear, fp8_linear, quantize_rows


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Rows of very different sizes."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-6, 4, shape[0]).unsqueeze(1)
    return torch.randn(shape, generator=draw) * sizes


def rounded(matrix: Tensor) -> Tensor:
    rows, scale = quantize_rows(matrix)
    return rows.float() * scale


def test_each_row_keeps_its_own_size() -> None:
    matrix = numbers(11, 64)
    rows, scale = quantize_rows(matrix)
    assert scale.shape == (11, 1)
    assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))  # powers of two
    most = rows.float().abs().amax(dim=1)
    assert ((most > 448 / 2 - 16) & (most <= 448)).all()
    near = rows.float().abs() >= 2**-6  # what e4m3 has three bits for
    assert near.float().mean() > 0.9
    torch.testing.assert_close(rounded(matrix)[near], matrix[near], rtol=2**-4, atol=0)


def test_nothing_and_the_infinite() -> None:
    rows, _ = quantize_rows(torch.tensor([[0.0, 0.0], [1.0, float("inf")], [float("nan"), 1.0]]))
    assert torch.equal(rows[0].float(), torch.zeros(2))
    assert rows.float()[1:].isnan().any(dim=1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 65])
def test_equals_the_product_of_the_rounded(tokens: int, dtype: torch.dtype) -> None:
    x = numbers(tokens, 32).to(dtype).requires_grad_()
    weight = numbers(48, 32, seed=1).to(dtype).requires_grad_()
    upward = numbers(tokens, 48, seed=2).bfloat16()
    y = fp8_linear(x, weight)
    y.backward(upward)
    assert (y.dtype, x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, dtype, dtype)  # type: ignore[union-attr]
    half = x.detach().bfloat16()
    torch.testing.assert_close(y.float(), rounded(half) @ rounded(weight.detach()).t(), rtol=2**-7, atol=1e-9)
    back = rounded(upward) @ rounded(weight.detach().t()).t()
    torch.testing.assert_close(x.grad.float(), back, rtol=2**-7, atol=1e-9)  # type: ignore[union-attr]
    whole = upward.float().t() @ half.float()
    torch.testing.assert_close(weight.grad.float(), whole, rtol=2**-7, atol=1e-2)  # type: ignore[union-attr]


def test_is_near_the_exact_product() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 256, generator=draw), torch.randn(128, 256, generator=draw)
    found, exact = fp8_linear(x, weight).float(), functional.linear(x, weight)
    assert functional.cosine_similarity(found, exact).min() > 0.998


def test_is_compiled_as_one_graph_for_any_length() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(Fp8Linear(nn.Linear(32, 64, bias=False)), nn.GELU())
    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (5, 70):
        found: list[Tensor] = []
        for each in (layers, compiled):
            layers.zero_grad()
            x = numbers(tokens, 32).requires_grad_()
            each(x).float().square().sum().backward()
            found += [x.grad, layers[0].weight.grad.clone()]  # type: ignore[list-item, union-attr, operator]
        torch.testing.assert_close(found[:2], found[2:], rtol=0, atol=0)


def test_the_weight_is_the_parameter_itself() -> None:
    linear = nn.Linear(32, 16, bias=False)
    layer = Fp8Linear(linear)
    assert layer.weight is linear.weight
    assert list(layer.state_dict()) == ["weight"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(24, 32, bias=False), "maps 24 to 32 numbers; both must be multiples of 16"),
        (nn.Linear(32, 32), "must be a plain linear layer without bias"),
        (nn.Identity(), "must be a plain linear layer without bias; compute models with adapters in bf16"),
    ],
)
def test_refuses_what_it_cannot_compute(layer: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Fp8Linear(layer)


@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (8, 9), (9, 0)])
def test_an_older_gpu_is_refused(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old")
    if capability >= (8, 9):
        fp8.check_device(torch.device("cuda"))
        return
    with pytest.raises(BackendError, match="fp8 is wanted on `Old`; it needs an NVIDIA GPU of compute"):
        fp8.check_device(torch.device("cuda"))


def test_other_makers_are_refused_and_a_cpu_is_not() -> None:
    fp8.check_device(torch.device("cpu"))
    with pytest.raises(BackendError, match="fp8 is wanted on `mps`"):
        fp8.check_device(torch.device("mps"))
