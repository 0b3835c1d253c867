"""Bringing a generation level with the documents: what a worker does, again and again.

A document is behind where its sequence is greater than what the generation has applied or given up
on. A step claims some that are (a row lock in `g<n>_applied`, others' left out), cuts and embeds them,
replaces their chunks and marks them applied, all in one transaction. So nothing has to be cleaned up
after a worker that was killed: its locks go with its connection, and the documents are still behind.

Deletions come first, in a transaction of their own: they need no embedder, so they wait for none, and are
applied also where nobody embeds the generation's model.

A batch that fails is tried again one document at a time, so a poisoned one never stops others; its
tries, its error and its next try stand in its row. An embedder that is away is nobody's fault: the
step waits and no try is counted.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import numpy as np

from polaris.errors import (
    Conflict,
    DeadlineExceeded,
    EmbedderRefused,
    EmbedderUnavailable,
    PolarisError,
    Unavailable,
)
from polaris.spec import Embedding
from polaris.telemetry import logger
from polaris_service import vectors
from polaris_service.database import Connection, Database
from polaris_service.documents import loading
from polaris_service.documents import statements as sql
from polaris_service.documents.chunking import Span, cut
from polaris_service.documents.rows import Chunks, Version, text_hash
from polaris_service.documents.store import claim_chunks, put_chunks
from polaris_service.embed.provider import Kind, Provider
from polaris_service.indexes import IndexNotReady, ServedIndex

_log = logger(__name__)

_BATCH_BYTES = 4 * 2**20
"""Text of a batch; the first document is taken whatever its size."""
_MISSING_ROWS = 1000
_DELETIONS = 1000
BACKLOG_DOCUMENTS = 10_000
"""Where the count of what waits ends: 5 ms of PostgreSQL's time."""
_LOW_WATER_SECONDS = 5.0
_RENEW_SECONDS = 1.0
_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 60.0
_ERROR_CHARACTERS = 500
# A title may take this share of a chunk's tokens; a longer one is not embedded with the chunk.
_TITLE_SHARE = 0.25
_PROBE = "polaris"
# A claim is idle in its transaction while the embedder works: no default of the server, database or role may
# end it halfway, again and again. The driver's own timer bounds each statement.
_NO_LIMITS = {"idle_in_transaction_session_timeout": "0", "statement_timeout": "0"}
_TRANSACTION_TIMEOUT_SINCE = 17
# The locks of a worker that vanished without a word (its machine, its network) go within a minute; by
# Linux's own defaults it would be two hours. PostgreSQL ignores them on a Unix socket.
_KEEPALIVES = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "50000",
}
# For the transaction only: a setting of the session would stay behind in PgBouncer.
_SET_LOCAL = """
SELECT set_config(name, value, true) FROM unnest($1::text[], $2::text[]) AS given(name, value)
"""


@dataclass(frozen=True)
class WorkLimits:
    """Limits that settings say."""

    batch_chunks: int = 64
    max_tries: int = 5
    bulk_documents: int = 10_000


@dataclass(frozen=True)
class Outcome:
    """What a step came to."""

    documents: int = 0
    """Documents that were applied."""
    chunks: int = 0
    embedded: int = 0
    """Chunks whose vectors were not known already."""
    failed: int = 0
    """Documents that failed, to be tried again or given up on."""
    given_up: int = 0
    """Of these, those that are given up on until they change."""
    more: bool = False
    """There may be more to do at once."""
    look_again: float | None = None
    """Seconds until something is known to be due."""
    applied: tuple[int, ...] = ()
    """The sequences of documents that became searchable."""
    behind: int = 0
    """Sequences between the low water and the clock: at least as many as documents are behind."""


@dataclass(frozen=True)
class _Cut:
    """A document of a batch, cut."""

    row: asyncpg.Record
    attributes: str = "{}"
    spans: tuple[Span, ...] = ()
    texts: tuple[str, ...] = ()
    """What is embedded for each span."""
    hashes: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Failure:
    """What is written down after a try that failed."""

    tries: int
    failed_sequence: int
    wait: float | None
    """Seconds until the next try; None: it was given up on."""


