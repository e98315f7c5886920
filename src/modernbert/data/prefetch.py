"""Work ahead: what an iterator yields next is made in a thread while the consumer uses the last."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

from modernbert.errors import ConfigError

Item = TypeVar("Item")

_END = object()


def prefetch(iterable: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """Iterate in one background thread, at most `depth` items ahead.

    The order is kept; an exception is raised where its item would have come. Closing the
    returned generator, or dropping it, ends the thread after the item it is at.

    Raises:
        ConfigError: `depth` is below 1.
    """
    if depth < 1:
        raise ConfigError(f"`depth` is {depth}; it must be at least 1 item ahead")
    return _iterate(iter(iterable), depth)


def _iterate(iterator: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        ahead: deque[Future[object]] = deque(pool.submit(next, iterator, _END) for _ in range(depth))
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(pool.submit(next, iterator, _END))
            yield cast(Item, item)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
