"""A search from beginning to end, within its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from polaris.errors import Conflict, DeadlineExceeded
from polaris.routing import Strategy
from polaris_service import vectors
from polaris_service.database import Database, TableMissing
from polaris_service.indexes import Indexes, ServedIndex
from polaris_service.search import filters, freshness
from polaris_service.search.dense import Dense, Found, Hit
from polaris_service.search.questions import Questions
from polaris_service.search.requests import Limits, SearchRequest
from polaris_service.search.sample import Sample
from polaris_service.vectors import Vector


class GenerationGone(Conflict):
    """The vector was made for a generation that no longer serves."""

    code: ClassVar[str] = "generation-gone"


@dataclass
class Timings:
    """Milliseconds by phase."""

    begun: float = field(default_factory=time.perf_counter)
    phases: dict[str, float] = field(default_factory=dict)

    def lap(self, phase: str, since: float) -> float:
        """Add the time since then to a phase; return the time now."""
        now = time.perf_counter()
        self.phases[phase] = round(self.phases.get(phase, 0.0) + (now - since) * 1000, 3)
        return now

    def told(self) -> dict[str, float]:
        """Return the phases and the total."""
        return {**self.phases, "total": round((time.perf_counter() - self.begun) * 1000, 3)}


@dataclass(frozen=True)
class SearchResult:
    """Hits, and how they were found. All of them are of one generation."""

    index: ServedIndex
    """As it served this search."""
    found: Found
    timings: Mapping[str, float]
    degraded: tuple[str, ...] = ()
    """What was left out to keep a deadline or a limit."""
    explain: bool = False

    @property
    def hits(self) -> tuple[Hit, ...]:
        """Best first."""
        return self.found.hits

    def body(self) -> bytes:
        """Return the response as JSON."""
        document: dict[str, Any] = {
            "hits": [_hit(hit) for hit in self.found.hits],
            "generation": self.index.generation,
            "strategy": self.found.strategy.kind,
            "degraded": self.degraded,
            "timings_ms": self.timings,
        }
        if self.explain:
            document["explain"] = self._explanation()
        return orjson.dumps(document)

    def _explanation(self) -> dict[str, Any]:
        found, embedding = self.found, self.index.embedding
        return {
            "tried": [_strategy(strategy) for strategy in found.tried],
            "rows": found.rows,
            "matches": found.matches,
            "vector_index": self.index.vector_index,
            "model": embedding.model,
            "metric": embedding.metric,
        }


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "document": hit.document,
        "version": hit.version,
        "chunk": hit.chunk,
        "span": (hit.start, hit.end),
        "score": hit.score,
        "text": hit.text,
        "title": hit.title,
        "uri": hit.uri,
        # PostgreSQL wrote it as JSON already.
        "attributes": orjson.Fragment(hit.attributes),
    }


def _strategy(strategy: Strategy) -> dict[str, Any]:
    return {
        "strategy": strategy.kind,
        "reason": strategy.reason,
        "detail": strategy.sentence,
        "ef": strategy.ef,
    }


class Searcher:
    """Searches indexes."""

    def __init__(
        self,
        database: Database,
        indexes: Indexes,
        questions: Questions,
        limits: Limits,
        sample: Sample | None = None,
    ) -> None:
        self.limits = limits
        self._sample = sample
        self._database = database
        self._indexes = indexes
        self._questions = questions
        self._dense = Dense(database)

    async def search(self, index: ServedIndex, request: SearchRequest) -> SearchResult:
        """Return the hits of a request.

        Where the generation is dropped between look-up and query, the index is looked up again, once.
        Raises InvalidInput, GenerationGone, EmbedderUnavailable, EmbedderRefused, DatabaseUnavailable
        and its kind, and DeadlineExceeded, after which nothing of the search runs any more.
        """
        try:
            return await self._once(index, request)
        except TableMissing:
            self._indexes.forget()
            return await self._once(await self._indexes.get(index.namespace, index.name), request)

    async def _once(self, index: ServedIndex, request: SearchRequest) -> SearchResult:
        timings = Timings()
        _check_generation(index, request)
        tree = None
        if request.filter is not None:
            tree = filters.parse(request.filter, index.attribute_types, self.limits.filter)
        given = None if request.vector is None else vectors.parse(request.vector, index.embedding)
        async with _within(request.seconds) as until:
            if request.after_sequence is not None:
                since = time.perf_counter()
                await freshness.wait(self._database, index, request.after_sequence, until)
                timings.lap("wait", since)
            since = time.perf_counter()
            vector = given if given is not None else await self._embedded(index, request)
            since = timings.lap("embed", since)
            found = await self._dense.search(index, vector, request.k, tree)
            timings.lap("search", since)
        return SearchResult(index, found, timings.told(), explain=request.explain)

    async def _embedded(self, index: ServedIndex, request: SearchRequest) -> Vector:
        vector = await self._questions.vector(index.embedding, request.query or "")
        if self._sample is not None:
            self._sample.take(index, vector)
        return vector


def _check_generation(index: ServedIndex, request: SearchRequest) -> None:
    if request.generation is not None and request.generation != index.generation:
        embedding = index.embedding
        raise GenerationGone(
            f"generation {request.generation} does not serve; generation {index.generation} does, with"
            f" {embedding.provider}/{embedding.model} revision {embedding.revision},"
            f" {embedding.dimension} dimensions"
        )


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[float]:
    """Cancel the block when the time is up, the statement that runs in PostgreSQL included.

    Yields the end in the time of the event loop.
    """
    until = asyncio.get_running_loop().time() + seconds
    timeout = asyncio.timeout_at(until)
    try:
        async with timeout:
            yield until
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlineExceeded(f"the search took longer than {round(seconds * 1000)} ms") from None
