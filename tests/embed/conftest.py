from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from embed.doubles import HashedProvider, serving
from polaris_service.embed.local import LocalProvider
from polaris_service.embed.provider import Provider
from polaris_service.embed.remote import RemoteProvider


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutines of tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model is repacked to, once for all tests of this folder."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def local(cache: Path) -> Iterator[LocalProvider]:
    """The real model."""
    provider = LocalProvider(cache, threads=2)
    yield provider
    asyncio.run(provider.close())


@pytest.fixture(scope="session")
def local_server(cache: Path) -> Iterator[str]:
    """The address of a real embedding server around the real model."""
    with serving(LocalProvider(cache, threads=2)) as url:
        yield url


@pytest.fixture
async def remote(local_server: str) -> AsyncIterator[RemoteProvider]:
    """A client of that server."""
    provider = RemoteProvider(local_server)
    yield provider
    await provider.close()


@pytest.fixture(params=["the double", "the local model", "a client of the embedding server"])
def provider(request: pytest.FixtureRequest) -> Provider:
    """Each provider in turn: all of them keep one contract."""
    if request.param == "the double":
        return HashedProvider()
    name = "local" if request.param == "the local model" else "remote"
    made: Provider = request.getfixturevalue(name)
    return made
