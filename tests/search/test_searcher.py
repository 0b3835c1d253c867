"""Searches on real PostgreSQL: right for every metric and type, k hits whatever happened, in time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest

from polaris.errors import (
    DeadlineExceeded,
    EmbedderRefused,
    EmbedderUnavailable,
    InvalidInput,
)
from polaris.routing import Kind, Reason
from polaris.spec import Embedding, Metric, VectorType
from polaris_service.database import Database
from polaris_service.indexes import Indexes, NoSuchIndex
from polaris_service.search.dense import Hit
from polaris_service.search.questions import Questions
from polaris_service.search.requests import Limits, parse
from polaris_service.search.searcher import GenerationGone, Searcher, SearchResult
from search.world import Chunk, Document, SearchIndex, World, clustered, distances, held, spec

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

ROWS, DIMENSION = 3000, 24
VECTORS = clustered(ROWS, DIMENSION, seed=11)
QUERIES = clustered(ROWS + 20, DIMENSION, seed=11)[ROWS:] * 0.9
ATTRIBUTES = {"n": "integer", "lang": "keyword"}
TEXT = "Primeira frase. Second sentence: ação, coração, 東京. Fim."


Search = Callable[[SearchIndex, dict[str, Any]], Awaitable[SearchResult]]


def documents(vectors: npt.NDArray[np.float32]) -> list[Document]:
    """Two chunks each; the attributes tell which."""
    return [
        Document(
            f"doc/{n}",
            TEXT,
            [Chunk(0, 15, vectors[2 * n]), Chunk(16, len(TEXT), vectors[2 * n + 1])],
            {"n": n, "lang": "pt" if n % 3 else "en"},
            title=f"Title {n}",
            uri=f"https://example.org/{n}",
        )
        for n in range(len(vectors) // 2)
    ]


def vector_of(hit: Hit) -> int:
    return 2 * int(hit.document.removeprefix("doc/")) + hit.chunk


class Embedder:
    """Makes a vector of a text, and counts; a double of the providers."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def __call__(self, embedding: Embedding, text: str) -> npt.NDArray[np.float32]:
        self.asked.append(text)
        self.begun.set()
        await self.open.wait()
        if self.error:
            raise self.error
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return np.random.default_rng(seed).standard_normal(embedding.dimension).astype(np.float32)


@pytest.fixture
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
async def indexes(database: Database) -> Indexes:
    return Indexes(database)


@pytest.fixture
async def search(database: Database, indexes: Indexes, embedder: Embedder) -> Search:
    searcher = Searcher(database, indexes, Questions(embedder), Limits(seconds=20))

    async def run(made: SearchIndex, body: dict[str, Any]) -> SearchResult:
        index = await indexes.get(made.namespace, made.name)
        return await searcher.search(index, parse(body, searcher.limits))

    return run


@pytest.fixture(scope="module")
def large(world: World) -> SearchIndex:
    """Three thousand chunks with a graph."""
    made = world.make("large", spec(DIMENSION, attributes=ATTRIBUTES))
    world.put(made, documents(VECTORS))
    world.build(made)
    return made


# --- right ---


