"""Who stays at one thing for too long is named, with what all others do."""

from __future__ import annotations

import json
import time

import pytest
import torch.distributed as dist

from modernbert.train.ranks import ALONE, Ranks
from modernbert.train.watch import EXIT_CODE, Watch, _named

SECONDS = 0.2


def wait_for(ended: list[int], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def sign(what: str, age: float = 0.0) -> str:
    return json.dumps({"what": what, "at": time.time() - age})


def test_the_odd_one_is_named_first_and_the_process_ends(caplog: pytest.LogCaptureFixture) -> None:
    store, ended = dist.HashStore(), list[int]()
    for rank in (0, 1, 3):
        store.set(f"watch/{rank}", sign("takes step 7", age=-60.0))
    store.set("watch/4", sign("takes step 7", age=60.0))
    ranks = Ranks(rank=2, size=6, store=store)
    with Watch(ranks, SECONDS, end=ended.append) as watch:
        watch.enter("waits for the data after step 6")
        wait_for(ended)
    assert ended == [EXIT_CODE]
    (message,) = said(caplog)
    assert message.startswith("no progress for 0 s: rank ")
    assert "rank 2: waits for the data after step 6" in message
    assert "rank 4: has given no sign for 60 s, when it said `takes step 7`" in message
    assert "rank 5: has given no sign" in message
    assert message.endswith("; ranks 0-1, 3: takes step 7")


def test_alone_it_is_said_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with Watch(ALONE, SECONDS, end=pytest.fail) as watch:
        watch.enter("waits for its first data")
        time.sleep(3 * SECONDS)
    assert said(caplog) == ["no progress for 0 s: the run waits for its first data"]


def test_who_goes_on_is_left_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    store = dist.HashStore()
    with Watch(Ranks(rank=0, size=2, store=store), SECONDS, end=pytest.fail) as watch:
        for step in range(12):
            watch.enter(f"takes step {step}")
            time.sleep(SECONDS / 4)
    assert said(caplog) == []
    assert json.loads(store.get("watch/0"))["what"].startswith("takes step ")


def test_ranks_are_written_short() -> None:
    assert _named([3]) == "rank 3"
    assert _named([5, 0, 1, 2]) == "ranks 0-2, 5"
    assert _named([4, 5]) == "ranks 4-5"
