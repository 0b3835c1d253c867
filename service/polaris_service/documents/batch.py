"""Many documents in one request: NDJSON in, one result line for each line, in order.

Lines are committed in groups; a line that is wrong is an error line, and the others go on. Reading,
committing and answering run side by side: a client that sends everything before it reads an answer
is read to the end, and its results wait in memory (some 80 bytes each; what is wrong with a line is told
in words up to `DETAIL_BYTES` of them, and by its code from then on).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from polaris.errors import DatabaseUnavailable, InvalidInput, PolarisError, TooLarge
from polaris.telemetry import logger
from polaris_service.bodies import parse_json
from polaris_service.documents.loading import BatchLoad, Loading
from polaris_service.documents.model import Limits, Write, parse_line, unusable
from polaris_service.documents.store import Store, Written
from polaris_service.indexes import Indexes, ServedIndex
from polaris_service.problems import InvalidBody, kind_of

_log = logger(__name__)

GROUP_LINES = 1000
GROUP_BYTES = 4 * 2**20
# A group that is not full is committed when no line came for so long.
_IDLE_SECONDS = 0.2
DETAIL_BYTES = 4 * 2**20
"""What a request's failures say in words, all together."""
# A group that meets a database that is away is tried again for so long before its lines fail.
PATIENCE_SECONDS = 10.0

Result: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True)
class BatchLimits:
    """Limits that settings say."""

    lines: int
    line_bytes: int
    document: Limits


