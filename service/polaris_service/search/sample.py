"""Keeps a bounded sample of questions' vectors in the catalog, so that recall is measured for what is asked.

Nothing else of a question is kept: not its words, nor who asked it, nor when. Of each minute a few are drawn
at random, each into a place of the sample that is drawn at random too, so an old one is gone after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field

import numpy as np

from polaris.catalog import QUERY_VECTORS
from polaris.errors import PolarisError
from polaris.telemetry import logger
from polaris_service.database import Database
from polaris_service.indexes import ServedIndex
from polaris_service.vectors import Vector

_log = logger(__name__)

EVERY_SECONDS = 60.0
_KEPT = 8
"""Questions of an index that are kept in so long."""
_INDEXES = 1000
"""Of which questions are kept at a time."""

# A generation that was given up meanwhile has no row to refer to.
_KEEP = """
INSERT INTO polaris.query_vectors (index_id, generation, slot, vector)
SELECT index_id, number, $3, $4 FROM polaris.generations WHERE index_id = $1 AND number = $2
ON CONFLICT (index_id, generation, slot) DO UPDATE SET vector = excluded.vector
"""

_Of = tuple[int, int]
"""Number of an index, and of its generation."""


@dataclass
class _Drawn:
    """Some of the questions since the last time, each as likely as any other."""

    asked: int = 0
    vectors: list[Vector] = field(default_factory=list)

    def take(self, vector: Vector) -> None:
        self.asked += 1
        if len(self.vectors) < _KEPT:
            self.vectors.append(vector)
        elif (place := random.randrange(self.asked)) < _KEPT:  # noqa: S311
            self.vectors[place] = vector


class Sample:
    """The sample of one service; used in one event loop."""

    def __init__(self, database: Database, *, every_seconds: float = EVERY_SECONDS) -> None:
        self._database = database
        self._every_seconds = every_seconds
        self._drawn: dict[_Of, _Drawn] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to write down, now and then."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write nothing more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def take(self, index: ServedIndex, vector: Vector) -> None:
        """Take note of a question's vector; perhaps it is kept."""
        of = (index.id, index.generation)
        drawn = self._drawn.get(of)
        if drawn is None:
            if self._task is None or len(self._drawn) >= _INDEXES or index.vector_index is None:
                return
            drawn = self._drawn[of] = _Drawn()
        drawn.take(vector)

    async def flush(self) -> None:
        """Write down what was drawn; what the database does not take now is no loss."""
        drawn, self._drawn = self._drawn, {}
        for (index, generation), one in drawn.items():
            slots = random.sample(range(QUERY_VECTORS), len(one.vectors))
            try:
                async with self._database.connection("sample") as connection:
                    for slot, vector in zip(slots, one.vectors, strict=True):
                        values = vector.astype(np.float32).tolist()
                        await connection.execute(_KEEP, index, generation, slot, values)
            except PolarisError as error:
                _log.info("questions not kept", why=str(error))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                await self.flush()
            except Exception:  # noqa: BLE001  it is logged, and nothing else may end the loop
                _log.exception("questions not kept")
