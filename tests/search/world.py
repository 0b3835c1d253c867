"""A database with a catalog and indexes in it, as the operator makes them, and a login as the service's."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg2.extensions
from psycopg2.extras import execute_values
from sqlalchemy import create_engine

from parts import servers
from polaris import layout, names
from polaris.catalog import GRANTS
from polaris.spec import Attribute, Embedding, Metric, PolarisIndexSpec, VectorType
from polaris.sql import compose, identifier, literal
from polaris_cli.up.postgres import PostgresServer
from polaris_migrations.run import upgrade
from polaris_service.database import Database, Purpose
from polaris_service.metrics import Metrics

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
class Made:
    """An index that was made."""

    name: str
    number: int
    schema: str
    spec: PolarisIndexSpec
    namespace: str = "default"

    @property
    def chunks(self) -> str:
        return str(identifier(self.schema, names.chunks_table(1)))


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


class World:
    """Made once for many tests; each test makes indexes of its own in it."""

    def __init__(self, database: servers.Database, folder: Path) -> None:
        self.dsn = database.dsn
        self.folder = folder
        engine = create_engine(database.dsn.replace("postgresql://", "postgresql+psycopg2://"))
        with engine.begin() as connection:
            upgrade(connection)
        engine.dispose()
        self.catalog = str(self.run("SELECT id FROM polaris.catalog")[0][0])
        self._installation = self.run(
            "INSERT INTO polaris.installations (id, name) VALUES (gen_random_uuid(), 'test') RETURNING id"
        )[0][0]
        self.group = names.group_role(self.catalog, "query")
        self._login(database)

    def _login(self, database: servers.Database) -> None:
        login, password = f"{self.group}_login", secrets.token_hex(8)
        statements = [
            compose("CREATE ROLE {group} NOLOGIN", group=identifier(self.group)),
            compose("GRANT USAGE ON SCHEMA polaris TO {group}", group=identifier(self.group)),
            compose(
                "CREATE ROLE {login} LOGIN PASSWORD {password} IN ROLE {group}",
                login=identifier(login),
                password=literal(password),
                group=identifier(self.group),
            ),
            *(
                compose(
                    "GRANT {rights} ON {table} TO {group}",
                    rights=rights,
                    table=identifier("polaris", table),
                    group=identifier(self.group),
                )
                for table, rights in GRANTS["query"].items()
            ),
        ]
        self.execute(*statements)
        values = {
            "username": login,
            "password": password,
            "host": database.server.host,
            "port": str(database.server.port),
            "dbname": database.name,
            "sslmode": "disable",
            "epoch": "1",
        }
        for key, value in values.items():
            (self.folder / key).write_text(value)

    def service(self, size: int = 4) -> Database:
        """The database as the service has it: start it and stop it."""
        return Database(self.folder, Purpose("query"), Metrics(), size=size)

    # --- SQL as the administrator ---

    def connect(self) -> psycopg2.extensions.connection:
        return servers.connect(self.dsn)

    def run(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return servers.run(self.dsn, statement, *parameters)

    def execute(self, *statements: str) -> None:
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(str(statement))

    # --- what the operator makes ---

    def make(self, name: str, of: PolarisIndexSpec, namespace: str = "default") -> Made:
        """Make an index that serves, with its attributes' indexes and without its vector index."""
        number = self.run(
            "INSERT INTO polaris.indexes (installation_id, namespace, name, uid, state, deletion_policy,"
            " schema_name, spec) VALUES (%s, %s, %s, 'uid', 'active', 'Retain', '', %s) RETURNING id",
            self._installation,
            namespace,
            name,
            of.model_dump_json(by_alias=True),
        )[0][0]
        schema = names.index_schema(number, name)
        made = Made(name, number, schema, of, namespace)
        self.execute(
            compose("CREATE SCHEMA {schema}", schema=identifier(schema)),
            *(t.create(schema) for t in (layout.STORED_DOCUMENTS, layout.STORED_VERSIONS, layout.CLOCK)),
            layout.start_clock(schema),
            layout.DOCUMENTS_BY_SEQUENCE.create(schema),
        )
        self.add_generation(made, 1, of.embedding)
        self.run("UPDATE polaris.indexes SET schema_name = %s, serving = 1 WHERE id = %s", schema, number)
        return made

    def add_generation(self, made: Made, number: int, embedding: Embedding) -> None:
        schema, group = made.schema, identifier(self.group)
        self.execute(
            layout.chunks(number, embedding).create(schema),
            layout.set_embedding_storage(schema, number, embedding),
            layout.applied(number).create(schema),
            *(layout.attribute_index(number, a).create(schema) for a in made.spec.attributes),
            compose("GRANT USAGE ON SCHEMA {s} TO {group}", s=identifier(schema), group=group),
            compose(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {s} TO {group}",
                s=identifier(schema),
                group=group,
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

    def declare(self, made: Made, *attributes: Attribute) -> None:
        """Make the indexes of attributes that are declared later."""
        self.execute(*(layout.attribute_index(1, a).create(made.schema) for a in attributes))

    def build(self, made: Made, ef_search: int = 64) -> str:
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

    def put(self, made: Made, documents: Iterable[Document], *, apply: bool = True) -> None:
        """Store documents, each as the first version, and bring generation 1 level with them."""
        rows = list(documents)
        quoted = {
            name: identifier(made.schema, name)
            for name in (names.DOCUMENTS, names.VERSIONS, names.CLOCK, "g1_chunks", "g1_applied")
        }
        type_ = made.spec.embedding.type.value
        with closing(self.connect()) as connection, connection.cursor() as cursor:
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
