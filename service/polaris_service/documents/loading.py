"""Bulk loads: asking the operator, in the catalog, for a generation that is loaded first and indexed after.

Into a graph go some 430 rows a second; into a table without one, and then a build, some 2,600. Whoever
loads keeps `load_requested_at` fresh; who finds nothing behind clears one that nobody kept fresh. The
operator drops the index of a small table, sets the generation to loading, and builds when the request
is gone. Where there is no operator everything works all the same, only slower.

A load may be many requests, so the end of one does not say that it is over: the next has three seconds
to come. After one large request it has a tenth of the time that this one took: who sends 100,000 lines
at once waits for the index, and the next large one would take as long to come.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from polaris.errors import PolarisError
from polaris.names import CATALOG_CHANNEL
from polaris.telemetry import logger
from polaris_service.database import Connection, Database
from polaris_service.documents import statements as sql
from polaris_service.indexes import Indexes, ServedIndex

_log = logger(__name__)

FRESH_SECONDS = 3.0
"""A request that nobody renewed for so long is nobody's."""
_RENEW_SECONDS = 0.25
# How long a load waits for the operator to take the index away before it goes on without.
_WAIT_SECONDS = 3.0
# A smaller group of ready vectors is not taken for a bulk load.
_BULK_GROUP = 200
# A request of so many lines is taken for all that there is to load, for a time that its own one says.
_LARGE_LINES = 10_000
_SHARE = 0.1

# Losing a request in a crash costs speed only, and one each quarter of a second shall not wait for a disk.
_QUICK = "WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))"
_REQUEST = f"""
{_QUICK} UPDATE polaris.generations SET load_requested_at = clock_timestamp()
FROM quick WHERE index_id = $1 AND number = $2 RETURNING load_requested_at
"""  # noqa: S608  a constant of ours
_CLEAR = """
UPDATE polaris.generations SET load_requested_at = NULL
WHERE index_id = $1 AND number = $2 AND load_requested_at < now() - make_interval(secs => $3)
"""
_CLEAR_OWN = """
UPDATE polaris.generations SET load_requested_at = NULL
WHERE index_id = $1 AND number = $2 AND load_requested_at = $3
"""


async def request(connection: Connection, index: int, generation: int) -> datetime | None:
    """Ask for a generation to be loaded first, or say that it is still being loaded; return when."""
    asked: datetime | None = await connection.fetchval(_REQUEST, index, generation)
    await _tell(connection, index)
    return asked


async def clear(connection: Connection, index: int, generation: int) -> bool:
    """Take the request back where nobody renews it; return whether one was there."""
    return await _cleared(connection, _CLEAR, index, generation, FRESH_SECONDS)


async def _cleared(connection: Connection, statement: str, index: int, generation: int, what: Any) -> bool:
    cleared = await connection.execute(statement, index, generation, what)
    if cleared == "UPDATE 0":
        return False
    await _tell(connection, index)
    return True


async def _tell(connection: Connection, index: int) -> None:
    await connection.execute("SELECT pg_notify($1, $2)", CATALOG_CHANNEL, str(index))


@dataclass
class _Load:
    """A generation that requests of this process load."""

    asked: datetime | None
    """What our last renewal wrote."""
    renewed: float
    seen: float
    """When something came last."""
    running: int = 0
    """Requests that have brought something and have not ended."""
    quiet: float = FRESH_SECONDS
    """How long nothing may come before it is over."""

    def stalls(self, now: float) -> bool:
        """Return whether so little comes that it does not keep the index away any more."""
        return now - self.seen > FRESH_SECONDS

    def over(self, now: float) -> bool:
        """Return whether it is to be taken back."""
        if self.running:
            return self.stalls(now)
        # Who loads the same in another process has renewed it by then, and is not disturbed.
        return now >= max(self.seen + self.quiet, self.renewed + 2 * _RENEW_SECONDS)


def quiet_seconds(lines: int, seconds: float) -> float:
    """Return how long after a request of so many lines, which took so long, its load is over."""
    if lines < _LARGE_LINES:
        return FRESH_SECONDS
    return min(FRESH_SECONDS, _SHARE * seconds)


