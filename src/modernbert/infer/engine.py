"""The engine: any number of inputs through one model, in batches of tokens, results in order."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from modernbert.data.prefetch import prefetch
from modernbert.errors import BackendError
from modernbert.infer.task import Input, Output, Prepared, Result, Task

log = logging.getLogger(__name__)

# Inputs are tokenised, sorted and batched by windows: the first is small, so that the first result comes
# soon; later ones are large enough for batches of like lengths, and small enough to be held in memory.
FIRST_WINDOW = 64
LARGEST_WINDOW = 4_096
BATCHES_A_WINDOW = 16
WINDOW_TOKENS = 262_144


class Engine:
    """Runs tasks over inputs.

    Args:
        batch_tokens: Tokens that share a forward pass; a longer sequence goes alone.
        deterministic: Give every sequence a forward pass of its own. A result then has the same bits whatever
            else is in the input; short texts, which no longer share their passes, are slower.
    """

    def __init__(self, batch_tokens: int, *, deterministic: bool = False) -> None:
        self.batch_tokens = batch_tokens
        self.deterministic = deterministic

    def run(self, task: Task[Input, Output, Result], inputs: Iterable[Input]) -> Iterator[Result]:
        """Yield the result of each input, in order.

        While a window of inputs is computed, the next is tokenised in a background thread.

        Raises:
            InputError: An input that cannot be served; it comes before the results of its window.
        """
        windows = _prepared(task, inputs, min(BATCHES_A_WINDOW * self.batch_tokens, WINDOW_TOKENS))
        for window in prefetch(windows, depth=1):
            yield from self._window(task, window)

    def _window(self, task: Task[Any, Output, Result], window: list[Prepared]) -> Iterator[Result]:
        sequences = [sequence for prepared in window for sequence in prepared.sequences]
        outputs = iter(self._outputs(task, sequences))
        for prepared in window:
            yield task.finish(prepared, list(itertools.islice(outputs, len(prepared.sequences))))

    def _outputs(self, task: Task[Any, Output, Any], sequences: list[list[int]]) -> list[Output]:
        """Compute all sequences, longest first, and return their outputs in the order given."""
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        computed: dict[int, Output] = {}
        for batch in self._batches(order, sequences):
            outputs = self._compute(task, [sequences[index] for index in batch])
            computed.update(zip(batch, outputs, strict=True))
        return [computed[index] for index in range(len(sequences))]

    def _batches(self, order: list[int], sequences: list[list[int]]) -> list[list[int]]:
        """Cut `order` into as few batches as hold it, no larger than that number needs.

        So all batches of a window are of about one size, which suits a CPU: see `fused._with_filler`.
        """
        if self.deterministic:
            return [[index] for index in order]
        sizes = [len(sequences[index]) for index in order]
        most = self.batch_tokens
        fewest = len(cut(sizes, most))
        smallest = bisect.bisect_left(range(most), -fewest, key=lambda tokens: -len(cut(sizes, tokens)))
        rest = iter(order)
        return [list(itertools.islice(rest, count)) for count in cut(sizes, smallest)]

    def _compute(self, task: Task[Any, Output, Any], batch: list[list[int]]) -> list[Output]:
        """Compute a batch; one that the device's memory cannot hold, in halves from now on."""
        try:
            return task.compute(batch)
        except torch.OutOfMemoryError as error:
            tokens = sum(map(len, batch))
            if len(batch) == 1:
                raise BackendError(
                    f"the device's memory cannot hold a sequence of {tokens} tokens; it must be shorter, or "
                    "the device larger; lower `max_length`, or free memory"
                ) from error
        torch.cuda.empty_cache()
        self.batch_tokens = min(self.batch_tokens, tokens // 2)
        log.warning("no memory for %d tokens at once; going on with %d", tokens, self.batch_tokens)
        middle = len(batch) // 2
        return [*self._compute(task, batch[:middle]), *self._compute(task, batch[middle:])]


def cut(sizes: list[int], most: int) -> list[int]:
    """Return how many of `sizes` go into each batch of at most `most`; one that is larger goes alone."""
    counts: list[int] = []
    filled = 0
    for size in sizes:
        if counts and filled + size <= most:
            counts[-1] += 1
            filled += size
        else:
            counts.append(1)
            filled = size
    return counts


def _prepared(
    task: Task[Input, Any, Any], inputs: Iterable[Input], most_tokens: int
) -> Iterator[list[Prepared]]:
    """Tokenise inputs by windows that grow, up to about `most_tokens` tokens as long as inputs stay alike."""
    iterator, size, first = iter(inputs), FIRST_WINDOW, 0
    while window := list(itertools.islice(iterator, size)):
        prepared = task.prepare(window, first)
        yield prepared
        first += len(window)
        tokens = sum(len(sequence) for one in prepared for sequence in one.sequences)
        size = max(1, min(2 * size, LARGEST_WINDOW, most_tokens * len(window) // max(tokens, 1)))
