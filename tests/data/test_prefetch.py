from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from modernbert.data import prefetch as module
from modernbert.data.prefetch import prefetch
from modernbert.errors import ConfigError, InputError


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("depth", [1, 2, 100])
def test_yields_all_in_order(depth: int) -> None:
    assert list(prefetch(range(50), depth)) == list(range(50))
    assert list(prefetch([], depth)) == []


def test_works_in_one_other_thread() -> None:
    threads = set(prefetch(threading.get_ident() for _ in range(20)))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_raises_where_the_item_would_have_come() -> None:
    def faulty() -> Iterator[int]:
        yield 1
        yield 2
        raise InputError("item 3 is bad")

    items = prefetch(faulty(), depth=5)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(InputError, match="item 3 is bad"):
        next(items)


def test_works_ahead_but_not_beyond_its_depth() -> None:
    made: list[int] = []
    items = prefetch((made.append(number) or number for number in range(100)), depth=3)
    assert next(items) == 0
    until = time.monotonic() + 60
    while len(made) < 4 and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(made) == 4  # the one taken and three ahead
    items.close()


def test_closing_ends_the_thread_and_drops_what_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    started, release = threading.Event(), threading.Event()
    made: list[int] = []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            release.set()  # the item that it is at ends while it is being closed
            super().shutdown(wait=wait)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)

    def slow() -> Iterator[int]:
        for number in range(100):
            if number:
                started.set()
                assert release.wait(60)
            made.append(number)
            yield number

    items = prefetch(slow(), depth=10)
    assert next(items) == 0
    assert started.wait(60)
    items.close()
    assert made == [0, 1]


def test_a_consumer_may_leave_at_once() -> None:
    prefetch(range(10))
    for item in prefetch(range(10)):
        if item == 2:
            break


def test_refuses_to_be_no_step_ahead() -> None:
    with pytest.raises(ConfigError, match="`depth` is 0; it must be at least 1"):
        prefetch([1], depth=0)
