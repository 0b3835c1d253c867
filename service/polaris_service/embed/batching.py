"""Who is embedded next, and together with whom: the queue before the local model.

Texts of all calls at once become batches of similar length, so that short ones share the cost of a
run and nobody pays for padding. Two rules keep a question from waiting behind a bulk load:

- **Fair order.** A text is due at the arrival of its call, plus the time that what comes before it in
  the same call would take a slow model. Who asks for little is due soon, and nobody waits for ever.
- **An express lane.** Short calls may use one lane more than there are cores. A batch in a common lane
  takes up to 0.2 s and cannot be interrupted; beside it a question takes half as long again as alone.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from polaris.errors import EmbedderUnavailable
from polaris_service.embed.engine import Tokens
from polaris_service.embed.provider import Vectors

BATCH_TOKENS = 512
"""Tokens of a batch, padding included. More is no faster, and takes longer and more memory."""
SHORT_TOKENS = 64
"""Tokens of a call that may use the express lane: a question, not a passage."""
MAX_WAITING_TOKENS = 200_000
"""With more than this waiting (a minute or so on 2 cores), further calls are turned away."""
_SLOW_TOKENS_PER_SECOND = 1000
# A batch whose rows are mostly padding would be slower than two batches.
_LEAST_FILLED = 0.7

Run = Callable[[Sequence[Tokens]], Vectors]


@dataclass(eq=False)
class _Call:
    """One call of `Batcher.embed`, until its last text is done."""

    vectors: Vectors
    missing: int
    done: asyncio.Future[Vectors]

    @property
    def over(self) -> bool:
        """True where nobody waits any more: cancelled, or failed with another of its texts."""
        return self.done.done()

    def put(self, place: int, vector: Vectors) -> None:
        self.vectors[place] = vector
        self.missing -= 1
        if not self.missing and not self.over:
            self.done.set_result(self.vectors)

    def fail(self, error: BaseException) -> None:
        if not self.over:
            self.done.set_exception(error)


@dataclass(order=True)
class _Text:
    """One text that waits; the heap's order is that of its first two fields."""

    due: float
    number: int
    tokens: Tokens = field(compare=False)
    place: int = field(compare=False)
    call: _Call = field(compare=False)


class Batcher:
    """The queue. For one event loop at a time."""

    def __init__(self, run: Run, dimension: int, lanes: int) -> None:
        """`run` turns rows of tokens into vectors, on several threads at once; `lanes` is of cores."""
        self._run = run
        self._dimension = dimension
        self._free = lanes
        self._express_free = True
        self._threads = ThreadPoolExecutor(lanes + 1, thread_name_prefix="embed")
        self._short: list[_Text] = []
        self._long: list[_Text] = []
        self._numbers = itertools.count()
        self._running: set[asyncio.Future[Vectors]] = set()
        self._closed = False
        self.waiting_tokens = 0

    async def embed(self, rows: Sequence[Tokens]) -> Vectors:
        """Return one vector a row, in order. Raises EmbedderUnavailable when too much waits already."""
        if self._closed:
            raise _closing()
        if self.waiting_tokens > MAX_WAITING_TOKENS:
            raise EmbedderUnavailable(
                f"{self.waiting_tokens:,} tokens wait to be embedded, the limit is {MAX_WAITING_TOKENS:,}",
                retry_after=10,
            )
        vectors = np.empty((len(rows), self._dimension), np.float32)
        if not len(rows):
            return vectors
        call = _Call(vectors, len(rows), asyncio.get_running_loop().create_future())
        self._put(call, rows)
        self._start()
        return await call.done

    async def close(self) -> None:
        """Fail what waits; return when what runs is done."""
        self._closed = True
        for text in (*self._short, *self._long):
            text.call.fail(_closing())
        self._short.clear()
        self._long.clear()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._threads.shutdown(wait=False)

    def _put(self, call: _Call, rows: Sequence[Tokens]) -> None:
        due = time.monotonic()
        # By length, so that neighbours in the queue share a batch without padding.
        sized = sorted(enumerate(rows), key=lambda pair: len(pair[1]))
        short = sum(map(_size, rows)) <= SHORT_TOKENS
        for place, tokens in sized:
            text = _Text(due, next(self._numbers), tokens, place, call)
            heapq.heappush(self._short if short else self._long, text)
            due += _size(tokens) / _SLOW_TOKENS_PER_SECOND
            self.waiting_tokens += _size(tokens)

    def _start(self) -> None:
        """Fill the lanes that are free."""
        while self._free and (self._short or self._long):
            if batch := self._take(self._soonest()):
                self._free -= 1
                self._begin(batch, self._common_done)
        if self._express_free and (batch := self._take(self._short)):
            self._express_free = False
            self._begin(batch, self._express_done)

    def _soonest(self) -> list[_Text]:
        """Return the queue whose head is due first."""
        if self._short and (not self._long or self._short[0] < self._long[0]):
            return self._short
        return self._long

    def _take(self, queue: list[_Text]) -> list[_Text]:
        """Take the batch at the head of a queue; [] where nobody waits for any of it any more."""
        batch: list[_Text] = []
        longest = total = 0
        while queue:
            size = _size(queue[0].tokens)
            padded = (len(batch) + 1) * max(longest, size)
            if batch and (padded > BATCH_TOKENS or total + size < padded * _LEAST_FILLED):
                break
            text = heapq.heappop(queue)
            self.waiting_tokens -= size
            if text.call.over:
                continue
            batch.append(text)
            longest, total = max(longest, size), total + size
        return batch

    def _begin(self, batch: list[_Text], lane_done: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, self._run, [text.tokens for text in batch])
        self._running.add(running)

        def finish(ended: asyncio.Future[Vectors]) -> None:
            self._running.discard(ended)
            lane_done()
            _deliver(batch, ended)
            if not self._closed:
                self._start()

        running.add_done_callback(finish)

    def _common_done(self) -> None:
        self._free += 1

    def _express_done(self) -> None:
        self._express_free = True


def _closing() -> EmbedderUnavailable:
    return EmbedderUnavailable("the embedding model is being shut down")


def _size(tokens: Tokens) -> int:
    """Return what a text costs; an empty one too, for the model's special tokens."""
    return len(tokens) + 2


def _deliver(batch: Sequence[_Text], ended: asyncio.Future[Vectors]) -> None:
    """Give each text of a batch its vector, or the error that ended it."""
    error = _closing() if ended.cancelled() else ended.exception()
    for number, text in enumerate(batch):
        if error is None:
            text.call.put(text.place, ended.result()[number])
        else:
            text.call.fail(error)