@pytest.mark.parametrize("kind", ["halfvec", "vector"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
async def test_hits_are_those_of_brute_force(world: World, search: Search, metric: str, kind: str) -> None:
    made = world.make(f"brute-{metric}-{kind}", spec(DIMENSION, metric=metric, kind=kind))
    world.put(made, documents(VECTORS))
    of = made.spec.embedding
    rows = held(VECTORS, of.type)

    async def check(strategy: Kind, least: float) -> None:
        recall = []
        for query in QUERIES:
            result = await search(made, {"vector": query.tolist(), "k": 10})
            assert result.found.strategy.kind == strategy
            all_distances = distances(rows, held(query, of.type), of.metric)
            wanted = set(np.argsort(all_distances, kind="stable")[:10].tolist())
            found = [vector_of(hit) for hit in result.hits]
            assert len(set(found)) == 10
            recall.append(len(wanted & set(found)) / 10)
            told = [-hit.score if of.metric != Metric.COSINE else 1 - hit.score for hit in result.hits]
            assert told == sorted(told)
            assert np.allclose(told, all_distances[found], rtol=1e-4, atol=1e-4)
        assert np.mean(recall) >= least

    await check(Kind.EXACT, 1.0)
    world.build(made)
    world.run("SELECT pg_notify('polaris_catalog', %s)", str(made.number))
    for _ in range(100):
        if (await search(made, {"vector": QUERIES[0].tolist()})).index.vector_index:
            break
        await asyncio.sleep(0.05)
    await check(Kind.HNSW, 0.97)


async def test_a_hit_says_where_it_stands(search: Search, large: SearchIndex) -> None:
    [hit] = (await search(large, {"vector": VECTORS[41].tolist(), "k": 1})).hits
    assert (hit.document, hit.version, hit.chunk) == ("doc/20", 1, 1)
    assert (hit.start, hit.end) == (16, len(TEXT))
    assert hit.text == TEXT[16:]
    assert (hit.title, hit.uri) == ("Title 20", "https://example.org/20")
    assert orjson.loads(hit.attributes) == {"n": 20, "lang": "pt"}
    assert hit.score == pytest.approx(1, abs=1e-3)


async def test_equal_distances_come_in_the_order_of_arrival(world: World, search: Search) -> None:
    made = world.make("ties", spec(4))
    same = np.ones((40, 4), dtype=np.float32)
    world.put(made, documents(same))
    found = [vector_of(h) for h in (await search(made, {"vector": [1, 1, 1, 1], "k": 15})).hits]
    assert found == list(range(15))


@pytest.mark.parametrize(
    ("tree", "passes"),
    [
        ({"eq": ["lang", "pt"]}, lambda n: n % 3 != 0),
        ({"ne": ["lang", "pt"]}, lambda n: n % 3 == 0),
        ({"lt": ["n", 30]}, lambda n: n < 30),
        ({"and": [{"gte": ["n", 700]}, {"not": {"in": ["lang", ["en"]]}}]}, lambda n: n >= 700 and n % 3),
        ({"eq": ["lang", "fr"]}, lambda _: False),
        ({"lt": ["n", 3]}, lambda n: n < 3),
    ],
)
async def test_a_filter_leaves_its_rows_and_min_of_k_and_matches_come(
    search: Search, large: SearchIndex, tree: dict[str, Any], passes: Callable[[int], bool]
) -> None:
    rows = np.array([n for n in range(ROWS) if passes(n // 2)])
    query = QUERIES[1]
    for k in (1, 10, 100, 1000):
        result = await search(large, {"vector": query.tolist(), "k": k, "filter": tree})
        found = [vector_of(hit) for hit in result.hits]
        assert len(found) == len(set(found)) == min(k, len(rows))
        assert set(found) <= set(rows.tolist())
        if result.found.strategy.kind == Kind.EXACT and len(rows):
            order = np.argsort(
                distances(
                    held(VECTORS[rows], VectorType.HALFVEC), held(query, VectorType.HALFVEC), Metric.COSINE
                )
            )
            assert len(set(rows[order][:k].tolist()) & set(found)) >= 0.99 * len(found)


async def test_every_way_is_taken_where_it_is_due(search: Search, large: SearchIndex) -> None:
    query = {"vector": QUERIES[0].tolist()}
    reasons = {
        (await search(large, {**query, **more})).found.strategy.reason
        for more in (
            {},
            {"k": 1000},
            {"filter": {"lt": ["n", 30]}},
            {"filter": {"gte": ["n", 0]}},
        )
    }
    assert reasons == {
        Reason.WHOLE_INDEX,
        Reason.FEW_ROWS,
        Reason.FEW_MATCHES,
        Reason.FILTERED,
    }


async def test_an_empty_index_has_no_hits(world: World, search: Search) -> None:
    made = world.make("empty", spec(3))
    assert (await search(made, {"vector": [1, 2, 3]})).hits == ()
    world.build(made)
    assert (await search(made, {"vector": [1, 2, 3]})).hits == ()


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
async def test_deletes_without_vacuum_still_leave_min_of_k_and_rows(
    world: World, search: Search, share: float
) -> None:
    made = world.make(f"deleted-{int(share * 1000)}", spec(DIMENSION))
    world.execute(f"ALTER TABLE {made.chunks} SET (autovacuum_enabled = off)")
    world.put(made, documents(VECTORS))
    world.build(made)
    kept = ROWS // 2 - int(ROWS // 2 * share)
    world.run(f"DELETE FROM {made.chunks} WHERE document_id > %s", kept)
    for query in QUERIES[:5]:
        for k in (10, 50):
            hits = (await search(made, {"vector": query.tolist(), "k": k})).hits
            assert len(hits) == min(k, 2 * kept)
            assert max(vector_of(hit) for hit in hits) < 2 * kept


async def test_where_the_graph_offers_too_few_the_rows_are_compared(world: World, search: Search) -> None:
    made = world.make("stale", spec(DIMENSION))
    world.execute(f"ALTER TABLE {made.chunks} SET (autovacuum_enabled = off)")
    world.put(made, documents(VECTORS))
    world.build(made)
    # The planner's figures still say three thousand.
    world.run(f"DELETE FROM {made.chunks} WHERE document_id > 20")
    found = (await search(made, {"vector": QUERIES[0].tolist(), "k": 40})).found
    assert [strategy.reason for strategy in found.tried] == [Reason.WHOLE_INDEX, Reason.TOO_FEW_HITS]
    assert len(found.hits) == 40


async def test_one_round_trip_is_all_that_a_search_takes(
    world: World, large: SearchIndex, embedder: Embedder
) -> None:
    database = world.service(size=1)
    await database.start()
    try:
        indexes = Indexes(database)
        searcher = Searcher(database, indexes, Questions(embedder), Limits())
        index = await indexes.get(large.namespace, large.name)
        await searcher.search(index, parse({"query": "x"}, Limits()))
        asked: list[str] = []
        async with database.connection("test") as connection:
            connection.add_query_logger(lambda query: asked.append(query.query))
        await searcher.search(index, parse({"query": "y"}, Limits()))
        assert len([text for text in asked if "g1_chunks" in text]) == 1
        await searcher.search(index, parse({"query": "y", "filter": {"gte": ["n", 5]}}, Limits()))
        assert len([text for text in asked if "g1_chunks" in text]) == 3
    finally:
        await database.stop()


# --- the body ---


async def test_the_response_is_the_contracts(search: Search, large: SearchIndex) -> None:
    result = await search(large, {"vector": VECTORS[41].tolist(), "k": 2})
    body = orjson.loads(result.body())
    assert set(body) == {"hits", "generation", "strategy", "degraded", "timings_ms"}
    assert (body["generation"], body["strategy"], body["degraded"]) == (1, "hnsw", [])
    first = body["hits"][0]
    assert first.pop("score") == pytest.approx(1, abs=1e-3)
    assert first == {
        "document": "doc/20",
        "version": 1,
        "chunk": 1,
        "span": [16, len(TEXT)],
        "text": TEXT[16:],
        "title": "Title 20",
        "uri": "https://example.org/20",
        "attributes": {"n": 20, "lang": "pt"},
    }
    assert {"embed", "search", "total"} <= set(body["timings_ms"])


async def test_explain_tells_the_strategy_and_the_estimates(search: Search, large: SearchIndex) -> None:
    body = {"vector": QUERIES[0].tolist(), "explain": True, "filter": {"lt": ["n", 30]}}
    explained = orjson.loads((await search(large, body)).body())["explain"]
    [tried] = explained.pop("tried")
    assert (tried["strategy"], tried["reason"], tried["ef"]) == ("exact", "FewMatches", None)
    assert explained["rows"] == ROWS
    assert 30 <= explained["matches"] <= 120
    assert (explained["metric"], explained["model"]) == ("cosine", "test-model")


# --- refused ---


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"vector": [1, 2, 3]}, "/vector"),
        ({"query": "x", "filter": {"eq": ["size", 1]}}, "/filter/eq/0"),
        ({"query": "x", "filter": {"eq": ["n", "1"]}}, "/filter/eq/1"),
        ({"query": "x", "after_sequence": 10**9}, "/after_sequence"),
    ],
)
async def test_what_does_not_fit_the_index_is_refused_with_a_pointer(
    search: Search, large: SearchIndex, embedder: Embedder, body: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await search(large, body)
    assert caught.value.pointer == pointer
    assert not embedder.asked


async def test_a_vector_of_a_generation_that_is_gone_is_refused_with_the_model_now_served(
    search: Search, large: SearchIndex
) -> None:
    body = {"vector": QUERIES[0].tolist()}
    assert (await search(large, {**body, "generation": 1})).hits
    with pytest.raises(GenerationGone, match="generation 1 does, with default/test-model revision 1, 24"):
        await search(large, {**body, "generation": 2})


# --- questions ---


async def test_a_question_is_embedded_once(search: Search, large: SearchIndex, embedder: Embedder) -> None:
    first = await search(large, {"query": "Como instalar?"})
    again = await search(large, {"query": "Como instalar?", "k": 3})
    await search(large, {"query": "How to install?"})
    assert embedder.asked == ["Como instalar?", "How to install?"]
    assert again.hits == first.hits[:3]


async def test_who_asks_the_same_at_the_same_time_shares_one_embedding(
    search: Search, large: SearchIndex, embedder: Embedder
) -> None:
    embedder.open.clear()
    asking = [asyncio.ensure_future(search(large, {"query": "x"})) for _ in range(5)]
    await embedder.begun.wait()
    asking[0].cancel()
    embedder.open.set()
    results = await asyncio.gather(*asking[1:])
    assert embedder.asked == ["x"]
    assert all(result.hits == results[0].hits for result in results)
    with pytest.raises(asyncio.CancelledError):
        await asking[0]


async def test_a_failure_to_embed_is_told_and_not_remembered(
    search: Search, large: SearchIndex, embedder: Embedder
) -> None:
    embedder.error = EmbedderUnavailable("away")
    with pytest.raises(EmbedderUnavailable, match="away"):
        await search(large, {"query": "x"})
    embedder.error = None
    assert (await search(large, {"query": "x"})).hits


async def test_the_memory_of_questions_is_bounded(embedder: Embedder) -> None:
    questions = Questions(embedder, remembered=2)
    of = Embedding(model="m", dimension=3)
    for text in ("a", "b", "a", "c", "a", "b"):
        await questions.vector(of, text)
    assert embedder.asked == ["a", "b", "c", "b"]


async def test_another_revision_or_dimension_is_another_vector(embedder: Embedder) -> None:
    questions = Questions(embedder)
    for of in (
        Embedding(model="m", dimension=3),
        Embedding(model="m", dimension=4),
        Embedding(model="m", dimension=3, revision="2"),
        Embedding(model="m", dimension=3, provider="other"),
    ):
        assert (await questions.vector(of, "a")).shape == (of.dimension,)
    assert len(embedder.asked) == 4


async def test_a_vector_that_the_index_cannot_compare_is_the_embedders_fault() -> None:
    async def zero(embedding: Embedding, _: str) -> npt.NDArray[np.float32]:
        return np.zeros(embedding.dimension, dtype=np.float32)

    with pytest.raises(EmbedderRefused, match="is zero"):
        await Questions(zero).vector(Embedding(model="m", dimension=3), "a")


# --- time ---


async def backends(database: Database) -> int:
    """Statements on chunks that run at the moment."""
    async with database.connection("test") as connection:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%g1_chunks%'"
            " AND pid <> pg_backend_pid()"
        )
    return count


async def test_a_search_that_takes_too_long_is_cancelled_in_postgres(
    world: World, database: Database, search: Search, large: SearchIndex
) -> None:
    await search(large, {"vector": QUERIES[0].tolist()})
    blocker = world.session()
    try:
        with blocker.cursor() as cursor:
            cursor.execute(f"BEGIN; LOCK TABLE {large.chunks} IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(DeadlineExceeded, match="longer than 200 ms"):
                await search(large, {"vector": QUERIES[0].tolist(), "timeout_ms": 200})
            assert await backends(database) == 0
            cursor.execute("ROLLBACK")
    finally:
        blocker.close()
    assert (await search(large, {"vector": QUERIES[0].tolist()})).hits


async def test_an_embedder_that_hangs_takes_no_more_than_the_time_of_the_search(
    search: Search, large: SearchIndex, embedder: Embedder
) -> None:
    embedder.open.clear()
    with pytest.raises(DeadlineExceeded):
        await search(large, {"query": "x", "timeout_ms": 100})
    embedder.open.set()


# --- freshness ---


async def test_a_search_waits_for_what_was_written_before_it(world: World, search: Search) -> None:
    made = world.make("fresh", spec(3))
    vector = np.array([1, 2, 3], dtype=np.float32)
    world.put(made, [Document("old", "old text", [Chunk(0, 3, vector)])])
    world.put(made, [Document("new", "new text")], apply=False)
    body = {"vector": [1, 2, 3]}
    assert len((await search(made, {**body, "after_sequence": 1})).hits) == 1
    with pytest.raises(DeadlineExceeded, match="1 documents up to sequence 2 cannot be found yet"):
        await search(made, {**body, "after_sequence": 2, "timeout_ms": 300})
    waiting = asyncio.ensure_future(search(made, {**body, "after_sequence": 2}))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    world.execute(
        f"INSERT INTO {made.chunks} SELECT 2, 1, 0, 0, 3, '', '{{}}', '[1,2,3]'",
        f'INSERT INTO "{made.schema}".g1_applied (document_id, version, sequence) VALUES (2, 1, 2)',
    )
    assert {hit.document for hit in (await waiting).hits} == {"old", "new"}
    assert "wait" in (await search(made, {**body, "after_sequence": 2})).timings


async def test_what_was_given_up_on_or_superseded_is_not_waited_for(world: World, search: Search) -> None:
    made = world.make("settled", spec(3))
    world.put(made, [Document("given-up", "a"), Document("edited", "b")], apply=False)
    schema = f'"{made.schema}"'
    world.execute(
        f"INSERT INTO {schema}.g1_applied (document_id, failed_sequence, tries) VALUES (1, 1, 5)",
        # Version 1 (sequence 2) was never applied by itself; version 2 (sequence 3) was.
        f"INSERT INTO {schema}.stored_versions (document_id, version, sequence, content_hash, text)"
        " VALUES (2, 2, 3, '', 'c')",
        f"UPDATE {schema}.stored_documents SET version = 2, sequence = 3 WHERE id = 2",
        f"UPDATE {schema}.clock SET sequence = 3",
        f"INSERT INTO {schema}.g1_applied (document_id, version, sequence) VALUES (2, 2, 3)",
    )
    for sequence in (0, 1, 2, 3):
        await search(made, {"vector": [1, 2, 3], "after_sequence": sequence, "timeout_ms": 2000})


async def test_an_edit_that_is_not_applied_does_not_hold_up_who_waits_for_less(
    world: World, search: Search
) -> None:
    made = world.make("edited", spec(3))
    vector = np.array([1, 2, 3], dtype=np.float32)
    world.put(made, [Document("a", "text", [Chunk(0, 4, vector)])])
    schema = f'"{made.schema}"'
    world.execute(
        f"INSERT INTO {schema}.stored_versions (document_id, version, sequence, content_hash, text)"
        " VALUES (1, 2, 2, '', 'c')",
        f"UPDATE {schema}.stored_documents SET version = 2, sequence = 2 WHERE id = 1",
        f"UPDATE {schema}.clock SET sequence = 2",
    )
    result = await search(made, {"vector": [1, 2, 3], "after_sequence": 1, "timeout_ms": 2000})
    assert [hit.text for hit in result.hits] == ["text"]
    with pytest.raises(DeadlineExceeded):
        await search(made, {"vector": [1, 2, 3], "after_sequence": 2, "timeout_ms": 100})


# --- an index that moves ---


async def test_a_search_of_a_generation_that_was_just_dropped_looks_again(
    world: World, database: Database, indexes: Indexes, embedder: Embedder
) -> None:
    made = world.make("moves", spec(3))
    searcher = Searcher(database, indexes, Questions(embedder), Limits())
    old = await indexes.get("default", "moves")
    world.add_generation(made, 2, Embedding(model="other", dimension=5))
    world.execute(f"DROP TABLE {made.chunks} CASCADE")
    world.run("UPDATE polaris.indexes SET serving = 2 WHERE id = %s", made.number)
    result = await searcher.search(old, parse({"query": "x"}, Limits()))
    assert result.index.generation == 2
    with pytest.raises(GenerationGone):
        await searcher.search(old, parse({"vector": [1, 2, 3], "generation": 1}, Limits()))


async def test_a_search_of_an_index_that_was_just_deleted_finds_no_index(
    world: World, database: Database, indexes: Indexes, embedder: Embedder
) -> None:
    made = world.make("goes", spec(3))
    searcher = Searcher(database, indexes, Questions(embedder), Limits())
    old = await indexes.get("default", "goes")
    world.execute(f'DROP SCHEMA "{made.schema}" CASCADE')
    world.run("DELETE FROM polaris.indexes WHERE id = %s", made.number)
    with pytest.raises(NoSuchIndex):
        await searcher.search(old, parse({"query": "x"}, Limits()))
