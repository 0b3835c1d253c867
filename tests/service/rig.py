"""A query service and a worker in the test's own process, on a real database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Self

import httpx

from embed.doubles import HashedProvider
from polaris.settings import ServiceSettings, WorkerSettings
from polaris_service.app import build_parts, create_app
from polaris_service.embed.registry import Embedders
from polaris_service.metrics import Metrics
from polaris_service.worker import build_worker
from service.made import Index, Made

_PATIENCE_SECONDS = 30.0


async def until(holds: Callable[[], Awaitable[bool] | bool]) -> None:
    """Return when it holds; AssertionError where it does not for very long."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        answer = holds()
        if await answer if isinstance(answer, Awaitable) else answer:
            return
        assert time.monotonic() < deadline, "it did not come to be"
        await asyncio.sleep(0.02)


def ndjson(lines: Iterable[Any]) -> bytes:
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )


class Rig:
    """`async with Rig(made) as rig`: `rig.http` talks to the service."""

    def __init__(self, made: Made, provider: Any = None, **settings: Any) -> None:
        self.made = made
        self.provider = provider or HashedProvider()
        self._settings = ServiceSettings.load(
            {}, {"auth": "none", "database_secret": str(made.folder("query")), "pool_size": 4, **settings}
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.parts = build_parts(self._settings, Embedders([self.provider]))
        self.app = create_app(self.parts)
        await self._stack.enter_async_context(self.app.router.lifespan_context(self.app))
        transport = httpx.ASGITransport(self.app)
        self.http = await self._stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # --- requests ---

    async def put(self, index: Index, id_: str, text: str, **fields: Any) -> httpx.Response:
        return await self.http.put(f"{index.path}/documents/{id_}", json={"text": text, **fields})

    async def get(self, index: Index, id_: str, **params: Any) -> httpx.Response:
        return await self.http.get(f"{index.path}/documents/{id_}", params=params)

    async def batch(self, index: Index, lines: Iterable[Any]) -> list[dict[str, Any]]:
        response = await self.http.post(
            f"{index.path}/documents",
            content=ndjson(lines),
            headers={"Content-Type": "application/x-ndjson"},
        )
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    async def search(self, index: Index, query: str, **fields: Any) -> list[dict[str, Any]]:
        response = await self.http.post(f"{index.path}/search", json={"query": query, **fields})
        assert response.status_code == 200, response.text
        hits: list[dict[str, Any]] = response.json()["hits"]
        return hits

    # --- workers ---

    @contextlib.asynccontextmanager
    async def worker(self, provider: Any = None, **settings: Any) -> AsyncIterator[Any]:
        """A worker in this process, quick to look and to try again."""
        chosen = WorkerSettings.load(
            {}, {"database_secret": str(self.made.folder("worker")), "poll_seconds": 0.5, **settings}
        )
        embedders = Embedders([provider or self.provider])
        database, _, worker = build_worker(chosen, Metrics(), embedders)
        await database.start()
        try:
            await worker.start()
            try:
                yield worker
            finally:
                await worker.stop()
        finally:
            await database.stop()

    async def level(self, index: Index) -> None:
        """Wait until nothing is behind."""
        await until(lambda: self.made.behind(index) == 0)
