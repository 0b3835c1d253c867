"""Who is embedded next, and with whom: a question never waits for a bulk load."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris.errors import EmbedderUnavailable
from polaris_service.embed import batching
from polaris_service.embed.batching import BATCH_TOKENS, Batcher
from polaris_service.embed.engine import Tokens
from polaris_service.embed.provider import Vectors

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

PASSAGE = 400
QUESTION = 10


def text(length: int, mark: int = 0) -> Tokens:
    return np.full(length, mark, np.int32)


def vectors_of(rows: Sequence[Tokens]) -> Vectors:
    """Tell of each row how long it is and what it is marked with."""
    return np.array([[len(row), row[0] if len(row) else -1] for row in rows], np.float32)


class Model:
    """Stands for the model: writes down what it runs, and can be held."""

    def __init__(self) -> None:
        self.ran: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, rows: Sequence[Tokens]) -> Vectors:
        self.ran.append([len(row) for row in rows])
        # A question passes: only the bulk load is held.
        if len(rows[0]) > QUESTION:
            assert self.open.wait(30)
        return vectors_of(rows)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def batcher(model: Model) -> AsyncIterator[Batcher]:
    made = Batcher(model, dimension=2, lanes=1)
    yield made
    model.open.set()
    await made.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110  (of what another thread does)
            await asyncio.sleep(0.001)


async def test_a_question_is_answered_while_a_bulk_load_holds_the_common_lane(
    batcher: Batcher, model: Model
) -> None:
    model.open.clear()
    bulk = asyncio.create_task(batcher.embed([text(PASSAGE)] * 50))
    await until(lambda: bool(model.ran))
    assert (await batcher.embed([text(QUESTION, 7)])).tolist() == [[QUESTION, 7]]
    assert not bulk.done()
    model.open.set()
    assert len(await bulk) == 50


async def test_who_asks_for_little_is_not_behind_all_of_who_asks_for_much(
    batcher: Batcher, model: Model
) -> None:
    model.open.clear()
    much = asyncio.create_task(batcher.embed([text(PASSAGE)] * 50))
    await until(lambda: bool(model.ran))
    little = asyncio.create_task(batcher.embed([text(PASSAGE + 1)] * 2))
    await until(lambda: batcher.waiting_tokens > 50 * PASSAGE)
    model.open.set()
    await asyncio.gather(much, little)
    assert max(place for place, batch in enumerate(model.ran) if batch[0] == PASSAGE + 1) < 10


async def test_questions_that_wait_share_a_run() -> None:
    ran: list[int] = []
    gate = threading.Event()

    def held(rows: Sequence[Tokens]) -> Vectors:
        ran.append(len(rows))
        assert gate.wait(30)
        return vectors_of(rows)

    shared = Batcher(held, dimension=2, lanes=1)
    first = [asyncio.create_task(shared.embed([text(QUESTION, mark)])) for mark in range(2)]
    await until(lambda: len(ran) == 2)  # the common lane and the express lane are taken
    rest = [asyncio.create_task(shared.embed([text(QUESTION, mark)])) for mark in range(2, 12)]
    await until(lambda: shared.waiting_tokens == 10 * (QUESTION + 2))
    gate.set()
    results = await asyncio.gather(*first, *rest)
    assert [int(vectors[0, 1]) for vectors in results] == list(range(12))
    assert ran == [1, 1, 10]
    await shared.close()


async def test_what_nobody_waits_for_any_more_is_not_run(batcher: Batcher, model: Model) -> None:
    model.open.clear()
    first = asyncio.create_task(batcher.embed([text(PASSAGE)]))
    await until(lambda: bool(model.ran))
    gone = asyncio.create_task(batcher.embed([text(PASSAGE + 1)] * 20))
    after = asyncio.create_task(batcher.embed([text(PASSAGE + 2)]))
    await until(lambda: batcher.waiting_tokens > 21 * PASSAGE)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    model.open.set()
    await asyncio.gather(first, after)
    assert model.ran == [[PASSAGE], [PASSAGE + 2]]
    assert batcher.waiting_tokens == 0


async def test_a_failing_run_fails_those_in_it_and_nobody_else() -> None:
    def picky(rows: Sequence[Tokens]) -> Vectors:
        if any(row[0] == 13 for row in rows):
            raise ValueError("13")
        return vectors_of(rows)

    batcher = Batcher(picky, dimension=2, lanes=1)
    results = await asyncio.gather(
        *(batcher.embed([text(PASSAGE, mark)]) for mark in (12, 13, 14)), return_exceptions=True
    )
    assert [isinstance(result, ValueError) for result in results] == [False, True, False]
    await batcher.close()


async def test_with_too_much_waiting_a_call_is_turned_away_and_told_when_to_come_back(
    batcher: Batcher, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_WAITING_TOKENS", 1000)
    model.open.clear()
    bulk = asyncio.create_task(batcher.embed([text(PASSAGE)] * 5))
    await until(lambda: batcher.waiting_tokens > 1000)
    with pytest.raises(EmbedderUnavailable, match="wait to be embedded") as refused:
        await batcher.embed([text(QUESTION)])
    assert refused.value.retry_after
    model.open.set()
    await bulk
    assert len(await batcher.embed([text(QUESTION)])) == 1


async def test_closing_fails_what_waits_and_finishes_what_runs(model: Model) -> None:
    batcher = Batcher(model, dimension=2, lanes=1)
    model.open.clear()
    running = asyncio.create_task(batcher.embed([text(PASSAGE)]))
    await until(lambda: bool(model.ran))
    waiting = asyncio.create_task(batcher.embed([text(PASSAGE)]))
    await until(lambda: batcher.waiting_tokens > 0)
    closing = asyncio.create_task(batcher.close())
    with pytest.raises(EmbedderUnavailable, match="shut down"):
        await waiting
    model.open.set()
    await closing
    assert len(await running) == 1
    with pytest.raises(EmbedderUnavailable, match="shut down"):
        await batcher.embed([text(1)])


CALLS = st.lists(st.lists(st.integers(0, 510), max_size=30), min_size=1, max_size=8)


@given(calls=CALLS, lanes=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_each_text_gets_its_own_vector_in_batches_of_bounded_size_and_little_padding(
    calls: list[list[int]], lanes: int
) -> None:
    ran: list[list[int]] = []

    def run(rows: Sequence[Tokens]) -> Vectors:
        ran.append([len(row) + 2 for row in rows])
        return vectors_of(rows)

    async def embed_all() -> list[Vectors]:
        batcher = Batcher(run, dimension=2, lanes=lanes)
        made = await asyncio.gather(
            *(batcher.embed([text(length, mark) for length in call]) for mark, call in enumerate(calls))
        )
        await batcher.close()
        assert batcher.waiting_tokens == 0
        return list(made)

    for mark, (call, vectors) in enumerate(zip(calls, asyncio.run(embed_all()), strict=True)):
        assert vectors.tolist() == [[length, mark if length else -1] for length in call]
    for batch in ran:
        assert len(batch) == 1 or len(batch) * max(batch) <= BATCH_TOKENS
        assert sum(batch) >= 0.7 * len(batch) * max(batch)
