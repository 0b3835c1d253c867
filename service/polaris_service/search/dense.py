"""Dense search: estimate, choose, run; and once more, exactly, where fewer than k hits came."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import asyncpg
import orjson

from polaris import routing
from polaris.routing import IndexFacts, Kind, Strategy
from polaris_service.database import Connection, Database
from polaris_service.indexes import ServedIndex
from polaris_service.search import statements
from polaris_service.search.filters import Condition, Filter, compile_filter
from polaris_service.vectors import Vector, score

_FRESH_SECONDS = 10.0
_REMEMBERED = 4096


class Hit(NamedTuple):
    """A chunk that was found. The span counts code points of that version's text, `[start, end)`."""

    document: str
    version: int
    chunk: int
    start: int
    end: int
    score: float
    """Higher is better; its scale is the metric's (`vectors.score`)."""
    text: str
    title: str | None
    uri: str | None
    attributes: str
    """The document's attributes, as JSON text."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    hits: tuple[Hit, ...]
    """min(k, matches) of them, best first."""
    tried: tuple[Strategy, ...]
    """The last one found the hits."""
    rows: int
    """Estimate of all rows."""
    matches: int | None
    """Estimate of what the filter leaves; None without a filter."""

    @property
    def strategy(self) -> Strategy:
        """What found the hits."""
        return self.tried[-1]


class Estimates:
    """The planner's estimates of row counts, remembered for ten seconds.

    They only choose the way, never the result, so a wrong one costs time and nothing else.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, ...], tuple[float, int]] = OrderedDict()

    async def rows(self, connection: Connection, index: ServedIndex, condition: Condition | None) -> int:
        """Return about how many rows pass the condition (compiled with `first=1`)."""
        values = condition.values if condition else ()
        key = (index.chunks, condition.sql if condition else None, *map(_hashable, values))
        known = self._known.get(key)
        now = time.monotonic()
        if known and now - known[0] < _FRESH_SECONDS:
            return known[1]
        text = statements.estimate(index, condition.sql if condition else None)
        plan = await connection.fetchval(text, *values)
        estimate = int(orjson.loads(plan)[0]["Plan"]["Plan Rows"])
        self._known[key] = (now, estimate)
        self._known.move_to_end(key)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return estimate


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Dense:
    """Searches by vector."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._estimates = Estimates()

    async def search(self, index: ServedIndex, vector: Vector, k: int, tree: Filter | None) -> Found:
        """Return min(k, matches) hits: in the order of distance, ties in the order of first arrival.

        One round trip, and one more for a filter or an index of which nothing is known yet. Raises
        DatabaseUnavailable and its kind; TableMissing where the generation was dropped meanwhile.
        """
        async with self._database.connection("search") as connection:
            run = _Run(connection, index, self._database.vector_schema, vector, k, tree)
            rows = await self._estimates.rows(connection, index, None)
            matches = None
            # Without a vector index there is nothing to choose.
            if tree is not None and index.vector_index is not None:
                matches = await self._estimates.rows(connection, index, compile_filter(tree, 1))
            strategy = routing.choose(_facts(index, rows), k, matches)
            tried = [strategy]
            records = await run.once(strategy)
            again = routing.after_too_few(strategy, len(records), k)
            if again is not None:
                tried.append(again)
                records = await run.once(again)
        metric = index.embedding.metric
        hits = tuple(_hit(record, score(record["distance"], metric)) for record in records)
        return Found(hits, tuple(tried), rows, matches)


def _facts(index: ServedIndex, rows: int) -> IndexFacts:
    return IndexFacts(indexed=index.vector_index is not None, ef_search=index.ef_search, rows=rows)


@dataclass(frozen=True)
class _Run:
    """One search's statements on one connection."""

    connection: Connection
    index: ServedIndex
    vector_schema: str
    vector: Vector
    k: int
    tree: Filter | None

    async def once(self, strategy: Strategy) -> Sequence[asyncpg.Record]:
        kind = strategy.kind
        first = statements.FIRST_OF_FILTER[kind]
        condition = None if self.tree is None else compile_filter(self.tree, first)
        text = statements.search(
            statements.Shape.of(
                self.index, self.vector_schema, kind, self.k, condition.sql if condition else None
            )
        )
        ef = () if kind == Kind.EXACT else (str(strategy.ef),)
        records: Sequence[asyncpg.Record] = await self.connection.fetch(
            text, self.vector, *ef, *(condition.values if condition else ())
        )
        return records


def _hit(record: asyncpg.Record, value: float) -> Hit:
    document, version, chunk, start, end, _, text, title, uri, attributes = record
    return Hit(document, version, chunk, start, end, value, text, title, uri, attributes)
