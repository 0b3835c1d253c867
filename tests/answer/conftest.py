from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from answer import llama
from polaris_cli.up.postgres import LocalPostgres
from polaris_service.database import Database
from search.world import World, making


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutines of tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(scope="session")
def llama_server() -> Iterator[str]:
    """Address of a real llama-server."""
    with llama.serving() as url:
        yield url


@pytest.fixture(scope="session")
def answer_world(postgres: LocalPostgres) -> Iterator[World]:
    """A database with a catalog, shared: use indexes of your own."""
    with making(postgres) as made:
        yield made


@pytest.fixture
async def database(answer_world: World) -> AsyncIterator[Database]:
    """The world's database, as the service is connected to it."""
    service = answer_world.service()
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
