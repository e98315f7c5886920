"""Small batches as CUDA graphs: one launch for all kernels, over few sizes, so that few graphs serve all.

A batch is laid into the next larger size. Tokens left over see themselves alone, sequences left over have no
tokens, and what is computed for them nobody reads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modernbert.infer.gpu.tiles import FEW_TOKENS
from modernbert.layout import SequenceLayout

MOST_GRAPHS = 64
FEWEST_TOKENS, STEPS_TO_DOUBLE = 32, 4
SEQUENCES_FACTOR = 8


class Size(NamedTuple):
    """What a graph has room for."""

    num_tokens: int
    num_sequences: int


@dataclass(frozen=True)
class _Graph:
    """A captured forward pass, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    input_ids: Tensor
    offsets: Tensor
    output: Tensor


class _Room(SequenceLayout):
    """A layout of a `Size` instead of lengths; its `offsets` are filled in before each replay."""

    @classmethod
    def of_size(cls, size: Size, device: torch.device) -> _Room:
        room = cls((size.num_tokens,), device)
        # Where a cached property keeps what it has found; the passes read nothing else of a small batch. At
        # first no sequence has tokens: the size may be longer than any sequence that the model takes.
        room.__dict__["offsets"] = torch.zeros(size.num_sequences + 1, dtype=torch.int32, device=device)
        return room


class Graphs:
    """Captures a forward pass once for each size, and replays it.

    Args:
        forward: From ids and a layout to hidden states.
        device: A CUDA device.
    """

    def __init__(self, forward: Callable[[Tensor, SequenceLayout], Tensor], device: torch.device) -> None:
        self._forward = forward
        self._device = device
        self._graphs: OrderedDict[Size, _Graph] = OrderedDict()
        self._pool: Any = None
        self._lock = threading.Lock()  # all graphs share memory

    def serve(self, layout: SequenceLayout) -> bool:
        """Whether a batch is small enough."""
        return layout.num_tokens <= FEW_TOKENS and not torch.cuda.is_current_stream_capturing()

    def run(self, input_ids: Tensor, layout: SequenceLayout) -> Tensor:
        """Compute what `forward` would."""
        size = size_for(layout)
        with self._lock:
            graph = self._graphs.pop(size, None) or self._captured(size)
            self._graphs[size] = graph  # the latest last
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
            spare = size.num_sequences - layout.num_sequences
            starts = torch.tensor((*layout.starts, *(layout.num_tokens,) * spare), dtype=torch.int32)
            # Not from pinned memory: it is copied aside before this returns, and may go.
            graph.offsets.copy_(starts, non_blocking=True)
            graph.input_ids[: layout.num_tokens].copy_(input_ids, non_blocking=True)
            graph.graph.replay()
            return graph.output[: layout.num_tokens].clone()

    def _captured(self, size: Size) -> _Graph:
        ids = torch.zeros(size.num_tokens, dtype=torch.int64, device=self._device)
        layout = _Room.of_size(size, self._device)
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._forward(ids, layout)  # compiles what is to be compiled, which a capture must not
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._forward(ids, layout)
        self._pool = graph.pool()
        return _Graph(graph, ids, layout.offsets, output)


def size_for(layout: SequenceLayout) -> Size:
    """Return the smallest size that a batch fits into."""
    num_tokens = rounded_up(layout.num_tokens)
    num_sequences = 1
    while num_sequences < layout.num_sequences:
        num_sequences *= SEQUENCES_FACTOR
    return Size(num_tokens, num_sequences)


def rounded_up(num_tokens: int) -> int:
    """Round up to a number of few binary digits, so that each doubling has `STEPS_TO_DOUBLE` of them."""
    step = max(FEWEST_TOKENS, (1 << (num_tokens - 1).bit_length()) // (2 * STEPS_TO_DOUBLE))
    return -(-num_tokens // step) * step
