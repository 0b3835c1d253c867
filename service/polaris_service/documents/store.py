"""Documents in PostgreSQL: written by version, read back, listed, deleted, erased.

A write touches documents, versions and the clock, in one transaction, and nothing else: who embeds
it is found by comparing sequences (see `behind`). The clock's row is locked from the drawing of a
sequence until the commit, so sequences are in the order of commits; it is drawn as late as possible.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import asyncpg
import numpy as np
import numpy.typing as npt

from polaris.errors import Conflict, Gone, NotFound, PreconditionFailed
from polaris.names import chunks_table
from polaris_service.database import Connection, Database
from polaris_service.documents import statements as sql
from polaris_service.documents.model import Ready, Write, stacked
from polaris_service.documents.notifier import Notifier
from polaris_service.documents.rows import CHUNK_COLUMNS, Chunks, Version, copy_of_chunks, text_hash
from polaris_service.indexes import IndexNotReady, ServedIndex

State = Literal["pending", "searchable", "failed", "superseded"]
T = TypeVar("T", "Written", "list[Written]")

# A deadlock or a lost race is tried again so often before the caller hears of it.
_ATTEMPTS = 8


class NoSuchDocument(NotFound):
    """No document of that id, or no such version of it."""

    code: ClassVar[str] = "no-such-document"


class DocumentErased(Gone):
    """The document, or its version, was erased on purpose."""

    code: ClassVar[str] = "document-erased"


@dataclass(frozen=True)
class Condition:
    """What If-Match and If-None-Match ask of the present document."""

    versions: frozenset[int] | None = None
    """The present version must be one of these; None: any will do."""
    present: bool = False
    """There must be one (If-Match: *)."""
    absent: bool = False
    """There must be none (If-None-Match: *)."""

    def check(self, external_id: str, present: int | None) -> None:
        """Raise PreconditionFailed where the present version (None: there is none) is another one."""
        if self.absent and present is not None:
            raise PreconditionFailed(f"document {external_id} is there, at version {present}")
        if (self.present or self.versions is not None) and present is None:
            raise PreconditionFailed(f"document {external_id} is not there")
        if self.versions is not None and present not in self.versions:
            raise PreconditionFailed(f"document {external_id} is at version {present}")


ANY = Condition()


@dataclass(frozen=True)
class Written:
    """What a write came to. The caller may wait for `sequence` to be searchable."""

    id: str
    version: int
    sequence: int
    new: bool
    """False: it was so already."""


@dataclass(frozen=True)
class Summary:
    """A document without its text."""

    id: str
    version: int
    sequence: int
    title: str | None
    uri: str | None
    attributes: str
    """JSON text."""
    updated_at: datetime
    state: State
    tries: int
    error: str | None


@dataclass(frozen=True)
class Stored(Summary):
    """A version of a document."""

    text: str
    chunks: int | None
    """Chunks of what is searchable; None before."""


@dataclass(frozen=True)
class Counts:
    """How much there is, and how much of it is searchable."""

    documents: int
    chunks: int
    pending: int
    failed: int
    sequence: int
    """The last one given out."""
    estimated: bool
    """documents or chunks is an estimate from PostgreSQL's statistics."""


def state_of(sequence: int, applied: int | None, failed: int | None) -> State:
    """Return where a document's present version stands with a generation."""
    if sequence <= (applied or 0):
        return "searchable"
    return "failed" if sequence <= (failed or 0) else "pending"


class _Change(NamedTuple):
    """A version to be written."""

    document: int | None
    """None: the document is new."""
    version: int
    write: Write

    @classmethod
    def of(cls, row: Mapping[str, Any] | None, write: Write) -> _Change:
        return cls(None, 1, write) if row is None else cls(row["id"], row["version"] + 1, write)

    @property
    def brought(self) -> Ready:
        """The ready vectors."""
        if self.write.ready is None:
            raise ValueError(f"document {self.write.id} brings no vectors")
        return self.write.ready

    def chunks(self) -> Chunks:
        """The rows of the ready vectors."""
        if self.document is None:
            raise ValueError(f"document {self.write.id} has no number yet")
        spans, text = self.brought.spans, self.write.text
        return Chunks(
            Version(self.document, self.version, self.write.attributes),
            spans,
            [text_hash(text[span.start : span.end]) for span in spans],
        )


