"""Indexes with documents and vectors of their own in them, as workers leave them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg2.extensions
from psycopg2.extras import execute_values

from parts import servers
from polaris import layout, names
from polaris.spec import Embedding, Metric, PolarisIndexSpec, VectorType
from polaris.sql import Sql, compose, identifier
from polaris_cli.up.postgres import PostgresServer
from polaris_service.database import Database
from service.made import Index, Made

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Chunk:
    """A stretch of a document's text and its vector."""

    start: int
    end: int
    vector: npt.NDArray[Any]


@dataclass(frozen=True)
class Document:
    """A document as it is stored and applied."""

    id: str
    text: str
    chunks: Sequence[Chunk] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    title: str | None = None
    uri: str | None = None


@dataclass(frozen=True)
class SearchIndex(Index):
    """An index that was made, with its spec."""

    spec: PolarisIndexSpec

    @property
    def chunks(self) -> Sql:
        return self.table(names.chunks_table(1))


def spec(
    dimension: int,
    *,
    metric: str = "cosine",
    kind: str = "halfvec",
    attributes: dict[str, str] | None = None,
    index: str = "hnsw",
    model: str = "test-model",
) -> PolarisIndexSpec:
    return PolarisIndexSpec.model_validate(
        {
            "databaseRef": {"name": "main"},
            "embedding": {"model": model, "dimension": dimension, "metric": metric, "type": kind},
            "index": {"type": index},
            "attributes": [{"name": n, "type": t} for n, t in (attributes or {}).items()],
        }
    )


class World(Made):
    """Made once for many tests; each test makes indexes of its own in it."""

    def service(self, size: int = 4) -> Database:
        """The database as the service has it: start it and stop it."""
        return self.connect("query", size)

    def session(self) -> psycopg2.extensions.connection:
        """A session as the administrator; close it."""
        return servers.connect(self.database.dsn)

    def execute(self, *statements: str) -> None:
        self._execute(*statements)

    # --- what the operator makes ---

    def make(self, name: str, of: PolarisIndexSpec, namespace: str = "default") -> SearchIndex:
        """Make an index that serves, with its attributes' indexes and without its vector index."""
        made = self.index(name, of, namespace, built=False)
        return SearchIndex(made.number, namespace, name, made.schema, of)

    def add_generation(self, made: SearchIndex, number: int, embedding: Embedding) -> None:
        """Make another generation, without a vector index; it does not serve yet."""
        schema = made.schema
        tables = (layout.chunks(number, embedding), layout.applied(number))
        writer = identifier(names.index_role(self.catalog, made.number, "writer"))
        self._execute(
            *(table.create(schema) for table in tables),
            *(
                compose("GRANT SELECT, INSERT ON {t} TO {w}", t=identifier(schema, table.name), w=writer)
                for table in tables
            ),
        )
        self.run(
            "INSERT INTO polaris.generations (index_id, number, state, embedding, chunking)"
            " VALUES (%s, %s, 'serving', %s, %s)",
            made.number,
            number,
            embedding.model_dump_json(by_alias=True),
            made.spec.chunking.model_dump_json(by_alias=True),
        )

    def build(self, made: SearchIndex, ef_search: int = 64) -> str:
        """Build the vector index of generation 1, and have the catalog say so."""
        index = layout.vector_index(1, made.spec.embedding, made.spec.index)
        assert index is not None
        self.execute(index.create(made.schema), f"ANALYZE {made.chunks}")
        self.run(
            "UPDATE polaris.generations SET vector_index = %s, ef_search = %s WHERE index_id = %s",
            index.name,
            ef_search,
            made.number,
        )
        return index.name

    # --- what workers do ---

    def put(self, made: SearchIndex, documents: Iterable[Document], *, apply: bool = True) -> None:
        """Store documents, each as the first version, and bring generation 1 level with them."""
        rows = list(documents)
        quoted = {
            name: identifier(made.schema, name)
            for name in (names.DOCUMENTS, names.VERSIONS, names.CLOCK, "g1_chunks", "g1_applied")
        }
        type_ = made.spec.embedding.type.value
        with closing(self.session()) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT sequence FROM {quoted[names.CLOCK]}")
            [begun] = cursor.fetchone() or (0,)
            ids = execute_values(
                cursor,
                f"INSERT INTO {quoted[names.DOCUMENTS]} (external_id, version, sequence, content_hash)"
                " VALUES %s RETURNING id",
                [(d.id, 1, begun + n, b"") for n, d in enumerate(rows, 1)],
                page_size=len(rows),
                fetch=True,
            )
            numbers = [id_ for (id_,) in ids]
            execute_values(
                cursor,
                f"INSERT INTO {quoted[names.VERSIONS]}"
                " (document_id, version, sequence, content_hash, text, title, uri, attributes) VALUES %s",
                [
                    (i, 1, begun + n, b"", d.text, d.title, d.uri, json.dumps(d.attributes))
                    for n, (i, d) in enumerate(zip(numbers, rows, strict=True), 1)
                ],
                page_size=1000,
            )
            cursor.execute(f"UPDATE {quoted[names.CLOCK]} SET sequence = %s", [begun + len(rows)])
            if not apply:
                return
            chunks = [
                (
                    i,
                    1,
                    ordinal,
                    c.start,
                    c.end,
                    hashlib.sha256(d.text[c.start : c.end].encode()).digest(),
                    json.dumps(d.attributes),
                    "[" + ",".join(map(repr, c.vector.tolist())) + "]",
                )
                for i, d in zip(numbers, rows, strict=True)
                for ordinal, c in enumerate(d.chunks)
            ]
            execute_values(
                cursor,
                f"INSERT INTO {quoted['g1_chunks']} (document_id, version, ordinal, span_start, span_end,"
                " text_hash, attributes, embedding) VALUES %s",
                chunks,
                template=f"(%s, %s, %s, %s, %s, %s, %s, %s::{type_})",
                page_size=500,
            )
            execute_values(
                cursor,
                f"INSERT INTO {quoted['g1_applied']} (document_id, version, sequence) VALUES %s",
                [(i, 1, begun + n) for n, i in enumerate(numbers, 1)],
                page_size=1000,
            )


@contextmanager
def making(server: PostgresServer) -> Iterator[World]:
    """A world in a database of its own, which goes with it."""
    database = servers.make_database(server)
    try:
        with servers.open_folder() as folder:
            yield World(database, folder)
    finally:
        servers.drop_database(database)


# --- vectors ---


def clustered(count: int, dimension: int, seed: int, clusters: int = 40) -> Vectors:
    """Vectors in clusters, as texts' are: a graph finds its way among them."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((clusters, dimension))
    made = centres[random.integers(0, clusters, count)] + 0.7 * random.standard_normal((count, dimension))
    return made.astype(np.float32)


def held(vectors: Vectors, kind: VectorType) -> npt.NDArray[np.float64]:
    """Vectors as PostgreSQL keeps them."""
    return (vectors.astype(np.float16) if kind == VectorType.HALFVEC else vectors).astype(np.float64)


def distances(rows: npt.NDArray[np.float64], query: npt.NDArray[np.float64], metric: Metric) -> Any:
    """Distances as pgvector defines them, in double precision."""
    if metric == Metric.L2:
        return np.linalg.norm(rows - query, axis=1)
    products = rows @ query
    if metric == Metric.IP:
        return -products
    return 1 - products / (np.linalg.norm(rows, axis=1) * np.linalg.norm(query))
