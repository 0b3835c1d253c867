"""The one statement: its plan, and that the setting in it is in force when the graph is searched."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from pgvector.asyncpg import register_vector

from polaris.routing import Kind
from polaris.spec import AttributeType, PolarisIndexSpec
from polaris_service.indexes import ServedIndex
from polaris_service.search import statements
from polaris_service.search.filters import Condition, compile_filter, parse
from search.world import Chunk, Document, SearchIndex, World, clustered, spec

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

ROWS, DIMENSION = 3000, 16
VECTORS = clustered(ROWS, DIMENSION, seed=1)
INTEGER = {"n": AttributeType.INTEGER}


@pytest.fixture(scope="module")
def made(world: World) -> SearchIndex:
    index = world.make("statements", spec(DIMENSION, attributes={"n": "integer"}))
    world.put(
        index,
        (Document(f"d{n}", "some text", [Chunk(0, 4, v)], {"n": n}) for n, v in enumerate(VECTORS)),
    )
    world.build(index)
    # Tables of text are large where it matters; here the planner has to be told so.
    world.execute(f'ANALYZE "{index.schema}".stored_documents, "{index.schema}".stored_versions')
    return index


@pytest.fixture
async def connection(world: World) -> AsyncIterator[asyncpg.Connection]:
    """A session that hears the plan of everything it runs, nested or prepared."""
    made = await asyncpg.connect(world.database.dsn)
    await register_vector(made)
    await made.execute(
        "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on;"
        " SET auto_explain.log_format = 'text'; SET client_min_messages = log"
    )
    try:
        yield made
    finally:
        await made.close()


def shape(made: SearchIndex, kind: Kind, k: int, condition: Condition | None = None) -> str:
    of: PolarisIndexSpec = made.spec
    return statements.search(
        statements.Shape(
            schema=made.schema,
            generation=1,
            type=of.embedding.type,
            dimension=of.embedding.dimension,
            metric=of.embedding.metric,
            vector_schema="public",
            kind=kind,
            k=k,
            condition=condition.sql if condition else None,
        )
    )


async def plan_of(connection: asyncpg.Connection, text: str, *values: Any) -> str:
    """The plan that was really run, from the last of the calls that prepare it."""
    heard: list[str] = []

    def hear(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if "Query Text" in message.message:
            heard.append(message.message)

    connection.add_log_listener(hear)
    # After five calls PostgreSQL may take a generic plan.
    for _ in range(8):
        await connection.fetch(text, *values)
    connection.remove_log_listener(hear)
    assert len(heard) == 8
    return heard[-1]


def rows_of(plan: str, node: str) -> int:
    """Rows that a node of the plan gave."""
    found = re.search(rf"{node}.*\(actual .*?rows=(\d+)", plan)
    assert found, plan
    return int(found[1])


@pytest.mark.parametrize("kind", [Kind.HNSW, Kind.ITERATIVE])
async def test_the_graph_is_used_and_documents_are_joined_row_by_row(
    connection: asyncpg.Connection, made: SearchIndex, kind: Kind
) -> None:
    plan = await plan_of(connection, shape(made, kind, 100), VECTORS[0], "200")
    assert "Index Scan using g1_chunks_vector_" in plan
    assert "stored_documents_pkey" in plan
    assert "stored_versions_pkey" in plan
    assert "Seq Scan" not in plan
    assert "Hash Join" not in plan


@pytest.mark.parametrize("ef", [20, 40, 150, 400])
async def test_ef_search_is_in_force_when_the_graph_is_searched(
    connection: asyncpg.Connection, made: SearchIndex, ef: int
) -> None:
    # A graph that is not scanned iteratively hands out ef_search rows at most; the session's is 40.
    rows = await connection.fetch(shape(made, Kind.HNSW, 1000), VECTORS[0], str(ef))
    assert len(rows) == ef
    assert await connection.fetchval("SHOW hnsw.ef_search") == "40"


async def test_an_iterative_scan_goes_on_beyond_ef_search(
    connection: asyncpg.Connection, made: SearchIndex
) -> None:
    rows = await connection.fetch(shape(made, Kind.ITERATIVE, 1000), VECTORS[0], "20")
    assert len(rows) == 1000
    assert await connection.fetchval("SHOW hnsw.iterative_scan") == "off"


async def test_exact_compares_every_row(connection: asyncpg.Connection, made: SearchIndex) -> None:
    plan = await plan_of(connection, shape(made, Kind.EXACT, 10), VECTORS[0])
    assert "g1_chunks_vector_" not in plan
    assert rows_of(plan, "Seq Scan on g1_chunks") == ROWS


async def test_exact_with_a_filter_compares_what_the_attributes_index_leaves(
    connection: asyncpg.Connection, made: SearchIndex
) -> None:
    condition = compile_filter(parse({"lt": ["n", 100]}, INTEGER), first=2)
    plan = await plan_of(connection, shape(made, Kind.EXACT, 10, condition), VECTORS[0], *condition.values)
    assert "g1_chunks_vector_" not in plan
    assert "g1_by_n_inte" in plan


@pytest.mark.parametrize("kind", list(Kind))
async def test_the_embedding_is_never_selected_and_text_is_cut_for_the_hits_only(
    connection: asyncpg.Connection, made: SearchIndex, kind: Kind
) -> None:
    text = shape(made, kind, 3)
    values = [VECTORS[0]] if kind == Kind.EXACT else [VECTORS[0], "40"]
    [first, *_] = await connection.fetch(text, *values)
    assert list(first.keys()) == [
        "document",
        "version",
        "chunk",
        "span_start",
        "span_end",
        "distance",
        "text",
        "title",
        "uri",
        "attributes",
    ]
    assert first["text"] == "some"
    plan = await plan_of(connection, text, *values)
    assert rows_of(plan, "Index Scan using stored_versions_pkey") == 1


async def test_the_planner_estimates_what_a_filter_leaves(
    connection: asyncpg.Connection, made: SearchIndex
) -> None:
    index = served(made)
    condition = compile_filter(parse({"lt": ["n", 300]}, INTEGER), first=1)
    assert '"Plan Rows": 3000' in await connection.fetchval(statements.estimate(index, None))
    plan = await connection.fetchval(statements.estimate(index, condition.sql), *condition.values)
    found = re.search(r'"Plan Rows": (\d+)', plan)
    assert found
    assert 200 <= int(found[1]) <= 400


def served(made: SearchIndex) -> ServedIndex:
    return ServedIndex(
        id=made.number,
        namespace=made.namespace,
        name=made.name,
        schema=made.schema,
        catalog="",
        spec=made.spec,
        object_generation=1,
        generation=1,
        serving=1,
        state="serving",
        embedding=made.spec.embedding,
        chunking=made.spec.chunking,
        vector_index="g1",
        ef_search=64,
        low_water=0,
        recall=None,
        load_requested=False,
    )


def test_a_statement_is_composed_once_for_each_shape(made: SearchIndex) -> None:
    assert shape(made, Kind.HNSW, 10) is shape(made, Kind.HNSW, 10)
    assert shape(made, Kind.HNSW, 10) is not shape(made, Kind.HNSW, 11)