class Store:
    """The documents of all indexes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._notifier = Notifier(database)

    async def stop(self) -> None:
        """Send what was not sent yet."""
        await self._notifier.stop()

    # --- writing ---

    async def put(
        self, index: ServedIndex, write: Write, condition: Condition = ANY, *, retry: bool = False
    ) -> Written:
        """Write one document; durable when this returns.

        With `retry`, one that is not searchable yet, or was given up on, is tried anew at once.
        Raises PreconditionFailed, and what the database raises.
        """

        async def work(connection: Connection) -> Written:
            return (await self._put(connection, index, [write], condition, retry=retry))[0]

        return await self._transaction(index, work)

    async def put_many(self, index: ServedIndex, writes: Sequence[Write]) -> list[Written]:
        """Write documents of different ids in one transaction; ready vectors become searchable with it."""

        async def work(connection: Connection) -> list[Written]:
            return await self._put(connection, index, writes, ANY, retry=False)

        # What brings its vectors leaves workers nothing to do at once: they look by themselves now and then.
        return await self._transaction(index, work, wake=any(write.ready is None for write in writes))

    async def _transaction(
        self, index: ServedIndex, work: Callable[[Connection], Awaitable[T]], *, wake: bool = True
    ) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._database.transaction("write") as connection:
                    result = await work(connection)
            except PreconditionFailed:
                raise
            except Conflict:
                if attempt == _ATTEMPTS:
                    raise
            else:
                if wake:
                    self._notifier.notify(index.id, _sequences(result))
                return result
        raise AssertionError("unreachable")

    async def _put(
        self,
        connection: Connection,
        index: ServedIndex,
        writes: Sequence[Write],
        condition: Condition,
        *,
        retry: bool,
    ) -> list[Written]:
        statements = sql.statements(index.schema, index.generation)
        ids = [write.id for write in writes]
        rows = {row["external_id"]: row for row in await connection.fetch(statements.lock, ids)}
        for write in writes:
            condition.check(write.id, _present(rows.get(write.id)))
        changed = [_Change.of(rows.get(w.id), w) for w in writes if _changes(rows.get(w.id), w)]
        sequences = await self._write(connection, index, changed)
        if retry and not changed:
            row = rows[writes[0].id]
            touched = await self._retry(connection, index, row)
            if touched is not None:
                return [Written(writes[0].id, row["version"], touched, new=True)]
        return [_written(write.id, rows.get(write.id), sequences.get(write.id)) for write in writes]

    async def _write(
        self, connection: Connection, index: ServedIndex, changes: Sequence[_Change]
    ) -> dict[str, int]:
        """Write new versions; return the sequence of each by the document's id.

        What can be done before sequences are drawn is: the clock is held from then on.
        """
        if not changes:
            return {}
        ready = [change for change in changes if change.write.ready]
        if ready:
            await claim_chunks(connection, index)
            await self._replace_chunks(connection, index, [c for c in ready if c.document is not None])
        statements = sql.statements(index.schema, index.generation)
        if ready:
            await connection.execute(statements.share_switch)
        written = await connection.fetch(
            statements.write,
            [change.document for change in changes],
            [change.write.id for change in changes],
            [change.version for change in changes],
            [change.write.content_hash for change in changes],
            [False] * len(changes),
            [change.write.text for change in changes],
            [change.write.title for change in changes],
            [change.write.uri for change in changes],
            [change.write.attributes for change in changes],
        )
        if len(written) < len(changes):
            raise Conflict("another transaction has made the same documents")
        if ready:
            numbers = {c.write.id: row["id"] for c, row in zip(changes, written, strict=True)}
            made = [_Change(numbers[c.write.id], c.version, c.write) for c in ready if c.document is None]
            await self._put_ready(connection, index, made)
        sequences = {c.write.id: row["sequence"] for c, row in zip(changes, written, strict=True)}
        if ready:
            await connection.execute(
                statements.mark_applied,
                [numbers[change.write.id] for change in ready],
                [change.version for change in ready],
                [sequences[change.write.id] for change in ready],
                [len(change.brought.spans) for change in ready],
            )
        return sequences

    async def _replace_chunks(
        self, connection: Connection, index: ServedIndex, known: Sequence[_Change]
    ) -> None:
        """Put ready vectors in the place of chunks that documents have, of which a worker may hold some."""
        if known:
            statements = sql.statements(index.schema, index.generation)
            numbers = [change.document for change in known]
            await connection.execute(statements.reserve_applied, numbers)
            await connection.execute(statements.remove_chunks, numbers)
            await self._put_ready(connection, index, known)

    async def _put_ready(
        self, connection: Connection, index: ServedIndex, changes: Sequence[_Change]
    ) -> None:
        if changes:
            rows = stacked((change.brought for change in changes), index.embedding.dimension)
            await put_chunks(connection, index, [change.chunks() for change in changes], rows)

    async def _retry(self, connection: Connection, index: ServedIndex, row: asyncpg.Record) -> int | None:
        """Put a document behind again with its tries forgotten; None where it is searchable."""
        statements = sql.statements(index.schema, index.generation)
        applied = await connection.fetchrow(statements.state_of, row["id"])
        if applied is not None and applied["sequence"] >= row["sequence"]:
            return None
        await connection.execute(statements.forgive, row["id"])
        return int(await connection.fetchval(statements.touch, row["id"]))

    # --- removing ---

    async def delete(self, index: ServedIndex, external_id: str, condition: Condition = ANY) -> Written:
        """Put a tombstone over a document; workers remove its chunks, versions stay readable.

        Raises NoSuchDocument, PreconditionFailed. Deleting again changes nothing.
        """

        async def work(connection: Connection) -> Written:
            row = await self._lock_one(connection, index, external_id, condition)
            if row["deleted"]:
                return _written(external_id, row, None)
            statements = sql.statements(index.schema, index.generation)
            moved = await connection.fetchrow(
                statements.write,
                [row["id"]],
                [external_id],
                [row["version"] + 1],
                [b""],
                [True],
                [""],
                [None],
                [None],
                ["{}"],
            )
            return _written(external_id, row, moved["sequence"])

        return await self._transaction(index, work)

    async def erase(self, index: ServedIndex, external_id: str, condition: Condition = ANY) -> Written:
        """Remove every version of a document and its chunks in every generation, before this returns.

        Raises NoSuchDocument, PreconditionFailed, and IndexNotReady while a generation is being
        indexed. Erasing again changes nothing.
        """

        async def work(connection: Connection) -> Written:
            row = await self._lock_one(connection, index, external_id, condition)
            statements = sql.statements(index.schema, index.generation)
            version = row["version"] if row["deleted"] else row["version"] + 1
            generations = await connection.fetch(sql.GENERATIONS, index.id)
            for generation in generations:
                await self._erase_chunks(connection, index, generation["number"], row["id"])
            removed = await connection.execute(statements.remove_versions, row["id"])
            if row["deleted"] and removed == "DELETE 0":
                return _written(external_id, row, None)
            sequence = await connection.fetchval(statements.bury, row["id"], version)
            for generation in generations:
                await connection.execute(
                    sql.statements(index.schema, generation["number"]).mark_applied,
                    [row["id"]],
                    [version],
                    [sequence],
                    [0],
                )
            return Written(external_id, version, sequence, new=True)

        return await self._transaction(index, work)

    async def _lock_one(
        self, connection: Connection, index: ServedIndex, external_id: str, condition: Condition
    ) -> asyncpg.Record:
        row = await connection.fetchrow(sql.statements(index.schema, index.generation).lock, [external_id])
        if row is None:
            condition.check(external_id, None)
            raise _no_document(index, external_id)
        condition.check(external_id, _present(row))
        return row

    async def _erase_chunks(
        self, connection: Connection, index: ServedIndex, generation: int, number: int
    ) -> None:
        statements = sql.statements(index.schema, generation)
        await claim_chunks(connection, index, generation)
        await connection.execute(statements.reserve_applied, [number])
        await connection.execute(statements.remove_chunks, [number])

    # --- reading ---

    async def get(self, index: ServedIndex, external_id: str, version: int | None = None) -> Stored:
        """Return a document, or an older version of it; raise NoSuchDocument, DocumentErased."""
        statement = sql.statements(index.schema, index.generation).get
        async with self._database.connection("read") as connection:
            row = await connection.fetchrow(statement, external_id, version)
        if row is None:
            raise _no_document(index, external_id)
        if row["version"] is None:
            raise _no_version(index, external_id, row, version)
        if row["deleted"]:
            raise NoSuchDocument(f"document {external_id} was deleted (version {row['version']})")
        return Stored(
            text=row["text"],
            chunks=row["chunks"] if row["applied_sequence"] else None,
            **_summary(external_id, row, superseded=row["version"] != row["present"]),
        )

    async def page(
        self, index: ServedIndex, after: str, limit: int, state: str | None = None
    ) -> tuple[list[Summary], str | None]:
        """Return up to `limit` documents with an id greater than `after`, and where the next page begins."""
        statement = sql.listing(index.schema, index.generation, state)
        async with self._database.connection("read") as connection:
            rows = await connection.fetch(statement, after, limit + 1)
        found = [Summary(**_summary(row["external_id"], row)) for row in rows[:limit]]
        return found, found[-1].id if len(rows) > limit else None

    async def counts(self, index: ServedIndex) -> Counts:
        """Return how much there is; estimates where counting would take long."""
        names = (index.schema, "stored_documents", chunks_table(index.generation))
        async with self._database.connection("read") as connection:
            estimate = await connection.fetchrow(sql.ESTIMATES, *names)
            exact = [estimate[name] < sql.EXACT_COUNTS for name in ("documents", "chunks")]
            row = await connection.fetchrow(
                sql.counts(index.schema, index.generation), *exact, index.low_water
            )
        return Counts(
            documents=row["documents"] if exact[0] else estimate["documents"],
            chunks=row["chunks"] if exact[1] else estimate["chunks"],
            pending=row["pending"],
            failed=row["failed"],
            sequence=row["sequence"],
            estimated=not all(exact),
        )


async def put_chunks(
    connection: Connection,
    index: ServedIndex,
    chunks: Sequence[Chunks],
    vectors: npt.NDArray[np.floating[Any]],
) -> None:
    """Write chunks of which none is there into the index's generation; `vectors` are theirs, in order."""
    await connection.copy_to_table(
        chunks_table(index.generation),
        schema_name=index.schema,
        columns=CHUNK_COLUMNS,
        source=copy_of_chunks(chunks, vectors, index.embedding.type),
        format="binary",
    )


