"""Waking workers: a NOTIFY after the commit, many writes to one.

Not in the writing transaction: PostgreSQL lets transactions that notify commit only one at a time.
One that is lost costs the worker's poll interval, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from polaris.errors import PolarisError
from polaris.names import TRACE_CHANNEL, WORK_CHANNEL
from polaris_service.database import Database
from polaris_service.documents.traces import told

_GATHER_SECONDS = 0.02
_TRACES = 50
"""So many commits' traces are told at a time; who traces more than that misses none of the first."""
_TELL = "SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS told(channel, payload)"


class Notifier:
    """Tells workers which indexes have work."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._indexes: set[int] = set()
        self._traces: list[str] = []
        self._sending: asyncio.Task[None] | None = None

    def notify(self, index: int, sequences: Sequence[int]) -> None:
        """Have workers look at an index soon, and go on with the trace of what was written."""
        self._indexes.add(index)
        if len(self._traces) < _TRACES and (payload := told(index, sequences)):
            self._traces.append(payload)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._indexes:
            await asyncio.sleep(_GATHER_SECONDS)
            indexes, self._indexes = self._indexes, set()
            traces, self._traces = self._traces, []
            with contextlib.suppress(PolarisError):
                async with self._database.connection("notify") as connection:
                    await connection.execute(
                        _TELL,
                        [WORK_CHANNEL] * len(indexes) + [TRACE_CHANNEL] * len(traces),
                        [*map(str, sorted(indexes)), *traces],
                    )

    async def stop(self) -> None:
        """Send what is left."""
        if self._sending:
            await self._sending
