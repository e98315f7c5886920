"""Clock and memory: runs timed in turn, a matrix product to measure them by, the largest batch that fits."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

from modernbert.errors import ModernBertError
from modernbert.evaluate.contenders import Run
from modernbert.runtime import timed

Key = TypeVar("Key", bound=Hashable)

PRODUCT_SIZES = {"cuda": 8192, "mps": 4096, "cpu": 2048}
PRODUCT_RUNS = 5
FEW_TOKENS, MORE_TOKENS = 8192, 32_768
"""In the batches whose memory tells that of others; of documents longer than that, one and two."""
CLOSE = 0.05
"""The largest batch that fits, and the smallest seen not to, differ by so much at most."""
MOST_CHARACTERS = 200
OUT_OF_MEMORY = "out of memory"


def attempt(action: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    """Return what an action returns, or why it failed: whatever a contender raises is a result too."""
    try:
        return action(*arguments), None
    except Exception as error:  # noqa: BLE001 - a peer may raise anything, and the others go on
        why = explain(error)
    free_memory()
    return None, why


def explain(error: Exception) -> str:
    """Say in one line why a contender failed."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, ModernBertError):
        return first
    return f"{type(error).__name__}: {first}"[:MOST_CHARACTERS]


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was too small; on a CPU torch says so with no type of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def time_rivals(
    runs: Mapping[Key, Run],
    turns: int,
    device: torch.device,
    *,
    in_a_row: int = 1,
    on_turn: Callable[[Key], None] = lambda key: None,
) -> tuple[dict[Key, list[float]], dict[Key, str]]:
    """Time several ways of doing the same work, as `runtime.time_in_turn`; one that fails has no more turns.

    Args:
        runs: What is timed; each is warm.
        turns: How often it is each one's turn.
        device: Which does the work.
        in_a_row: Runs of a turn, each timed by itself.
        on_turn: Called after each turn.

    Returns:
        Seconds of every run; and of those that failed, which have none, why.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    failures: dict[Key, str] = {}
    for _ in range(turns):
        for key, run in runs.items():
            for _ in range(0 if key in failures else in_a_row):
                measured, why = attempt(timed, run, device)
                if why is not None:
                    failures[key] = why
                    del seconds[key]
                    break
                seconds[key].append(measured)
            on_turn(key)
    return seconds, failures


def product_rate(device: torch.device, dtype: torch.dtype) -> list[float]:
    """Measure a square matrix product; return operations a second of several."""
    size = PRODUCT_SIZES[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    for _ in range(2):
        torch.mm(a, b, out=out)
    seconds = [timed(lambda: torch.mm(a, b, out=out), device) for _ in range(PRODUCT_RUNS)]
    return [2 * size**3 / second for second in seconds]


def largest_batch(prepare: Callable[[int], Run], length: int, most: int, device: torch.device) -> int:
    """Find how many documents of a length the GPU's free memory holds at once, proven by a run.

    If memory grows by the same amount with each document, two small batches tell how many fit. That many are
    run; then more or fewer, in steps that grow, until the border is known.

    Args:
        prepare: From a number of documents to a run of them in one batch.
        length: Tokens of a document.
        most: Documents beyond which nothing is tried.
        device: The GPU, with no other contender on it.

    Raises:
        torch.OutOfMemoryError: Not even the small batches fit, of 32,768 tokens.
    """
    few, more = max(1, FEW_TOKENS // length), max(2, MORE_TOKENS // length)
    timed(prepare(1), device)  # what the first run takes and keeps, whatever its size
    little, much = (_peak(prepare(count), device) for count in (few, more))
    each = max((much - little) / (more - few), 1.0)
    free_memory()
    free, _ = torch.cuda.mem_get_info(device)
    fits, fails, step = more, most + 1, CLOSE
    count = min(most, max(int((free - (little - few * each)) / each), more + 1))
    while fails - fits > max(1, CLOSE * fails):
        if _fits(prepare(count), device):
            fits = count
        else:
            fails = count
        if fails > most:
            count = min(most, max(fits + 1, int(fits * (1 + step))))
        elif fits == more:
            count = max(more + 1, int(fails * (1 - step)))
        else:
            count = (fits + fails) // 2
        step *= 2
    return fits


def free_memory() -> None:
    """Give back what nobody holds, also what an error and its frames hold of each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _fits(run: Run, device: torch.device) -> bool:
    try:
        timed(run, device)
    except torch.OutOfMemoryError:
        is_fitting = False
    else:
        is_fitting = True
    free_memory()
    return is_fitting


def _peak(run: Run, device: torch.device) -> int:
    """Return the bytes that a run takes at most, beyond what is in use before it."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    timed(run, device)
    return torch.cuda.max_memory_allocated(device) - before


def percentile(seconds: list[float], share: float) -> float:
    """Return the value below which this share of the seconds lies."""
    if len(seconds) == 1:
        return seconds[0]
    return statistics.quantiles(seconds, n=100, method="inclusive")[round(100 * share) - 1]
