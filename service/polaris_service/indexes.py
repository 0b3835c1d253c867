"""Which index is meant by a namespace and a name, and how it serves at this moment.

The catalog is asked at most once a second for each index, and at once after the operator said (by
NOTIFY) that it changed something. A request holds one `ServedIndex` from beginning to end, so no
answer mixes generations.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import asyncpg
import orjson
from pydantic import ValidationError

from polaris.errors import NotFound, PolarisError, Unavailable
from polaris.names import CATALOG_CHANNEL, applied_table, chunks_table
from polaris.spec import AttributeType, Chunking, Embedding, PolarisIndexSpec
from polaris.sql import Sql, identifier
from polaris_service.database import Connection, Database

GenerationState = Literal["serving", "loading", "building"]

FRESH_SECONDS = 1.0
_CACHED = 4096

_COLUMNS = """
SELECT i.id, i.namespace, i.name, i.state AS index_state, i.schema_name, i.spec, i.object_generation,
  i.serving, g.number, g.state, g.embedding, g.chunking, g.vector_index, g.ef_search, g.low_water,
  g.recall, g.load_requested_at IS NOT NULL AS load_requested, c.id AS catalog
FROM polaris.catalog c CROSS JOIN polaris.indexes i
LEFT JOIN polaris.generations g ON g.index_id = i.id
"""
_ONE = _COLUMNS + "AND g.number = i.serving WHERE i.namespace = $1 AND i.name = $2"
_ALL = _COLUMNS + "AND g.number = i.serving WHERE i.state = 'active' ORDER BY i.namespace, i.name"
_GENERATIONS = _COLUMNS + "WHERE i.state = 'active' ORDER BY i.namespace, i.name, g.number"


class NoSuchIndex(NotFound):
    """No object of that name serves in this database."""

    code: ClassVar[str] = "no-such-index"


class IndexNotReady(Unavailable):
    """The object is there, and was not made true yet."""

    code: ClassVar[str] = "index-not-ready"


@dataclass(frozen=True)
class ServedIndex:
    """An index as it serves, and one of its generations.

    That is the one that serves, but for workers, who keep the others level too.
    """

    id: int
    """Number in the catalog; the payload of NOTIFY."""
    namespace: str
    name: str
    schema: str
    catalog: str
    """The catalog's id."""
    spec: PolarisIndexSpec
    """The spec that was last made true."""
    object_generation: int
    generation: int
    """Number of the generation that this is about."""
    serving: int | None
    """Number of the one that serves."""
    state: GenerationState
    embedding: Embedding
    chunking: Chunking
    vector_index: str | None
    """Name of the valid index; None: search is exact."""
    ef_search: int
    low_water: int
    """Every document with a sequence up to here was settled when this was read."""
    recall: float | None
    """Measured, 0 to 1."""
    load_requested: bool

    @property
    def serves(self) -> bool:
        """Whether queries are answered from this generation."""
        return self.generation == self.serving

    @cached_property
    def attribute_types(self) -> Mapping[str, AttributeType]:
        """The declared attributes, by name."""
        return MappingProxyType({a.name: a.type for a in self.spec.attributes})

    @cached_property
    def chunks(self) -> Sql:
        """The generation's table of chunks, qualified and quoted."""
        return identifier(self.schema, chunks_table(self.generation))

    @cached_property
    def applied(self) -> Sql:
        """The generation's table of what it has applied, qualified and quoted."""
        return identifier(self.schema, applied_table(self.generation))

    def table(self, name: str) -> Sql:
        """A table of the index's schema (polaris.names), qualified and quoted."""
        return identifier(self.schema, name)


@lru_cache(maxsize=_CACHED)
def _spec(text: str) -> PolarisIndexSpec:
    # The same text again and again: a spec changes once in a while, and is read every second.
    return PolarisIndexSpec.model_validate(orjson.loads(text))


def _spec_of(which: str, text: str) -> PolarisIndexSpec:
    try:
        return _spec(text)
    except ValidationError:
        raise IndexNotReady(
            f"index {which} has a spec that this version of POLARIS does not know: upgrade the service",
            retry_after=30.0,
        ) from None


