"""Every way to compute a model's hidden states on a device, to be judged by `modernbert.infer.verify`."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from modernbert.infer import fused
from modernbert.infer.export import export_onnx
from modernbert.infer.gpu import encoder as gpu
from modernbert.infer.onnx_runner import OnnxRunner
from modernbert.infer.runner import Runner, TorchRunner
from modernbert.model.dialects import to_published
from modernbert.model.encoder import ModernBertModel
from modernbert.model.padded import packed_to_padded, padded_to_packed
from modernbert.ops.attention import BACKENDS
from modernbert.runtime import autocast

Run = Callable[[list[list[int]]], list[Tensor]]
Padding = Literal["none", "right", "left"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to compute a model's hidden states.

    Attributes:
        name: What the table calls it.
        dtype: In which it computes: a key of `BOUNDS`.
        run: Maps sequences of token ids, computed together, to their hidden states `[length, D]`.
        padding: On which side it pads; `none` if it packs.
        packs: Whether it computes several sequences together at all.
    """

    name: str
    dtype: str
    run: Run
    padding: Padding = "none"
    packs: bool = True


def collect(encoder: ModernBertModel, *, with_onnx: bool = False) -> list[Candidate]:
    """Collect what can be judged on the encoder's device.

    Args:
        encoder: In fp32; a candidate may set its `backend`.
        with_onnx: Export it and judge the file too.

    Returns:
        Attention backends, the device's fused encoder and the padded door, in each dtype; and transformers,
        if it is installed.
    """
    device, width = encoder.final_norm.weight.device, encoder.config.head_dim
    dtypes = [name for name in _DTYPES if name != "fp16" or device.type == "cuda"]
    found = [
        of_runner(backend, dtype, _runner(encoder, backend, dtype))
        for dtype in dtypes
        for backend in BACKENDS
        if BACKENDS[backend].refusal(device, _DTYPES[dtype], width) is None
    ]
    found += [
        of_runner("fused", dtype, TorchRunner(fused.FusedEncoder(encoder, dtype), "fp32"))
        for dtype in get_args(fused.FusedPrecision)
        if fused.refusal(device, dtype) is None
    ]
    if gpu.refusal(device, "bf16", encoder.config) is None:
        found.append(of_runner("fused", "bf16", TorchRunner(gpu.GpuEncoder(encoder, device), "bf16")))
    found += [_padded(encoder, dtype, side) for dtype in dtypes for side in ("right", "left")]
    return found + _transformers(encoder) + ([_onnx(encoder)] if with_onnx else [])


def of_runner(name: str, dtype: str, runner: Callable[[list[list[int]]], tuple[Tensor, Any]]) -> Candidate:
    """Make a candidate of a runner (see `modernbert.infer.runner`) of a bare encoder."""

    def run(sequences: list[list[int]]) -> list[Tensor]:
        hidden, layout = runner(sequences)
        return list(layout.split(hidden))

    return Candidate(name=name, dtype=dtype, run=run)


def _runner(encoder: ModernBertModel, backend: str, dtype: str) -> Callable[..., tuple[Tensor, Any]]:
    runner: Runner = TorchRunner(encoder, dtype)  # type: ignore[arg-type]  # one of `Precision`, as checked

    def run(sequences: list[list[int]]) -> tuple[Tensor, Any]:
        encoder.backend = backend
        return runner(sequences)

    return run


def plain(encoder: ModernBertModel, dtype: str) -> Candidate:
    """Compute the definition in a dtype."""
    return of_runner("plain", dtype, _runner(encoder, "plain", dtype))


def _padded(encoder: ModernBertModel, dtype: str, side: Padding) -> Candidate:
    """Go through the door for padded tensors, and take the real tokens' results out of what comes back."""
    device = encoder.final_norm.weight.device

    @torch.inference_mode()
    def run(sequences: list[list[int]]) -> list[Tensor]:
        encoder.backend = "auto"
        longest = max(map(len, sequences))
        ids = torch.full((len(sequences), longest), encoder.config.pad_token_id)
        mask = torch.zeros_like(ids)
        places = [slice(len(it)) if side == "right" else slice(longest - len(it), None) for it in sequences]
        for row, (place, sequence) in enumerate(zip(places, sequences, strict=True)):
            ids[row, place], mask[row, place] = torch.tensor(sequence), 1
        packed, layout, back = padded_to_packed(ids.to(device), mask.to(device))
        with autocast(device, dtype):  # type: ignore[arg-type]  # one of `Precision`, as checked
            padded = packed_to_padded(encoder(packed, layout), back)
        return [padded[row, place].float() for row, place in enumerate(places)]

    return Candidate(name="padded", dtype=dtype, run=run, padding=side)


def _transformers(encoder: ModernBertModel) -> list[Candidate]:
    """Let transformers compute the same weights in fp32, one sequence at a time."""
    if importlib.util.find_spec("transformers") is None:
        return []
    import transformers

    if not hasattr(transformers, "ModernBertModel"):  # before 4.48
        return []
    config = transformers.ModernBertConfig(**to_published(encoder.config, "ModernBertModel"))
    config.reference_compile = False  # versions 4 would compile where they can
    theirs = transformers.ModernBertModel._from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation="sdpa"
    )
    theirs.load_state_dict(encoder.state_dict())
    theirs = theirs.eval().to(encoder.final_norm.weight.device)

    @torch.inference_mode()
    def run(sequences: list[list[int]]) -> list[Tensor]:
        rows = (torch.tensor([sequence], device=theirs.device) for sequence in sequences)
        return [theirs(row).last_hidden_state[0] for row in rows]

    return [Candidate(name="transformers", dtype="fp32", run=run, packs=False)]


def _onnx(encoder: ModernBertModel) -> Candidate:
    """Export the encoder, and let onnxruntime compute it on the CPU."""
    with tempfile.TemporaryDirectory(prefix="modernbert-verify-") as folder:
        export_onnx(encoder, folder)
        return of_runner("onnx", "fp32", OnnxRunner(folder))
