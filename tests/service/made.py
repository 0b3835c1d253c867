"""A database as the operator leaves it: catalog, groups, an index with its roles, logins as Secrets."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import create_engine

from parts import servers
from polaris import layout, names
from polaris.catalog import GRANTS
from polaris.spec import PolarisIndexSpec
from polaris.sql import Sql, compose, identifier, literal
from polaris_migrations.run import upgrade
from polaris_service.database import Database, Purpose
from polaris_service.metrics import Metrics

Purposes = Literal["query", "worker"]


def spec(dimension: int = 64, **fields: Any) -> PolarisIndexSpec:
    """A spec for HashedProvider, small chunks."""
    base: dict[str, Any] = {
        "databaseRef": {"name": "main"},
        "embedding": {"model": "hashed", "dimension": dimension},
        "chunking": {"maxTokens": 32, "overlapTokens": 0},
        "attributes": [
            {"name": "lang", "type": "keyword"},
            {"name": "year", "type": "integer"},
            {"name": "price", "type": "number"},
            {"name": "public", "type": "boolean"},
            {"name": "at", "type": "datetime"},
        ],
    }
    return PolarisIndexSpec.model_validate(base | fields)


class Secret:
    """A mounted Secret, swapped as Kubernetes does it: a new folder, then one symlink."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._count = 0

    def write(self, values: dict[str, str]) -> None:
        self._count += 1
        version = self.folder / f"..{self._count}"
        version.mkdir()
        for key, value in values.items():
            (version / key).write_text(value)
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(version.name)
        os.replace(fresh, self.folder / "..data")  # noqa: PTH105  the rename is the point
        for key in values:
            link = self.folder / key
            if not link.is_symlink():
                link.symlink_to(f"..data/{key}")


@dataclass(frozen=True)
class Index:
    """An index that was made."""

    number: int
    namespace: str
    name: str
    schema: str

    @property
    def path(self) -> str:
        return f"/v1/indexes/{self.namespace}/{self.name}"

    def table(self, name: str) -> Sql:
        return identifier(self.schema, name)


