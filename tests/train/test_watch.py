"""Who stays at one thing for too long is named, with what all others do."""

from __future__ import annotations

import json
import time

import pytest
import torch.distributed as dist

from modernbert.train import watch
from modernbert.train.ranks import ALONE, Ranks
from modernbert.train.watch import EXIT_CODE, Watch, _named

SECONDS = 0.2


class Clock:
    """The watch's own time, which goes on only when a test says so, and how often it was looked at."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now

    time = monotonic

    def wait(self, looks: int = 6) -> None:
        """Until the watch has looked at it some more."""
        enough = self.looks + looks
        deadline = time.monotonic() + 60
        while self.looks < enough and time.monotonic() < deadline:
            time.sleep(0.001)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_odd_one_is_named_first_and_the_process_ends(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store, ended = dist.HashStore(), list[int]()
    for rank in (0, 1, 3):
        store.set(f"watch/{rank}", json.dumps({"what": "takes step 7", "at": SECONDS}))
    store.set("watch/4", json.dumps({"what": "takes step 7", "at": -60.0}))
    ranks = Ranks(rank=2, size=6, store=store)
    with Watch(ranks, SECONDS, end=ended.append) as it:
        it.enter("waits for the data after step 6")
        clock.now += 1.01 * SECONDS
        clock.wait(20)
    assert ended == [EXIT_CODE]
    (message,) = said(caplog)
    assert message.startswith("no progress for 0 s: rank ")
    assert "rank 2: waits for the data after step 6" in message
    assert "rank 4: has given no sign for 60 s, when it said `takes step 7`" in message
    assert "rank 5: has given no sign" in message
    assert message.endswith("; ranks 0-1, 3: takes step 7")


def test_alone_it_is_said_once_and_goes_on(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with Watch(ALONE, SECONDS, end=pytest.fail) as it:
        it.enter("waits for its first data")
        for _ in range(3):
            clock.now += 2 * SECONDS
            clock.wait()
    assert said(caplog) == ["no progress for 0 s: the run waits for its first data"]


def test_who_goes_on_is_left_in_peace(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    store = dist.HashStore()
    with Watch(Ranks(rank=0, size=2, store=store), SECONDS, end=pytest.fail) as it:
        for step in range(8):
            it.enter(f"takes step {step}")
            clock.now += 0.9 * SECONDS
            clock.wait()
    assert said(caplog) == []
    assert json.loads(store.get("watch/0"))["what"] == "takes step 7"


def test_ranks_are_written_short() -> None:
    assert _named([3]) == "rank 3"
    assert _named([5, 0, 1, 2]) == "ranks 0-2, 5"
    assert _named([4, 5]) == "ranks 4-5"
