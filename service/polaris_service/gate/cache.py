"""A bounded cache of answers that are expensive to get, each asked for once at a time."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Answers(Generic[V]):
    """Remembers answers for some seconds. Errors are not remembered."""

    def __init__(
        self,
        size: int,
        seconds: Callable[[V], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size = size
        self._seconds = seconds
        self._clock = clock
        self._known: OrderedDict[Hashable, tuple[float, V]] = OrderedDict()
        self._asking: dict[Hashable, asyncio.Task[V]] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[V]]) -> V:
        """Return what is known of `key`, or ask; those who want the same at once share one asking."""
        known = self._known.get(key)
        if known is not None and self._clock() < known[0]:
            return known[1]
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(key, ask))
            asking.add_done_callback(lambda task: self._asked(key, task))
        # One who gives up does not take the answer from the others.
        return await asyncio.shield(asking)

    def _asked(self, key: Hashable, task: asyncio.Task[V]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # Looked at, also where everybody who asked has gone.

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[V]]) -> V:
        answer = await ask()
        self._known[key] = (self._clock() + self._seconds(answer), answer)
        self._known.move_to_end(key)
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return answer

    def forget(self) -> None:
        """Know nothing."""
        self._known.clear()

    def __len__(self) -> int:
        return len(self._known)