async def claim_chunks(connection: Connection, index: ServedIndex, generation: int | None = None) -> None:
    """Keep a generation's table from being indexed until the transaction ends.

    Raises IndexNotReady while it is being indexed. The lock is the one that writing takes anyway: a
    build waits for us, and we never wait for a build, which may take hours.
    """
    number = index.generation if generation is None else generation
    state = await connection.fetchval(sql.STATE, index.id, number)
    which = f"index {index.namespace}/{index.name}"
    if state is None:
        raise IndexNotReady(f"{which} is being changed", retry_after=1.0)
    try:
        if state != "building":
            await connection.execute(sql.statements(index.schema, number).lock_chunks)
    except asyncpg.LockNotAvailableError:
        state = "building"
    if state == "building":
        raise IndexNotReady(f"{which} is building its vector index: vectors have to wait", retry_after=10.0)


def _present(row: Mapping[str, Any] | None) -> int | None:
    return None if row is None or row["deleted"] else row["version"]


def _changes(row: Mapping[str, Any] | None, write: Write) -> bool:
    return bool(row is None or row["deleted"] or row["content_hash"] != write.content_hash)


def _sequences(result: Written | Sequence[Written]) -> list[int]:
    """Return the sequences of what was new in what was written."""
    written = [result] if isinstance(result, Written) else result
    return [each.sequence for each in written if each.new]


