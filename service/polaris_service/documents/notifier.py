"""Waking workers: a NOTIFY after the commit, many writes to one.

Not in the writing transaction: PostgreSQL lets transactions that notify commit only one at a time.
One that is lost costs the worker's poll interval, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib

from polaris.errors import PolarisError
from polaris.names import WORK_CHANNEL
from polaris_service.database import Database

_GATHER_SECONDS = 0.02


class Notifier:
    """Tells workers which indexes have work."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._indexes: set[int] = set()
        self._sending: asyncio.Task[None] | None = None

    def notify(self, index: int) -> None:
        """Have workers look at an index soon."""
        self._indexes.add(index)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._indexes:
            await asyncio.sleep(_GATHER_SECONDS)
            indexes, self._indexes = self._indexes, set()
            with contextlib.suppress(PolarisError):
                async with self._database.connection("notify") as connection:
                    await connection.execute(
                        "SELECT pg_notify($1, index::text) FROM unnest($2::integer[]) AS index",
                        WORK_CHANNEL,
                        sorted(indexes),
                    )

    async def stop(self) -> None:
        """Send what is left."""
        if self._sending:
            await self._sending