class Made:
    """A database with a catalog. Everything is done as the superuser."""

    def __init__(self, database: servers.Database, folder: Path) -> None:
        self.database = database
        self._epoch = 0
        engine = create_engine(database.dsn.replace("postgresql://", "postgresql+psycopg2://"))
        with engine.begin() as connection:
            upgrade(connection)
        engine.dispose()
        self.catalog = str(self.value("SELECT id FROM polaris.catalog"))
        self.value(
            "INSERT INTO polaris.installations (id, name) VALUES (gen_random_uuid(), 'tests') RETURNING name"
        )
        self._make_groups()
        self.secrets = {purpose: Secret(folder / purpose) for purpose in ("query", "worker")}
        self.logins = {purpose: self.rotate(purpose) for purpose in ("query", "worker")}

    # --- SQL ---

    def run(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return servers.run(self.database.dsn, str(statement), *parameters)

    def value(self, statement: str, *parameters: object) -> Any:
        rows = self.run(statement, *parameters)
        return rows[0][0] if rows else None

    def _execute(self, *statements: str) -> None:
        with closing(servers.connect(self.database.dsn)) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(str(statement))

    # --- roles and logins ---

    def group(self, purpose: Purposes) -> Sql:
        return identifier(names.group_role(self.catalog, purpose))

    def _make_groups(self) -> None:
        for purpose in ("query", "worker"):
            group = self.group(purpose)
            self._execute(
                compose("CREATE ROLE {group} NOLOGIN", group=group),
                compose("GRANT USAGE ON SCHEMA polaris TO {group}", group=group),
                *(
                    compose(
                        "GRANT {rights} ON {table} TO {group}",
                        rights=rights,
                        table=identifier("polaris", table),
                        group=group,
                    )
                    for table, rights in GRANTS[purpose].items()
                ),
            )

    def rotate(self, purpose: Purposes) -> str:
        """Issue a login, publish it in the Secret, and return its name. The old one stays valid."""
        self._epoch += 1
        # Not as Vault names them: who tidies up after Vault leaves these alone.
        login, password = f"made-{self.catalog}-{purpose}-{self._epoch}", secrets.token_urlsafe(12)
        self._execute(
            compose(
                "CREATE ROLE {login} LOGIN PASSWORD {password} IN ROLE {group}",
                login=identifier(login),
                password=literal(password),
                group=self.group(purpose),
            )
        )
        server = self.database.server
        self.secrets[purpose].write(
            {
                "username": login,
                "password": password,
                "host": server.host,
                "port": str(server.port),
                "dbname": self.database.name,
                "sslmode": "disable",
                "epoch": str(self._epoch),
                "expires-at": "2099-01-01T00:00:00Z",
            }
        )
        return login

    def revoke(self, login: str) -> None:
        """Drop a login, as Vault does at the end of a lease. Open sessions stay open."""
        self._execute(compose("DROP ROLE {login}", login=identifier(login)))

    def folder(self, purpose: Purposes) -> Path:
        return self.secrets[purpose].folder

    def connect(self, purpose: Purposes = "query", size: int = 4) -> Database:
        """The database as the service or a worker has it: start it and stop it."""
        return Database(self.folder(purpose), Purpose(purpose), Metrics(), size=size)

    # --- indexes ---

    def index(
        self, name: str, of: PolarisIndexSpec | None = None, namespace: str = "team", *, built: bool = True
    ) -> Index:
        """Make an index with its roles, as the operator does: it serves, with its vector index."""
        of = of or spec()
        number = self.value(
            "INSERT INTO polaris.indexes (installation_id, namespace, name, uid, state, deletion_policy,"
            " schema_name, spec) SELECT id, %s, %s, 'uid', 'active', 'Retain', '', %s"
            " FROM polaris.installations RETURNING id",
            namespace,
            name,
            of.model_dump_json(by_alias=True),
        )
        made = Index(number, namespace, name, names.index_schema(number, name))
        schema, chunks = made.schema, layout.chunks(1, of.embedding)
        tables = (layout.STORED_DOCUMENTS, layout.STORED_VERSIONS, layout.CLOCK, chunks, layout.applied(1))
        writer = identifier(names.index_role(self.catalog, number, "writer"))
        vector_index = layout.vector_index(1, of.embedding, of.index) if built else None
        self._execute(
            compose("CREATE SCHEMA {schema}", schema=identifier(schema)),
            *(table.create(schema) for table in tables),
            layout.set_embedding_storage(schema, 1, of.embedding),
            layout.start_clock(schema),
            layout.DOCUMENTS_BY_SEQUENCE.create(schema),
            *(layout.attribute_index(1, attribute).create(schema) for attribute in of.attributes),
            *([vector_index.create(schema)] if vector_index else []),
            layout.documents_view(schema),
            layout.chunks_view(schema, 1),
            compose("CREATE ROLE {writer} NOLOGIN", writer=writer),
            compose("GRANT USAGE ON SCHEMA {schema} TO {writer}", schema=identifier(schema), writer=writer),
            *(
                compose(
                    "GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {writer}",
                    table=identifier(schema, table.name),
                    writer=writer,
                )
                for table in tables
            ),
            compose(
                "GRANT {writer} TO {query}, {worker}",
                writer=writer,
                query=self.group("query"),
                worker=self.group("worker"),
            ),
        )
        self._serve(made, of, vector_index.name if vector_index else None)
        return made

    def _serve(self, made: Index, of: PolarisIndexSpec, vector_index: str | None) -> None:
        self._execute(
            f"UPDATE polaris.indexes SET serving = 1, schema_name = '{made.schema}' WHERE id = {made.number}"
        )
        self.run(
            "INSERT INTO polaris.generations (index_id, number, state, embedding, chunking, vector_index)"
            " VALUES (%s, 1, 'serving', %s, %s, %s)",
            made.number,
            of.embedding.model_dump_json(by_alias=True),
            of.chunking.model_dump_json(by_alias=True),
            vector_index,
        )

    def set_state(self, made: Index, state: str) -> None:
        self.run("UPDATE polaris.generations SET state = %s WHERE index_id = %s", state, made.number)

    def dump(self, made: Index, table: str) -> list[tuple[Any, ...]]:
        """All rows of a table, to see that nothing changed."""
        return self.run(f"SELECT t::text FROM {made.table(table)} t ORDER BY 1")

    # --- what must hold ---

    def behind(self, made: Index) -> int:
        return int(
            self.value(
                f"SELECT count(*) FROM {made.table(names.DOCUMENTS)} d"
                f" LEFT JOIN {made.table('g1_applied')} a ON a.document_id = d.id"
                " WHERE d.sequence > greatest(coalesce(a.sequence, 0), coalesce(a.failed_sequence, 0))"
            )
        )

    def check(self, made: Index) -> None:
        """Assert what is true of every index that is level: nothing is lost, nothing is doubled."""
        assert self.behind(made) == 0
        chunks, applied = made.table("g1_chunks"), made.table("g1_applied")
        documents, versions = made.table(names.DOCUMENTS), made.table(names.VERSIONS)
        wrong = self.run(
            f"SELECT d.external_id, d.version, a.version, a.chunks, count(c.ordinal)"
            f" FROM {documents} d JOIN {applied} a ON a.document_id = d.id AND a.sequence = d.sequence"
            f" LEFT JOIN {chunks} c ON c.document_id = d.id GROUP BY 1, 2, 3, 4, d.deleted"
            " HAVING a.version <> d.version OR a.chunks <> count(c.ordinal)"
            " OR (d.deleted AND count(c.ordinal) > 0) OR (NOT d.deleted AND count(c.ordinal) = 0)"
            " OR bool_or(c.version <> d.version)"
        )
        assert wrong == []
        assert (
            self.run(
                f"SELECT c.document_id FROM {chunks} c LEFT JOIN {documents} d ON d.id = c.document_id"
                " WHERE d.id IS NULL"
            )
            == []
        )
        # Sequences are given out once, in the order of versions, and never beyond the clock.
        assert self.run(f"SELECT sequence FROM {versions} GROUP BY 1 HAVING count(*) > 1") == []
        assert (
            self.run(
                f"SELECT FROM {versions} WHERE sequence > (SELECT sequence FROM {made.table(names.CLOCK)})"
            )
            == []
        )


@contextmanager
def made_in(server: Any) -> Iterator[Made]:
    """A database of its own in a server, with a catalog; it goes, with its roles, at the end."""
    database = servers.make_database(server)
    try:
        with servers.open_folder() as folder:
            yield Made(database, folder)
    finally:
        servers.drop_database(database)
