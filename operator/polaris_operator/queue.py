"""A work queue of keys: what has to be looked at, and when.

A key is in it once, however often it is added. One worker has a key at a time; added meanwhile, it is
looked at once more afterwards. A look that fails is tried again after a delay that doubles, with
jitter, so that a thousand objects do not come back in the same second.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 60.0


def delay(failures: int, jitter: float, longest: float = LONGEST_DELAY_SECONDS) -> float:
    """Return the seconds to wait after so many failures in a row; `jitter` is in [0, 1)."""
    whole = min(FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16), longest)
    return whole * (0.5 + jitter / 2)


class Queue(Generic[K]):
    """Keys with times; safe for any number of threads."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._changed = threading.Condition()
        self._order = itertools.count()
        self._heap: list[tuple[float, int, K]] = []
        self._due: dict[K, tuple[float, int]] = {}
        """The earliest time of each key that waits; entries of the heap that differ are stale."""
        self._running: dict[K, float | None] = {}
        """Keys that a worker has, and when to look again because somebody added them meanwhile."""
        self._failures: dict[K, int] = {}
        self._closed = False

    def add(self, key: K) -> None:
        """Look at the key as soon as a worker is free."""
        self.add_after(key, 0)

    def add_after(self, key: K, seconds: float) -> None:
        """Look at the key in so many seconds, unless it is looked at earlier anyway."""
        with self._changed:
            at = self._clock() + seconds
            if key in self._running:
                known = self._running[key]
                self._running[key] = at if known is None else min(known, at)
            else:
                self._put(key, at)

    def take(self, timeout: float | None = None) -> K | None:
        """Return a key that is due and is now the caller's; None once closed or out of time."""
        until = None if timeout is None else self._clock() + timeout
        with self._changed:
            while not self._closed:
                wait = self._next_due()
                if wait is not None and wait <= 0:
                    key = heapq.heappop(self._heap)[2]
                    del self._due[key]
                    self._running[key] = None
                    return key
                left = None if until is None else until - self._clock()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(min((x for x in (wait, left) if x is not None), default=None))
            return None

    def done(self, key: K, again_after: float | None = None) -> None:
        """Give a key back that was looked at; `again_after` is when it is due by itself."""
        with self._changed:
            self._failures.pop(key, None)
            self._give_back(key, None if again_after is None else self._clock() + again_after)

    def failed(self, key: K, longest: float = LONGEST_DELAY_SECONDS) -> None:
        """Give a key back whose look failed; it comes back after a while, at the latest after `longest`."""
        with self._changed:
            self._failures[key] = self._failures.get(key, 0) + 1
            at = self._clock() + delay(self._failures[key], self._jitter(), longest)
            self._give_back(key, at)

    def close(self) -> None:
        """Wake all workers; nothing is handed out any more, and nothing waits."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._changed.notify_all()

    def __len__(self) -> int:
        """Keys that wait, due or not."""
        with self._changed:
            return len(self._due)

    @property
    def failing(self) -> int:
        """Keys whose last look failed."""
        with self._changed:
            return 0 if self._closed else len(self._failures)

    def due(self) -> int:
        """Keys that a free worker would take now."""
        with self._changed:
            now = self._clock()
            return sum(at <= now for at, _ in self._due.values())

    def _put(self, key: K, at: float) -> None:
        if self._closed or (key in self._due and self._due[key][0] <= at):
            return
        entry = (at, next(self._order))
        self._due[key] = entry
        heapq.heappush(self._heap, (*entry, key))
        self._changed.notify()

    def _give_back(self, key: K, at: float | None) -> None:
        asked = self._running.pop(key)
        times = [moment for moment in (asked, at) if moment is not None]
        if times:
            self._put(key, min(times))

    def _next_due(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] - self._clock() if self._heap else None
