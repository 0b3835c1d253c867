"""Waiting until what was written up to a sequence can be found.

Sequences are given out in the order of commits, so `after_sequence=S` means: no document has a version
with a sequence of at most S that the serving generation has neither applied (or a later one of the same
document) nor given up on. A version that was given up on shows in its document's state; to wait for it
would be to wait for ever.
"""

from __future__ import annotations

import asyncio

from polaris import names
from polaris.errors import DeadlineExceeded, InvalidInput
from polaris.layout import BEHIND
from polaris.sql import compose
from polaris_service.database import Connection, Database, TableMissing
from polaris_service.indexes import ServedIndex

_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.25
_COUNTED = 1000
# Kept for the last look, so that it is this wait that ends with a figure, and not the caller's timer.
_LAST_LOOK_SECONDS = 0.05

# Whatever is settled needs no look: the catalog's low water keeps this to the newest documents.
_BEHIND = """
SELECT k.sequence AS clock, (
  SELECT count(*) FROM (
    SELECT 1 FROM {documents} d LEFT JOIN {applied} a ON a.document_id = d.id
    WHERE d.sequence > g.low_water AND {pending}
      AND EXISTS (SELECT 1 FROM {versions} v WHERE v.document_id = d.id
                  AND v.sequence <= $3 AND v.sequence > greatest(a.sequence, a.failed_sequence, 0))
    LIMIT {counted}) x) AS behind
FROM {clock} k CROSS JOIN polaris.generations g WHERE g.index_id = $1 AND g.number = $2
"""


async def wait(database: Database, index: ServedIndex, sequence: int, until: float) -> None:
    """Return when everything up to the sequence can be found.

    `until` is in the time of the event loop. Raises DeadlineExceeded that says how far it is, and
    InvalidInput for a sequence that this index has never given out.
    """
    loop = asyncio.get_running_loop()
    text = _statement(index)
    pause = _FIRST_PAUSE_SECONDS
    while True:
        async with database.connection("freshness") as connection:
            behind = await _behind(connection, text, index, sequence, lags=database.lags)
        if not behind:
            return
        left = until - loop.time() - _LAST_LOOK_SECONDS
        if left <= 0:
            shown = f"{_COUNTED} or more" if behind >= _COUNTED else str(behind)
            raise DeadlineExceeded(f"{shown} documents up to sequence {sequence} cannot be found yet")
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)


async def _behind(connection: Connection, text: str, index: ServedIndex, sequence: int, *, lags: bool) -> int:
    row = await connection.fetchrow(text, index.id, index.generation, sequence)
    if row is None:
        raise TableMissing(f"generation {index.generation} is gone", retry_after=1.0)
    if sequence > row["clock"]:
        if lags:
            return sequence - int(row["clock"])
        raise InvalidInput(f"the index has given out sequences up to {row['clock']} only", "/after_sequence")
    behind: int = row["behind"]
    return behind


def _statement(index: ServedIndex) -> str:
    return str(
        compose(
            _BEHIND,
            documents=index.table(names.DOCUMENTS),
            versions=index.table(names.VERSIONS),
            clock=index.table(names.CLOCK),
            applied=index.applied,
            pending=BEHIND,
            counted=_COUNTED,
        )
    )
