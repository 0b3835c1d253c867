"""How an index serves is known at once after the operator said that it changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from polaris_service.database import Connection, Database, Purpose
from polaris_service.indexes import Indexes, NoSuchIndex
from polaris_service.metrics import Metrics
from service.made import Index, Made

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]


class Slow(Database):
    """The real database, whose answers of the catalog stay on their way until they are let go."""

    def __init__(self, made: Made) -> None:
        super().__init__(made.folder("query"), Purpose("query"), Metrics(), size=2)
        self.answered = asyncio.Event()
        self.go = asyncio.Event()

    async def answers(self, asked: asyncio.Task[Any]) -> None:
        """Wait until the catalog has answered, or who asked has failed."""
        answered = asyncio.create_task(self.answered.wait())
        await asyncio.wait({asked, answered}, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            answered.cancel()
            await asked

    @asynccontextmanager
    async def connection(self, kind: str) -> AsyncIterator[Connection]:
        async with super().connection(kind) as connection:
            yield connection
            self.answered.set()
            await self.go.wait()


@pytest.fixture
async def slow(made: Made) -> AsyncIterator[Slow]:
    database = Slow(made)
    await database.start()
    try:
        yield database
    finally:
        database.go.set()
        await database.stop()


async def test_an_answer_older_than_the_word_of_a_change_is_not_kept(
    made: Made, index: Index, slow: Slow
) -> None:
    indexes = Indexes(slow)
    early = asyncio.create_task(indexes.get(index.namespace, index.name))
    await slow.answers(early)
    made.run("UPDATE polaris.generations SET ef_search = 77 WHERE index_id = %s", index.number)
    indexes.forget()
    slow.go.set()
    # Who asked before is told what was so then; nobody who asks after.
    assert (await early).ef_search != 77
    assert (await indexes.get(index.namespace, index.name)).ef_search == 77


async def test_that_an_index_is_missing_is_not_kept_either_once_it_was_made(made: Made, slow: Slow) -> None:
    indexes = Indexes(slow)
    early = asyncio.create_task(indexes.get("team", "made-meanwhile"))
    await slow.answers(early)
    made.index("made-meanwhile")
    indexes.forget()
    slow.go.set()
    with pytest.raises(NoSuchIndex):
        await early
    assert (await indexes.get("team", "made-meanwhile")).name == "made-meanwhile"
