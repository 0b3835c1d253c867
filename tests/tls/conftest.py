from __future__ import annotations

from collections.abc import Iterator

import pytest

from polaris_cli.up.postgres import LocalPostgres
from service.made import Made, made_in


@pytest.fixture(scope="module")
def made(postgres: LocalPostgres) -> Iterator[Made]:
    """A database as the operator leaves it."""
    with made_in(postgres) as database:
        yield database


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutines of tests run on asyncio, as the service does."""
    return "asyncio"
