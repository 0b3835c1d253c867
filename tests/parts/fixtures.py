"""Servers shared by a session, and fresh databases for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from parts import servers, vault
from parts.servers import Database, make_database
from parts.vault import Administrator
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres, PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[LocalPostgres]:
    """PostgreSQL 18 with pgvector, as `polaris up` runs it."""
    with servers.running(servers.postgres18()) as server:
        yield server


@pytest.fixture(scope="session")
def postgres16() -> Iterator[LocalPostgres]:
    """PostgreSQL 16 with an older pgvector."""
    with servers.running(servers.postgres16()) as server:
        yield server


@pytest.fixture(scope="session")
def postgres15() -> Iterator[LocalPostgres]:
    """Debian's PostgreSQL 15, without pgvector. Ask for it through `servers.ALL_SERVERS`."""
    with servers.running(servers.postgres15()) as server:
        yield server


@pytest.fixture(params=servers.VECTOR_SERVERS)
def vector_postgres(request: pytest.FixtureRequest) -> LocalPostgres:
    """Each server that has pgvector, in turn."""
    server: LocalPostgres = request.getfixturevalue(request.param)
    return server


@pytest.fixture(params=servers.ALL_SERVERS)
def any_postgres(request: pytest.FixtureRequest) -> LocalPostgres:
    """Each server, in turn: for roles and leases."""
    server: LocalPostgres = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def fresh_database() -> Iterator[Callable[[PostgresServer], Database]]:
    """Makes databases, with `vector` where the server has it; they go when the test ends."""
    with ExitStack() as databases:

        def make(server: PostgresServer) -> Database:
            database = make_database(server)
            databases.callback(servers.drop_database, database)
            return database

        yield make


@pytest.fixture(scope="session")
def openbao() -> Iterator[LocalOpenBao]:
    """OpenBao, unsealed and empty: use mounts of your own."""
    with servers.open_folder() as folder:
        server = LocalOpenBao(folder / "openbao")
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def vault_administrator(openbao: LocalOpenBao) -> Iterator[Administrator]:
    """Somebody who may do everything in `openbao`."""
    with vault.client(openbao.address, openbao.root_token) as client:
        yield Administrator(client)
