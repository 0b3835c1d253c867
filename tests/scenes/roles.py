"""Logins for tests that go to the database directly."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager

from psycopg2 import sql

from parts.servers import Database, run
from parts.vault import grant_roles
from polaris.spec import TlsMode
from polaris_operator.postgres import Identity, Postgres, Server


def server_of(database: Database) -> Server:
    """Where a test's database is; without TLS, which wheels are built without."""
    return Server(database.server.host, database.server.port, database.name, TlsMode.DISABLE)


@contextmanager
def operator_login(database: Database) -> Iterator[Identity]:
    """A login that is a member of `polaris_operator`, with all that administrators grant once."""
    grant_roles(database)
    identity = Identity(f"test_admin_{secrets.token_hex(4)}", secrets.token_urlsafe(12))
    name = sql.Identifier(identity.username)
    create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD %s IN ROLE polaris_operator").format(name)
    run(database.dsn, create, identity.password)
    yield identity
    run(database.dsn, sql.SQL("DROP ROLE IF EXISTS {}").format(name))


@contextmanager
def operator_session(database: Database) -> Iterator[Postgres]:
    """The operator's door to a database."""
    with operator_login(database) as identity, closing(Postgres(server_of(database), identity)) as door:
        yield door