def served(row: Mapping[str, Any]) -> ServedIndex:
    """Return the index that a row of the catalog describes; raise NoSuchIndex, IndexNotReady."""
    which = f"{row['namespace']}/{row['name']}"
    if row["index_state"] != "active":
        raise NoSuchIndex(f"there is no index {which}: it was deleted ({row['index_state']})")
    if row["spec"] is None or row["number"] is None:
        raise IndexNotReady(f"index {which} is not made yet: see kubectl describe pidx", retry_after=2.0)
    return ServedIndex(
        id=row["id"],
        namespace=row["namespace"],
        name=row["name"],
        schema=row["schema_name"],
        catalog=row["catalog"],
        spec=_spec_of(which, row["spec"]),
        object_generation=row["object_generation"],
        generation=row["number"],
        serving=row["serving"],
        state=row["state"],
        embedding=Embedding.model_validate(orjson.loads(row["embedding"])),
        chunking=Chunking.model_validate(orjson.loads(row["chunking"])),
        vector_index=row["vector_index"],
        ef_search=row["ef_search"],
        low_water=row["low_water"],
        recall=row["recall"],
        load_requested=row["load_requested"],
    )


async def all_served(connection: Connection) -> list[ServedIndex]:
    """Return every index that is made true, by namespace and name."""
    return _served_of(await connection.fetch(_ALL))


async def all_generations(connection: Connection) -> list[ServedIndex]:
    """Return every generation of every index that is made true, whether it serves or not."""
    return _served_of(await connection.fetch(_GENERATIONS))


def _served_of(rows: Iterable[Mapping[str, Any]]) -> list[ServedIndex]:
    found = []
    for row in rows:
        try:
            found.append(served(row))
        except (NoSuchIndex, IndexNotReady):
            continue
    return found


@dataclass
class _Entry:
    """What was found last, or is being looked up."""

    at: float
    index: ServedIndex | PolarisError


class Indexes:
    """Look-up of indexes, cached."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Task[ServedIndex]] = {}
        # How often all was forgotten: an answer asked for before may be older than what it was forgotten for.
        self._forgotten = 0
        database.listen(CATALOG_CHANNEL, self._heard)

    def _heard(self, _: str | None) -> None:
        # Rare, and a look-up costs one row: no need to tell which index is meant.
        self.forget()

    def forget(self) -> None:
        """Ask the catalog again at the next look-up of each index."""
        self._forgotten += 1
        for entry in self._entries.values():
            entry.at = float("-inf")
        self._asking.clear()

    async def get(self, namespace: str, name: str) -> ServedIndex:
        """Return the index as it serves now, at most a second old.

        Raises NoSuchIndex, IndexNotReady, DatabaseUnavailable and its kind.
        """
        if "\x00" in namespace + name:
            raise NoSuchIndex("no name of an index holds NUL")  # nor does any text of PostgreSQL
        key = (namespace, name)
        entry = self._entries.get(key)
        if entry and time.monotonic() - entry.at < FRESH_SECONDS:
            if isinstance(entry.index, PolarisError):
                raise _again(entry.index)
            return entry.index
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(key))
            asking.add_done_callback(lambda task: self._asked(key, task))
        return await asyncio.shield(asking)

    def _asked(self, key: tuple[str, str], task: asyncio.Task[ServedIndex]) -> None:
        if self._asking.get(key) is task:
            del self._asking[key]
        if not task.cancelled():
            task.exception()  # Looked at, also where everybody who asked has gone.

    async def _ask(self, key: tuple[str, str]) -> ServedIndex:
        begun, forgotten = time.monotonic(), self._forgotten
        async with self._database.connection("catalog") as connection:
            row = await connection.fetchrow(_ONE, *key)
        try:
            index = self._parsed(key, row)
        except (NoSuchIndex, IndexNotReady) as error:
            self._keep(key, _Entry(begun, error), forgotten)
            raise
        self._keep(key, _Entry(begun, index), forgotten)
        return index

    def _parsed(self, key: tuple[str, str], row: asyncpg.Record | None) -> ServedIndex:
        if row is None:
            raise NoSuchIndex(f"there is no index {key[0]}/{key[1]} in this service's database")
        return served(row)

    def _keep(self, key: tuple[str, str], entry: _Entry, forgotten: int) -> None:
        if forgotten != self._forgotten:
            return
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > _CACHED:
            self._entries.popitem(last=False)

    async def all(self) -> list[ServedIndex]:
        """Return every index that serves, asked of the catalog now."""
        async with self._database.connection("catalog") as connection:
            return await all_served(connection)


def _again(error: PolarisError) -> PolarisError:
    """Return a copy: an error that is raised twice would gather tracebacks."""
    if isinstance(error, Unavailable):
        return type(error)(str(error), error.retry_after)
    return type(error)(str(error))
