"""Who holds up a run: each rank says what it does, and one that takes too long is named."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from modernbert.train.ranks import Ranks

log = logging.getLogger(__name__)

EXIT_CODE = 3
"""With which a process of several ends, so that the launcher starts the group anew."""

_SECONDS_BETWEEN_SIGNS = 10.0


class Watch:
    """Watches, from a thread, that this process does not stay at one thing for too long.

    If it does, the log says what each rank does. A process of several then ends, whatever
    it hangs in, and the launcher starts the group anew; one that is alone goes on waiting.

    Args:
        ranks: The processes of the run.
        timeout_seconds: How long one thing may take.
        end: Ends the process; another one in tests.
    """

    def __init__(
        self, ranks: Ranks, timeout_seconds: float, *, end: Callable[[int], object] = os._exit
    ) -> None:
        self._ranks = ranks
        self._timeout = timeout_seconds
        self._end = end
        self._interval = min(_SECONDS_BETWEEN_SIGNS, timeout_seconds / 8)
        self.enter("begins")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self.enter("begins")  # what took long before it was watched does not count
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def enter(self, what: str) -> None:
        """Say what this process does from now on, such as `takes step 7`."""
        self._doing = (what, time.monotonic())

    def _run(self) -> None:
        told = None
        while not self._stopped.wait(self._interval):
            what, since = doing = self._doing
            if self._ranks.store is not None:
                sign = {"what": what, "at": time.time()}
                self._ranks.store.set(f"watch/{self._ranks.rank}", json.dumps(sign))
            if time.monotonic() - since > self._timeout and doing != told:
                told = doing
                log.error("no progress for %.0f s: %s", self._timeout, self._all(what))
                if self._ranks.size > 1:
                    self._end(EXIT_CODE)

    def _all(self, what: str) -> str:
        """Say what each rank does; the few that differ from the many first."""
        store = self._ranks.store
        if store is None:
            return f"the run {what}"
        doings: dict[str, list[int]] = {}
        for rank in range(self._ranks.size):
            key = f"watch/{rank}"
            sign = json.loads(store.get(key)) if store.check([key]) else None
            doings.setdefault(self._doing_of(sign), []).append(rank)
        rarest_first = sorted(doings.items(), key=lambda item: len(item[1]))
        return "; ".join(f"{_named(ranks)}: {doing}" for doing, ranks in rarest_first)

    def _doing_of(self, sign: dict[str, object] | None) -> str:
        if sign is None:
            return "has given no sign"
        silent = time.time() - float(str(sign["at"]))
        if silent > max(3 * self._interval, self._timeout / 2):
            return f"has given no sign for {silent:.0f} s, when it said `{sign['what']}`"
        return str(sign["what"])


def _named(ranks: Iterable[int]) -> str:
    names = list(_runs(sorted(ranks)))
    return f"rank{'s' if len(names) > 1 or '-' in names[0] else ''} {', '.join(names)}"


def _runs(ranks: list[int]) -> Iterator[str]:
    """Write ascending numbers as `0-2`, `5`."""
    start = 0
    for place in range(1, len(ranks) + 1):
        if place == len(ranks) or ranks[place] != ranks[place - 1] + 1:
            first, last = ranks[start], ranks[place - 1]
            yield str(first) if first == last else f"{first}-{last}"
            start = place
