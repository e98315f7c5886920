"""Linear layers whose products run in fp8 (e4m3), with a scale for each row of both factors.

Forward and the gradient of the input take factors of 8 bits; the gradient of the weights, which the
optimizer adds up over many steps, stays in bf16 (the recipe `rowwise_with_gw_hp` of torchao).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modernbert.errors import BackendError, ConfigError

MULTIPLE = 16
"""What both sides of a weight must be multiples of."""

_E4M3 = torch.float8_e4m3fn
_MOST = torch.finfo(_E4M3).max
_LEAST = torch.finfo(torch.float32).tiny * _MOST  # below it a scale would be no normal number
_OLDEST = (8, 9)


class Fp8Linear(nn.Linear):
    """A linear layer without bias that computes in fp8; its weight stays what it is.

    Args:
        linear: Whose weight it takes, the parameter itself.

    Raises:
        ConfigError: It is another kind of layer, has a bias, or a side that is no multiple of 16.
    """

    def __init__(self, linear: nn.Module) -> None:
        if type(linear) is not nn.Linear or "bias" in linear.state_dict():
            raise ConfigError(
                f"a layer to compute in fp8 is {linear}; it must be a plain linear layer without bias; "
                "compute models with adapters in bf16"
            )
        sides = (linear.in_features, linear.out_features)
        if any(side % MULTIPLE for side in sides):
            raise ConfigError(
                f"a layer to compute in fp8 maps {sides[0]} to {sides[1]} numbers; both must be multiples of "
                f"{MULTIPLE}; choose another width, or compute in bf16"
            )
        super().__init__(*sides, bias=False, device="meta")
        self.weight = linear.weight
        # Here and not above, as it imports the compiler: torch.compile is to look through the function, not
        # to trace it, which fails for rows of changing length.
        torch.compiler.allow_in_graph(fp8_linear)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[T, K]` to bf16 `[T, N]`."""
        return fp8_linear(x, self.weight)


def check_device(device: torch.device) -> None:
    """Say no to a device without fp8 products. A CPU has them too, slowly: for tests.

    Raises:
        BackendError: An older GPU than Ada and Hopper, or no GPU of NVIDIA's.
    """
    if device.type == "cpu":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _OLDEST:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        raise BackendError(
            f"fp8 is wanted on `{name}`; it needs an NVIDIA GPU of compute capability 8.9 (Ada, Hopper) or "
            "newer; set `fp8=false`"
        )


def fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply `[T, K]` by the transpose of `[N, K]` in fp8; the result, `[T, N]`, is bf16."""
    product: Tensor = _Fp8Linear.apply(x.to(torch.bfloat16), weight)  # type: ignore[no-untyped-call]
    return product


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Round `[R, C]` to e4m3, each row scaled so that its largest number is near the largest there is.

    Scales are powers of two, so that scaling itself rounds nothing.

    Returns:
        The rows, and fp32 `[R, 1]` by which they are multiplied to get them back.
    """
    values = matrix.float()
    most = values.abs().amax(dim=1, keepdim=True).clamp(min=_LEAST)
    scale = torch.exp2(torch.ceil(torch.log2(most / _MOST)))
    return (values / scale).to(_E4M3).contiguous(), scale


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply `[R, C]` by the transpose of `[S, C]`."""
    a, scale_a = quantize_rows(left)
    b, scale_b = quantize_rows(right)
    return torch._scaled_mm(a, b.t(), scale_a=scale_a, scale_b=scale_b.t(), out_dtype=torch.bfloat16)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad = grads[0].to(torch.bfloat16)
        return _product(grad, weight.t()), (grad.t() @ x).to(weight.dtype)