class Loading:
    """Bulk loads of ready vectors that run in this process."""

    def __init__(self, database: Database, indexes: Indexes) -> None:
        self._database = database
        self._indexes = indexes
        self._loads: dict[tuple[int, int], _Load] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether something is being loaded, or was a moment ago."""
        return bool(self._loads)

    async def before(self, index: ServedIndex, lines: int) -> tuple[ServedIndex, _Load | None]:
        """Ask for a bulk load where a large group comes to an empty index, or renew what was asked.

        Return the index as it is now, and the load that the group is part of.
        """
        key = (index.id, index.generation)
        try:
            if key not in self._loads and await self._wanted(index, lines):
                await self._ask(key)
                index = await self._without_index(index)
        except PolarisError as error:
            _log.warning("no bulk load", index=f"{index.namespace}/{index.name}", why=str(error))
        load = self._loads.get(key)
        if load:
            load.seen, load.quiet = time.monotonic(), FRESH_SECONDS
        return index, load

    def ended(self, load: _Load, quiet: float) -> None:
        """Let a load that no request of ours runs any more be over when nothing came for so long."""
        load.seen, load.quiet = time.monotonic(), quiet
        self._changed.set()

    async def _wanted(self, index: ServedIndex, lines: int) -> bool:
        if lines < _BULK_GROUP or index.state != "serving" or index.vector_index is None:
            return False
        statement = sql.statements(index.schema, index.generation).any_chunk
        async with self._database.connection("load") as connection:
            return not await connection.fetchval(statement)

    async def _ask(self, key: tuple[int, int]) -> None:
        async with self._database.connection("load") as connection:
            asked = await request(connection, *key)
        now = time.monotonic()
        load = self._loads.setdefault(key, _Load(asked, now, now))
        load.asked, load.renewed = asked, now
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep())

    async def _without_index(self, index: ServedIndex) -> ServedIndex:
        until = time.monotonic() + _WAIT_SECONDS
        while index.state == "serving" and time.monotonic() < until:
            await asyncio.sleep(0.02)
            self._indexes.forget()
            index = await self._indexes.get(index.namespace, index.name)
        return index

    async def _keep(self) -> None:
        """Renew requests while their loads run, and take them back after, without a worker being asked."""
        while self._loads:
            self._changed.clear()
            for key, load in list(self._loads.items()):
                with contextlib.suppress(PolarisError):
                    await self._look_at(key, load)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RENEW_SECONDS / 2):
                    await self._changed.wait()

    async def _look_at(self, key: tuple[int, int], load: _Load) -> None:
        now = time.monotonic()
        if load.over(now):
            await self._take_back(key, load)
        elif load.running and now - load.renewed >= _RENEW_SECONDS:
            async with self._database.connection("load") as connection:
                load.asked = await connection.fetchval(_REQUEST, *key)
            load.renewed = now

    async def _take_back(self, key: tuple[int, int], load: _Load) -> None:
        # What comes from here on is looked at anew.
        del self._loads[key]
        try:
            async with self._database.connection("load") as connection:
                await _cleared(connection, _CLEAR_OWN, *key, load.asked)
        except PolarisError:
            self._loads.setdefault(key, load)
            raise

    async def stop(self) -> None:
        """Leave what is asked for; workers take it back."""
        if self._keeping:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)


class BatchLoad:
    """What one request has loaded."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading
        self._load: _Load | None = None
        self._lines = 0
        self._begun = time.monotonic()

    async def before(self, index: ServedIndex, lines: int) -> ServedIndex:
        """Return the index as it is to be loaded with this many lines; see `Loading.before`."""
        index, load = await self._loading.before(index, lines)
        self._lines += lines
        if load is not self._load:
            # The first one; or it stalled for so long that its load was taken back.
            self._leave()
            self._load = load
            if load:
                load.running += 1
        return index

    def end(self) -> None:
        """Nothing more comes by this request."""
        load = self._load
        self._leave()
        if load and not load.running:
            self._loading.ended(load, quiet_seconds(self._lines, time.monotonic() - self._begun))

    def _leave(self) -> None:
        if self._load:
            self._load.running -= 1
        self._load = None