@dataclass
class _Group:
    """Lines on their way to a commit: for each a write, or the result that it has already."""

    entries: list[tuple[int, Write | Result]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    bytes: int = 0

    def add(self, number: int, entry: Write | Result) -> None:
        self.entries.append((number, entry))
        if isinstance(entry, Write):
            self.ids.add(entry.id)
            self.bytes += entry.bytes

    @property
    def writes(self) -> list[Write]:
        """What is to be written; no id stands twice in it."""
        return [entry for _, entry in self.entries if isinstance(entry, Write)]

    def refuse(self, errors: Mapping[str, PolarisError]) -> None:
        """Put a failure in the place of some writes, by their ids."""
        if errors:
            self.entries = [
                (number, _failure(number, entry.id, errors[entry.id]))
                if isinstance(entry, Write) and entry.id in errors
                else (number, entry)
                for number, entry in self.entries
            ]

    @property
    def full(self) -> bool:
        return len(self.entries) >= GROUP_LINES or self.bytes >= GROUP_BYTES


class Batch:
    """One request."""

    def __init__(
        self, store: Store, indexes: Indexes, loading: Loading, index: ServedIndex, limits: BatchLimits
    ) -> None:
        self._store = store
        self._indexes = indexes
        self._load = BatchLoad(loading)
        self._index = index
        self._limits = limits
        self._patience = PATIENCE_SECONDS
        self._results: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._words = DETAIL_BYTES

    async def results(self, lines: AsyncIterator[list[bytes]]) -> AsyncIterator[bytes]:
        """Yield result lines, some at a time, while the lines are read and written."""
        working = asyncio.create_task(self._work(lines))
        try:
            while (piece := await self._results.get()) is not None:
                yield piece
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _work(self, lines: AsyncIterator[list[bytes]]) -> None:
        committing: asyncio.Task[None] | None = None
        try:
            async for group in self._groups(lines):
                # One group is read while the one before is committed.
                if committing:
                    await committing
                committing = asyncio.create_task(self._commit(group))
            if committing:
                await committing
        finally:
            if committing:
                committing.cancel()
                await asyncio.gather(committing, return_exceptions=True)
            self._load.end()
            self._results.put_nowait(None)

    async def _groups(self, lines: AsyncIterator[list[bytes]]) -> AsyncIterator[_Group]:
        """Yield lines in groups; no id stands twice in one."""
        group = _Group()
        number = 0
        async for found in _with_pauses(lines, _IDLE_SECONDS):
            if not found and group.entries:
                yield group
                group = _Group()
            for line in found:
                number += 1
                # One line beyond the limit is answered; what follows is read, so that whoever sends all
                # before reading comes to read, and thrown away.
                if number > self._limits.lines + 1 or not line.strip():
                    continue
                entry = self._parsed(number, line)
                if isinstance(entry, Write) and entry.id in group.ids:
                    yield group
                    group = _Group()
                group.add(number, entry)
                if group.full:
                    yield group
                    group = _Group()
        if group.entries:
            yield group

    def _parsed(self, number: int, line: bytes) -> Write | Result:
        """Return what a line says, or the result that says what is wrong with it."""
        body: Any = None
        try:
            if number > self._limits.lines:
                raise TooLarge(f"a batch has at most {self._limits.lines:,} lines: send the rest in another")
            if len(line) > self._limits.line_bytes:
                raise TooLarge(f"the line has more than {self._limits.line_bytes:,} bytes")
            body = parse_json(line)
            return parse_line(body, self._index.attribute_types, self._limits.document, self._index.embedding)
        except PolarisError as error:
            return _failure(number, body.get("id") if isinstance(body, dict) else None, error)

    async def _commit(self, group: _Group) -> None:
        group.refuse(unusable(group.writes, self._index.embedding))
        writes = group.writes
        outcome = await self._written(writes) if writes else []
        results = []
        if isinstance(outcome, PolarisError):
            results = [
                entry if isinstance(entry, dict) else _failure(number, entry.id, outcome)
                for number, entry in group.entries
            ]
        else:
            written = iter(outcome)
            results = [
                entry if isinstance(entry, dict) else _success(next(written)) for _, entry in group.entries
            ]
        self._results.put_nowait(b"".join(map(self._line, results)))

    def _line(self, result: Result) -> bytes:
        line = orjson.dumps(result)
        if "detail" in result:
            self._words -= len(line)
            if self._words < 0:
                told = {key: value for key, value in result.items() if key not in ("detail", "errors")}
                line = orjson.dumps(told)
        return line + b"\n"

    async def _written(self, writes: Sequence[Write]) -> Sequence[Written] | PolarisError:
        """Write a group, with patience for a database that is away for a moment."""
        until = time.monotonic() + self._patience
        if any(write.ready for write in writes):
            self._index = await self._load.before(self._index, len(writes))
        while True:
            try:
                written = await self._store.put_many(self._index, writes)
            except DatabaseUnavailable as error:
                # Nothing of the group was committed, or it was and is the same again: both are right.
                if time.monotonic() >= until:
                    self._patience = 0.0  # Waited once; what follows fails at once until one succeeds.
                    return error
                await asyncio.sleep(error.retry_after or 1.0)
                with contextlib.suppress(PolarisError):
                    self._index = await self._indexes.get(self._index.namespace, self._index.name)
            except PolarisError as error:
                return error
            else:
                self._patience = PATIENCE_SECONDS
                return written


async def _with_pauses(lines: AsyncIterator[list[bytes]], seconds: float) -> AsyncIterator[list[bytes]]:
    """Yield the lines, and an empty list whenever none came for some time."""
    source = lines.__aiter__()
    while True:
        waiting = asyncio.ensure_future(anext(source))
        try:
            done, _ = await asyncio.wait((waiting,), timeout=seconds)
            if not done:
                yield []
            yield await waiting
        except StopAsyncIteration:
            return
        finally:
            if not waiting.done():
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)


def _success(written: Written) -> Result:
    return {
        "id": written.id,
        "version": written.version,
        "sequence": written.sequence,
        "status": 202 if written.new else 200,
    }


def _failure(number: int, external_id: Any, error: PolarisError) -> Result:
    """Return the result of a line that was not written: what a problem document would say."""
    kind = kind_of(error)
    result: Result = {"line": number, "status": kind.status, "code": kind.code, "detail": str(error)}
    if isinstance(external_id, str) and len(external_id) <= 2048:
        result["id"] = external_id
    if isinstance(error, InvalidBody):
        result["errors"] = error.errors
    elif isinstance(error, InvalidInput):
        result["errors"] = [{"pointer": error.pointer, "detail": str(error)}]
    return result
