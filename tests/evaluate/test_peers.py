"""The real peers, at toy size; skipped where they are not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modernbert.evaluate import peers
from modernbert.evaluate.contenders import find_ours, shared_checkpoint
from modernbert.evaluate.workloads import draw_document

CPU = torch.device("cpu")
LENGTHS = (5, 17, 64, 17)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["transformers", "sentence-transformers"])
def test_peers_compute_the_same_weights(library: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library.replace("-", "_"))
    documents = [draw_document(length, 384, np.random.default_rng(length)) for length in LENGTHS]
    with shared_checkpoint(folder) as checkpoint:
        found, missing = peers.find_peers(checkpoint, CPU, "fp32", compiled=False)
        (peer,) = [it for it in found if it.name == f"{library} sdpa"]
        assert any("without FlashAttention-4" in line for line in missing)
        seen = watch(monkeypatch)
        peer.load()(documents, 128, "variable")()
        theirs, counted = means(seen), len(seen)
        (ours,) = find_ours(checkpoint, CPU, "float32", ["portable"])
        ours.load()(documents, 128, "variable")()
        expected = means(seen[counted:])
    assert sorted(theirs) == pytest.approx(sorted(expected), abs=1e-4)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Keep the hidden states of each document that any model computes."""
    import transformers

    from modernbert.infer.runner import TorchRunner

    seen: list[torch.Tensor] = []
    theirs, ours = transformers.ModernBertModel.forward, TorchRunner.__call__

    def forward(self: Any, *given: Any, attention_mask: torch.Tensor, **named: Any) -> Any:
        output = theirs(self, *given, attention_mask=attention_mask, **named)
        hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
        seen.extend(row[mask.bool()] for row, mask in zip(hidden, attention_mask, strict=True))
        return output

    def run(self: Any, sequences: Any, positions: Any = None) -> Any:
        hidden, layout = ours(self, sequences, positions)
        seen.extend(layout.split(hidden))
        return hidden, layout

    monkeypatch.setattr(transformers.ModernBertModel, "forward", forward)
    monkeypatch.setattr(TorchRunner, "__call__", run)
    return seen


def means(seen: list[torch.Tensor]) -> list[float]:
    """Of real documents: loading may try a model on a token."""
    return [hidden.square().mean().item() + len(hidden) for hidden in seen if len(hidden) > 1]


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_peer(folder: Path) -> None:
    pytest.importorskip("transformers")
    documents = [draw_document(16, 384, np.random.default_rng(0))] * 2
    with shared_checkpoint(folder) as checkpoint, peers.room_to_compile(True):
        found, _ = peers.find_peers(checkpoint, CPU, "fp32", compiled=True)
        (peer,) = [it for it in found if it.name == "transformers sdpa compiled"]
        assert peer.is_compiled
        peer.load()(documents, 32, "fixed")()


def test_flash_attention_is_for_gpus() -> None:
    refusal = peers._flash_refusal(CPU, "bf16")
    assert refusal == "it computes in bf16 or fp16 on CUDA, not in bf16 on cpu"
