"""How far is each attention backend from the plain definition in fp64, forward and gradients?

The plain definition in the same dtype stands beside it: what a backend may err. Errors are
|out - truth| / |truth| over the whole tensor. On a GPU: `varlen` and `portable` in bf16 and fp16.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from benchmarks.common import write
from modernbert.layout import SequenceLayout
from modernbert.ops.attention import BACKENDS, attention
from modernbert.runtime import choose_device, machine_facts, synchronize

LENGTHS = {"1 to 1,024": (1, 2, 63, 64, 65, 128, 129, 200, 1024), "8,192": (8192,)}
HEADS, WIDTH = 4, 64
PARTS = ("forward", "dq", "dk", "dv")


def run(backend: str, tensors: list[Tensor], layout: SequenceLayout, window: int | None) -> list[Tensor]:
    """Output and the gradients of queries, keys and values."""
    *leaves, outer = (x.detach().requires_grad_() for x in tensors)
    out = attention(*leaves, layout, window, backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, outer.detach())]


def error(actual: list[Tensor], truth: list[Tensor]) -> list[float]:
    pairs = zip(actual, truth, strict=True)
    return [(torch.linalg.vector_norm(a.double() - t) / torch.linalg.vector_norm(t)).item() for a, t in pairs]


def main() -> None:
    device = choose_device()
    dtypes = (torch.bfloat16, torch.float16) if device.type == "cuda" else (torch.float32, torch.bfloat16)
    cases = LENGTHS if device.type == "cuda" else {"1 to 1,024": LENGTHS["1 to 1,024"]}  # fp64 scores: 2 GiB
    machine = machine_facts(device)
    rows = []
    for (case, lengths), window, dtype in itertools.product(cases.items(), (None, 64), dtypes):
        layout = SequenceLayout.of(lengths, device)
        generator = torch.Generator(device).manual_seed(layout.num_tokens)
        shape = (layout.num_tokens, HEADS, WIDTH)
        tensors = [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(4)]
        truth = run("plain", [x.double() for x in tensors], layout, window)
        for backend in BACKENDS:
            if BACKENDS[backend].refusal(device, dtype, WIDTH) is None:
                errors = error(run(backend, tensors, layout, window), truth)
                synchronize(device)
                rows.append(
                    {
                        "lengths": case,
                        "window": "global" if window is None else f"{window} each side",
                        "dtype": str(dtype).removeprefix("torch."),
                        "backend": backend,
                        **{part: f"{value:.1e}" for part, value in zip(PARTS, errors, strict=True)},
                    }
                )
    write("attention_accuracy", "relative error of each attention backend against fp64", rows, machine)


if __name__ == "__main__":
    main()
