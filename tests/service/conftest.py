from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from polaris_cli.up.postgres import LocalPostgres
from service.made import Index, Made, made_in
from service.rig import Rig


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutines of tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(scope="session")
def made(postgres: LocalPostgres) -> Iterator[Made]:
    """A database with a catalog, shared: use indexes of your own."""
    with made_in(postgres) as database:
        yield database


@pytest.fixture
def own(postgres: LocalPostgres) -> Iterator[Made]:
    """A database of the test's own: what is done to its catalog and logins touches no other test."""
    with made_in(postgres) as database:
        yield database


@pytest.fixture
def index(made: Made, request: pytest.FixtureRequest) -> Index:
    """An index of the test's own."""
    return made.index(f"t{abs(hash(request.node.nodeid)):x}")


@pytest.fixture(scope="module")
async def rig(made: Made) -> AsyncIterator[Rig]:
    """A service in this process, without a worker."""
    async with Rig(made) as running:
        yield running
