"""Bulk loads: asking the operator, in the catalog, for a generation that is loaded first and indexed after.

Into a graph go some 430 rows a second; into a table without one, and then a build, some 2,600. Whoever
loads keeps `load_requested_at` fresh; who finds nothing behind clears one that nobody kept fresh. The
operator drops the index of a small table, sets the generation to loading, and builds when the request
is gone. Where there is no operator everything works all the same, only slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from polaris.errors import PolarisError
from polaris.names import CATALOG_CHANNEL
from polaris.telemetry import logger
from polaris_service.database import Connection, Database
from polaris_service.documents import statements as sql
from polaris_service.indexes import Indexes, ServedIndex

_log = logger(__name__)

FRESH_SECONDS = 3.0
"""A request that nobody renewed for so long is nobody's."""
_RENEW_SECONDS = 1.0
# How long a load waits for the operator to take the index away before it goes on without.
_WAIT_SECONDS = 3.0
# A smaller group of ready vectors is not taken for a bulk load.
_BULK_GROUP = 200

_REQUEST = """
UPDATE polaris.generations SET load_requested_at = now() WHERE index_id = $1 AND number = $2
"""
_CLEAR = """
UPDATE polaris.generations SET load_requested_at = NULL
WHERE index_id = $1 AND number = $2 AND load_requested_at < now() - make_interval(secs => $3)
"""


async def request(connection: Connection, index: int, generation: int) -> None:
    """Ask for a generation to be loaded first, or say that it is still being loaded."""
    await connection.execute(_REQUEST, index, generation)
    await connection.execute("SELECT pg_notify($1, $2)", CATALOG_CHANNEL, str(index))


async def clear(connection: Connection, index: int, generation: int) -> bool:
    """Take the request back where nobody renews it; return whether one was there."""
    cleared = await connection.execute(_CLEAR, index, generation, FRESH_SECONDS)
    if cleared == "UPDATE 0":
        return False
    await connection.execute("SELECT pg_notify($1, $2)", CATALOG_CHANNEL, str(index))
    return True


class Loading:
    """Bulk loads of ready vectors that run in this process."""

    def __init__(self, database: Database, indexes: Indexes) -> None:
        self._database = database
        self._indexes = indexes
        self._renewed: dict[tuple[int, int], float] = {}
        self._ending: asyncio.Task[None] | None = None

    async def before(self, index: ServedIndex, lines: int) -> ServedIndex:
        """Ask for a bulk load where a large group comes to an empty index; return the index as it is now."""
        key = (index.id, index.generation)
        try:
            if key in self._renewed:
                await self._renew(index)
            elif await self._wanted(index, lines):
                await self._renew(index)
                return await self._without_index(index)
        except PolarisError as error:
            _log.warning("no bulk load", index=f"{index.namespace}/{index.name}", why=str(error))
        return index

    async def _wanted(self, index: ServedIndex, lines: int) -> bool:
        if lines < _BULK_GROUP or index.state != "serving" or index.vector_index is None:
            return False
        statement = sql.statements(index.schema, index.generation).any_chunk
        async with self._database.connection("load") as connection:
            return not await connection.fetchval(statement)

    async def _renew(self, index: ServedIndex) -> None:
        key, now = (index.id, index.generation), time.monotonic()
        if now - self._renewed.get(key, float("-inf")) < _RENEW_SECONDS:
            return
        self._renewed[key] = now
        async with self._database.connection("load") as connection:
            await request(connection, *key)
        if self._ending is None or self._ending.done():
            self._ending = asyncio.create_task(self._end())

    async def _without_index(self, index: ServedIndex) -> ServedIndex:
        until = time.monotonic() + _WAIT_SECONDS
        while index.state == "serving" and time.monotonic() < until:
            await asyncio.sleep(0.05)
            self._indexes.forget()
            index = await self._indexes.get(index.namespace, index.name)
        return index

    async def _end(self) -> None:
        """Take requests back when their loads have ended, without a worker being asked."""
        while self._renewed:
            await asyncio.sleep(_RENEW_SECONDS)
            for key, renewed in list(self._renewed.items()):
                if time.monotonic() - renewed < FRESH_SECONDS + 0.1:
                    continue
                with contextlib.suppress(PolarisError):
                    async with self._database.connection("load") as connection:
                        await clear(connection, *key)
                    del self._renewed[key]

    async def stop(self) -> None:
        """Leave what is asked for; workers take it back."""
        if self._ending:
            self._ending.cancel()
            await asyncio.gather(self._ending, return_exceptions=True)