def after_failure(tries: int, failed_sequence: int, sequence: int, max_tries: int, jitter: float) -> Failure:
    """Return what a document's row says after one more failure; `jitter` is from 0 to 1.

    What was given up on and has changed since begins its tries anew.
    """
    now = 1 if failed_sequence > 0 else tries + 1
    if now >= max_tries:
        return Failure(now, sequence, None)
    wait = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** (now - 1))
    return Failure(now, 0, wait * (0.5 + jitter))


def embedded_text(title: str | None, chunk: str) -> str:
    """Return what is embedded for a chunk: with the document's title, unless it begins with it."""
    if not title or chunk.lstrip("#=* ").startswith(title):
        return chunk
    return f"{title}\n{chunk}"


class Level:
    """One generation of an index, and how far this process knows it to be.

    Without a provider, what is deleted is removed, and what is to be embedded is left to other workers.
    `siblings` are the generations of the same model: what they have of the same text is copied.
    """

    def __init__(
        self,
        database: Database,
        provider: Provider | None,
        index: ServedIndex,
        limits: WorkLimits,
        siblings: Sequence[int] = (),
    ) -> None:
        self.index = index
        self.provider = provider
        self._database = database
        self._limits = limits
        self.siblings = tuple(siblings)
        self._sql = sql.work_statements(index.schema, index.generation)
        # Everything up to here was settled, claimed or waiting for its next try when we last looked:
        # a place to go on from, so that a long backlog is not read from its beginning at each step.
        self._cursor = 0
        # Every deletion up to here is applied. It is true for good, so it never goes back.
        self._deletions_cursor = 0
        self._chunks_per_document = 4.0
        self._low_water_at = time.monotonic()
        self._renewed_at = float("-inf")

    async def step(self) -> Outcome:
        """Apply some documents that are behind.

        Raises Unavailable (the database, the embedder, an index that is being built) and its kind;
        what is wrong with a single document is written down and not raised.
        """
        async with self._database.connection("look") as connection:
            head = await connection.fetchrow(self._sql.head, self.index.id, self.index.generation)
            if head is None or head["state"] == "building":
                return Outcome()
            behind = head["sequence"] - head["low_water"]
            if behind == 0:
                return await self._idle(connection, head)
        deleted, more = await self._apply_deletions(head)
        if self.provider is None:
            await self._keep_low_water()
            return Outcome(deleted, more=more, behind=behind)
        outcome = await self._embed_some(head, self.provider)
        return replace(outcome, documents=outcome.documents + deleted, more=outcome.more or more)

    async def backlog(self) -> tuple[int, float]:
        """Return how many documents wait, BACKLOG_DOCUMENTS at most, and the oldest's age in seconds."""
        async with self._database.connection("look") as connection:
            row = await connection.fetchrow(
                self._sql.backlog, self.index.id, self.index.generation, BACKLOG_DOCUMENTS
            )
        return (0, 0.0) if row is None else (row["documents"], row["seconds"])

    async def _embed_some(self, head: asyncpg.Record, provider: Provider) -> Outcome:
        async with self._database.connection("look") as connection:
            await self._ask_for_load(connection, head)
            self._cursor = max(self._cursor, head["low_water"])
            await connection.execute(self._sql.missing, self._cursor, _MISSING_ROWS)
        outcome = await self._apply(provider)
        if outcome is None:
            return await self._nothing_claimed(head)
        await self._keep_load(head)
        await self._keep_low_water()
        return outcome

    async def _apply_deletions(self, head: asyncpg.Record) -> tuple[int, bool]:
        """Remove what is searchable of deleted documents; return how many, and whether there may be more.

        One that somebody else holds (an older version is being embedded) is looked for again in the next
        step: the cursor stays before it.
        """
        start = max(self._deletions_cursor, head["low_water"])
        async with self._database.connection("look") as connection:
            found = await connection.fetch(self._sql.deletions, start, _DELETIONS)
            if found:
                await connection.execute(self._sql.missing_of, [row["id"] for row in found])
        # All sequences up to the clock's were given out before the look, in the order of commits.
        end = found[-1]["sequence"] if len(found) == _DELETIONS else head["sequence"]
        claimed = await self._remove_deleted([row["id"] for row in found]) if found else set()
        held = [row["sequence"] for row in found if row["id"] not in claimed]
        self._deletions_cursor = max(self._deletions_cursor, held[0] - 1 if held else end)
        return len(claimed), len(found) == _DELETIONS and bool(claimed)

    async def _remove_deleted(self, documents: Sequence[int]) -> set[int]:
        async with self._database.transaction("work") as connection:
            await outlast_the_embedder(connection)
            await claim_chunks(connection, self.index)
            claimed = await connection.fetch(self._sql.claim_deletions, documents)
            if claimed:
                await self._replace(connection, [_Cut(row) for row in claimed], {})
        return {row["id"] for row in claimed}

    async def _idle(self, connection: Connection, head: asyncpg.Record) -> Outcome:
        if head["load_requested"] and not await loading.clear(
            connection, self.index.id, self.index.generation
        ):
            return Outcome(look_again=_RENEW_SECONDS)
        return Outcome()

    async def _nothing_claimed(self, head: asyncpg.Record) -> Outcome:
        """From the cursor on there is nothing to claim: begin anew, or end."""
        behind = head["sequence"] - head["low_water"]
        if self._cursor > head["low_water"]:
            self._cursor = 0
            await self._raise_low_water()
            return Outcome(more=True, behind=behind)
        await self._raise_low_water()
        async with self._database.connection("look") as connection:
            seconds = await connection.fetchval(self._sql.next_try, head["low_water"])
        look_again = None if seconds is None else max(0.05, seconds)
        if head["load_requested"]:
            look_again = min(look_again or _RENEW_SECONDS, _RENEW_SECONDS)
        return Outcome(look_again=look_again, behind=behind)

    async def _keep_low_water(self) -> None:
        if time.monotonic() - self._low_water_at >= _LOW_WATER_SECONDS:
            await self._raise_low_water()

    async def _raise_low_water(self) -> None:
        self._low_water_at = time.monotonic()
        async with self._database.connection("look") as connection:
            await connection.execute(self._sql.raise_low_water, self.index.id, self.index.generation)

    async def _ask_for_load(self, connection: Connection, head: asyncpg.Record) -> None:
        """Ask the operator to let a long backlog be loaded first and indexed after."""
        limit = self._limits.bulk_documents
        many = head["indexed"] and head["sequence"] - head["low_water"] > limit
        if not many or head["load_requested"] or self._renewed_lately():
            return
        self._renewed_at = time.monotonic()
        if (
            await connection.fetchval(self._sql.few_chunks, limit // 10)
            and await connection.fetchval(self._sql.many_behind, head["low_water"], limit) >= limit
        ):
            await loading.request(connection, self.index.id, self.index.generation)

    async def _keep_load(self, head: asyncpg.Record) -> None:
        """Say that a load is still under way: there was something to do for us."""
        if head["load_requested"] and not self._renewed_lately():
            self._renewed_at = time.monotonic()
            async with self._database.connection("look") as connection:
                await loading.request(connection, self.index.id, self.index.generation)

    def _renewed_lately(self) -> bool:
        return time.monotonic() - self._renewed_at < _RENEW_SECONDS

    # --- one batch ---

    async def _apply(self, provider: Provider) -> Outcome | None:
        """Claim and apply a batch; None where nothing can be claimed."""
        claimed: list[asyncpg.Record] = []
        limit = max(
            1, min(self._limits.batch_chunks, int(self._limits.batch_chunks / self._chunks_per_document))
        )
        try:
            async with self._database.transaction("work") as connection:
                await outlast_the_embedder(connection)
                await claim_chunks(connection, self.index)
                claimed += await connection.fetch(self._sql.claim, self._cursor, limit)
                if not claimed:
                    return None
                before, self._cursor = self._cursor, claimed[-1]["sequence"]
                outcome = await self._bring_level(connection, provider, claimed)
            if outcome.documents < len(claimed):
                self._cursor = before  # Some were too large for this batch.
        except (asyncio.CancelledError, IndexNotReady):
            raise
        except Exception as error:
            if not claimed or not await self._is_about_documents(provider, error):
                raise
            return await self._one_by_one(provider, claimed)
        self._chunks_per_document += 0.2 * (
            max(1.0, outcome.chunks / outcome.documents) - self._chunks_per_document
        )
        return outcome

    async def _is_about_documents(self, provider: Provider, error: Exception) -> bool:
        """Return whether a failure may be about one of the documents; raise what it is about otherwise."""
        if isinstance(error, Unavailable | DeadlineExceeded | Conflict):
            return False
        if isinstance(error, EmbedderRefused):
            await self._check_embedder(provider)
        return True

    async def _check_embedder(self, provider: Provider) -> None:
        """Raise EmbedderUnavailable where not even a harmless text is embedded.

        A wrong key or model must not make every document a failed one.
        """
        try:
            await self._embed(provider, [_PROBE])
        except EmbedderRefused as error:
            raise EmbedderUnavailable(
                f"provider {provider.name} embeds nothing: {error}", retry_after=10.0
            ) from None

    async def _one_by_one(self, provider: Provider, claimed: Sequence[asyncpg.Record]) -> Outcome:
        """Try each document of a batch that failed in a transaction of its own."""
        documents = chunks = embedded = failed = given_up = 0
        applied: tuple[int, ...] = ()
        for row in claimed:
            try:
                async with self._database.transaction("work") as connection:
                    await outlast_the_embedder(connection)
                    await claim_chunks(connection, self.index)
                    again = await connection.fetch(self._sql.claim_one, row["id"])
                    if not again:
                        continue
                    outcome = await self._bring_level(connection, provider, again)
                documents, chunks = documents + 1, chunks + outcome.chunks
                embedded += outcome.embedded
                applied += outcome.applied
            except (asyncio.CancelledError, IndexNotReady):
                raise
            except Exception as error:
                if not await self._is_about_documents(provider, error):
                    raise
                given_up += await self._write_down(row, error)
                failed += 1
        return Outcome(documents, chunks, embedded, failed, given_up, more=True, applied=applied)

    async def _write_down(self, row: asyncpg.Record, error: Exception) -> bool:
        """Note a failure; return whether the document is given up on."""
        known = isinstance(error, PolarisError)
        why = str(error)[:_ERROR_CHARACTERS] if known else f"failed unexpectedly: {type(error).__name__}"
        async with self._database.transaction("work") as connection:
            now = await connection.fetchrow(self._sql.tries, row["id"])
            if now is None or now["sequence"] >= row["sequence"]:
                return False
            failure = after_failure(
                now["tries"],
                now["failed_sequence"],
                row["sequence"],
                self._limits.max_tries,
                random.random(),  # noqa: S311  spreads retries, guards nothing
            )
            await connection.execute(
                self._sql.fail, row["id"], failure.tries, why, failure.failed_sequence, failure.wait
            )
        _log.warning(
            "document failed",
            index=f"{self.index.namespace}/{self.index.name}",
            document=row["id"],
            sequence=row["sequence"],
            tries=failure.tries,
            given_up=failure.wait is None,
            why=why,
            exc_info=None if known else error,
        )
        return failure.wait is None

    async def _bring_level(
        self, connection: Connection, provider: Provider, claimed: Sequence[asyncpg.Record]
    ) -> Outcome:
        """Cut, embed and write documents, in the transaction that claimed them."""
        documents = await self._cut(connection, provider, claimed)
        made, embedded = await self._vectors(connection, provider, documents)
        await self._replace(connection, documents, made)
        chunks = sum(len(document.spans) for document in documents)
        applied = tuple(document.row["sequence"] for document in documents)
        return Outcome(len(documents), chunks, embedded, more=True, applied=applied)

    async def _cut(
        self, connection: Connection, provider: Provider, claimed: Sequence[asyncpg.Record]
    ) -> list[_Cut]:
        living = {row["id"]: row for row in claimed}
        versions = await connection.fetch(
            self._sql.texts, list(living), [row["version"] for row in living.values()], _BATCH_BYTES
        )
        loop = asyncio.get_running_loop()

        def count(texts: Sequence[str]) -> Sequence[int]:
            # Called in a thread, so that cutting a large text stops nobody; the provider is asynchronous.
            counting = provider.count_tokens(self.index.embedding.model, texts)
            return asyncio.run_coroutine_threadsafe(counting, loop).result()

        def cut_all() -> list[_Cut]:
            return [self._cut_one(living[version["id"]], version, count) for version in versions]

        return await asyncio.to_thread(cut_all)

    def _cut_one(
        self, row: asyncpg.Record, version: asyncpg.Record, count: Callable[[Sequence[str]], Sequence[int]]
    ) -> _Cut:
        chunking = self.index.chunking
        title = version["title"]
        room = chunking.max_tokens
        if title:
            tokens = count([title])[0]
            title = title if tokens <= room * _TITLE_SHARE else None
            room -= tokens if title else 0
        spans = cut(version["text"], count, room, min(chunking.overlap_tokens, room // 2))
        texts = tuple(embedded_text(title, span.of(version["text"])) for span in spans)
        return _Cut(row, version["attributes"], tuple(spans), texts, tuple(map(text_hash, texts)))

    async def _vectors(
        self, connection: Connection, provider: Provider, documents: Sequence[_Cut]
    ) -> tuple[dict[tuple[int, bytes], Any], int]:
        """Return the vector of each text by document and hash, and how many were not known before."""
        # An edit of a document embeds what is new in it; a first version has nothing to look for here.
        edited = [d.row["id"] for d in documents if d.spans and d.row["applied_version"]]
        made = await self._known(connection, self.index.generation, edited)
        for sibling in self.siblings:
            cut_ones = [d.row["id"] for d in documents if d.spans]
            made = await self._known(connection, sibling, cut_ones) | made
        missing = {
            (document.row["id"], hashed): text
            for document in documents
            for text, hashed in zip(document.texts, document.hashes, strict=True)
            if (document.row["id"], hashed) not in made
        }
        keys, texts = list(missing), list(missing.values())
        for start in range(0, len(texts), self._limits.batch_chunks):
            part = slice(start, start + self._limits.batch_chunks)
            made.update(zip(keys[part], await self._embed(provider, texts[part]), strict=True))
        return made, len(texts)

    async def _known(
        self, connection: Connection, generation: int, documents: Sequence[int]
    ) -> dict[tuple[int, bytes], Any]:
        """Return the vectors that a generation has of these documents, by document and hash of the text."""
        if not documents:
            return {}
        statement = sql.work_statements(self.index.schema, generation).known
        try:
            async with connection.transaction():
                rows = await connection.fetch(statement, documents)
        except asyncpg.UndefinedTableError:
            return {}  # Its time was over.
        return {(row["document_id"], row["text_hash"]): row["embedding"].to_numpy() for row in rows}

    async def _embed(self, provider: Provider, texts: Sequence[str]) -> list[vectors.Vector]:
        embedding = self.index.embedding
        try:
            found = await provider.embed(embedding.model, texts, Kind.PASSAGE)
        except OSError as error:  # In a block where the database's are expected.
            raise EmbedderUnavailable(f"the embedder failed: {type(error).__name__}") from error
        _check(found, embedding)
        return list(found)

    async def _replace(
        self,
        connection: Connection,
        documents: Sequence[_Cut],
        made: dict[tuple[int, bytes], Any],
    ) -> None:
        statements = sql.statements(self.index.schema, self.index.generation)
        await connection.execute(statements.share_switch)
        await connection.execute(statements.remove_chunks, [document.row["id"] for document in documents])
        chunks = [
            Chunks(
                Version(document.row["id"], document.row["version"], document.attributes),
                document.spans,
                document.hashes,
            )
            for document in documents
        ]
        rows = [made[document.row["id"], hashed] for document in documents for hashed in document.hashes]
        if rows:
            await put_chunks(connection, self.index, chunks, np.stack(rows))
        await connection.execute(
            statements.mark_applied,
            [document.row["id"] for document in documents],
            [document.row["version"] for document in documents],
            [document.row["sequence"] for document in documents],
            [len(document.spans) for document in documents],
        )


async def outlast_the_embedder(connection: Connection) -> None:
    """Let the transaction last as long as its work; and its locks not much longer than the worker."""
    modern = connection.get_server_version().major >= _TRANSACTION_TIMEOUT_SINCE
    limits = _NO_LIMITS | ({"transaction_timeout": "0"} if modern else {})
    chosen = limits | _KEEPALIVES
    await connection.execute(_SET_LOCAL, list(chosen), list(chosen.values()))


def _check(found: np.ndarray[Any, Any], embedding: Embedding) -> None:
    if len(found) and found.shape[1:] != (embedding.dimension,):
        raise EmbedderRefused(
            f"its vectors have {found[0].size} dimensions, the index has {embedding.dimension}"
        )
    for number, wrong in vectors.unusable(found, embedding).items():
        raise EmbedderRefused(f"the vector of text {number} {wrong}")
