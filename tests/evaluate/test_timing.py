from __future__ import annotations

import pytest
import torch

from modernbert.errors import BackendError
from modernbert.evaluate import timing
from modernbert.evaluate.contenders import Run

CPU = torch.device("cpu")


def test_runs_take_turns_and_who_fails_leaves() -> None:
    seen: list[str] = []

    def run(name: str, lasts: int) -> Run:
        def run() -> None:
            seen.append(name)
            if seen.count(name) > lasts:
                raise ValueError("no more\nof this")

        return run

    turns: list[str] = []
    seconds, failures = timing.time_rivals(
        {"a": run("a", 99), "b": run("b", 3)}, 3, CPU, in_a_row=2, on_turn=turns.append
    )
    assert "".join(seen) == "aabbaabbaa"
    assert "".join(turns) == "ababab"
    assert {name: len(measured) for name, measured in seconds.items()} == {"a": 6}
    assert failures == {"b": "ValueError: no more"}


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (torch.OutOfMemoryError("tried to allocate"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (BackendError("it cannot; choose another"), "it cannot; choose another"),
        (KeyError(), "KeyError: "),
        (ImportError("x" * 500), f"ImportError: {'x' * 187}"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_why_a_contender_failed_is_one_line(error: Exception, why: str) -> None:
    def fail(raised: Exception) -> None:
        raise raised

    assert timing.attempt(fail, error) == (None, why)
    assert timing.attempt(max, 1, 2) == (2, None)


def test_a_product_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.PRODUCT_SIZES, "cpu", 64)
    rates = timing.product_rate(CPU, torch.float32)
    assert len(rates) == timing.PRODUCT_RUNS
    assert all(rate > 0 for rate in rates)


def test_percentiles() -> None:
    seconds = [float(number) for number in range(1, 102)]
    assert timing.percentile(seconds, 0.5) == 51
    assert timing.percentile(seconds, 0.9) == 91
    assert timing.percentile([3.0], 0.9) == 3


class Memory:
    """A GPU that has room for so many bytes, of which a document takes some and a run some more."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, free: int, each: int, always: int, lie: int = 0
    ) -> None:
        self.free, self.each, self.always, self.peak = free, each, always, 0
        self.tried: list[int] = []
        monkeypatch.setattr(timing, "free_memory", lambda: None)
        for name in ("reset_peak_memory_stats", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, lambda *device: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free + lie, free + lie))

    def prepare(self, count: int) -> Run:
        def run() -> None:
            self.tried.append(count)
            self.peak = self.always + count * self.each
            if self.peak > self.free:
                raise torch.OutOfMemoryError("no")

        return run


def test_the_largest_batch_follows_from_two_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    memory = Memory(monkeypatch, free=100_000, each=100, always=5_000)
    assert timing.largest_batch(memory.prepare, 512, 8192, gpu) == 950
    assert memory.tried == [1, 16, 64, 950, 997]  # the last, in vain, to see that no more fit
    assert timing.largest_batch(memory.prepare, 512, 500, gpu) == 500
    fragmented = Memory(monkeypatch, free=100_000, each=100, always=5_000, lie=5_000)
    assert timing.largest_batch(fragmented.prepare, 8192, 8192, gpu) == 950
    assert fragmented.tried == [1, 1, 4, 1000, 950]
    small = Memory(monkeypatch, free=450, each=100, always=10)
    assert timing.largest_batch(small.prepare, 8192, 8192, gpu) == 4
    with pytest.raises(torch.OutOfMemoryError):
        timing.largest_batch(small.prepare, 512, 8192, gpu)


@pytest.mark.parametrize("lie", [-90_000, -50_000, 0, 50_000, 900_000])
def test_the_largest_batch_is_found_where_the_small_ones_mislead(
    lie: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(monkeypatch, free=100_000, each=100, always=5_000, lie=lie)
    found = timing.largest_batch(memory.prepare, 512, 8192, torch.device("cuda"))
    assert 950 / 1.05 - 1 <= found <= 950
    assert len(memory.tried) <= 3 + 14