def _written(external_id: str, row: Mapping[str, Any] | None, sequence: int | None) -> Written:
    """Return what came of a document whose row was `row`, and that was given `sequence` if any."""
    version = row["version"] if row else 0
    if sequence is not None:
        return Written(external_id, version + 1, sequence, new=True)
    return Written(external_id, version, row["sequence"] if row else 0, new=False)


def _summary(external_id: str, row: Mapping[str, Any], *, superseded: bool = False) -> dict[str, Any]:
    state = state_of(row["sequence"], row["applied_sequence"], row["failed_sequence"])
    return {
        "id": external_id,
        "version": row["version"],
        "sequence": row["sequence"],
        "title": row["title"],
        "uri": row["uri"],
        "attributes": row["attributes"],
        "updated_at": row["created_at"] if superseded else row["updated_at"],
        "state": "superseded" if superseded else state,
        "tries": 0 if superseded or state == "searchable" else row["tries"] or 0,
        "error": None if superseded or state == "searchable" else row["error"],
    }


def _no_document(index: ServedIndex, external_id: str) -> NoSuchDocument:
    return NoSuchDocument(f"index {index.namespace}/{index.name} has no document {external_id}")


def _no_version(
    index: ServedIndex, external_id: str, row: Mapping[str, Any], version: int | None
) -> NotFound:
    if not row["kept"] or (version is not None and 0 < version <= row["present"]):
        return DocumentErased(f"document {external_id} was erased")
    return NoSuchDocument(
        f"index {index.namespace}/{index.name} has no version {version} of document {external_id}"
    )
