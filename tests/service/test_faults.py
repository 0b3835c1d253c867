# ruff: noqa: S311  (random moments, seeded)
"""Killed and stopped parts: nothing acknowledged is lost, nothing is doubled, all converges by itself."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from embed import doubles
from embed.doubles import HashedProvider
from parts import servers
from polaris_cli.up.postgres import LocalPostgres
from polaris_service.documents import batch
from polaris_service.embed.provider import Kind, Vectors
from service.made import Index, Made, made_in
from service.processes import running
from service.rig import Rig, ndjson, until
from soak import times

pytestmark = [pytest.mark.postgres, pytest.mark.anyio, pytest.mark.soak]

SEED = 20261122


class Slow(HashedProvider):
    """Takes its time, so that a kill often hits in the middle."""

    async def embed(self, model: str, texts: Any, kind: Kind) -> Vectors:
        await asyncio.sleep(0.02)
        return await super().embed(model, texts, kind)


@pytest.fixture
def embedder() -> Iterator[str]:
    with doubles.serving(Slow()) as url:
        yield url


@dataclass
class Writer:
    """A client that writes at random and remembers what was acknowledged."""

    random: random.Random
    acknowledged: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    """The last version of each document that was acknowledged, and its text; None: deleted."""
    written: int = 0
    statuses: set[int] = field(default_factory=set)

    async def write(self, http: httpx.AsyncClient, index: Index) -> None:
        """Write something; what it came to is remembered only where an answer came."""
        kind = self.random.choices(["put", "batch", "delete"], [6, 3, 1])[0]
        await getattr(self, f"_{kind}")(http, index)

    def _text(self) -> str:
        self.written += 1
        return f"Text {self.written}. " + "Some sentence of it. " * self.random.randrange(12)

    def _id(self) -> str:
        return f"d{self.random.randrange(60)}"

    async def _put(self, http: httpx.AsyncClient, index: Index) -> None:
        id_, text = self._id(), self._text()
        response = await http.put(f"{index.path}/documents/{id_}", json={"text": text})
        self._remember(response.status_code, id_, response, text)

    async def _delete(self, http: httpx.AsyncClient, index: Index) -> None:
        id_ = self._id()
        response = await http.delete(f"{index.path}/documents/{id_}")
        self._remember(response.status_code, id_, response, None)

    async def _batch(self, http: httpx.AsyncClient, index: Index) -> None:
        lines = [{"id": self._id(), "text": self._text()} for _ in range(20)]
        response = await http.post(
            f"{index.path}/documents",
            content=ndjson(lines),
            headers={"Content-Type": "application/x-ndjson"},
        )
        self.statuses.add(response.status_code)
        if response.status_code != 200:
            return
        for line, result in zip(lines, map(json.loads, response.text.splitlines()), strict=True):
            self.statuses.add(result["status"])
            if result["status"] in {200, 202}:
                self.acknowledged[line["id"]] = (result["version"], line["text"])

    def _remember(self, status: int, id_: str, response: httpx.Response, text: str | None) -> None:
        self.statuses.add(status)
        if status in {200, 202}:
            self.acknowledged[id_] = (response.json()["version"], text)

    async def check(self, http: httpx.AsyncClient, index: Index) -> None:
        """Assert that all that was acknowledged is there, at that version or a later one."""
        assert self.acknowledged
        for id_, (version, text) in self.acknowledged.items():
            params = {} if text is None else {"version": version}
            response = await http.get(f"{index.path}/documents/{id_}", params=params)
            if text is not None:
                assert response.json()["text"] == text


async def killed_again_and_again(program: Any, often: int, chance: random.Random) -> None:
    """Start a program and kill it, so often."""
    for _ in range(often):
        with ExitStack() as stack:
            started = await asyncio.to_thread(stack.enter_context, program())
            await asyncio.sleep(chance.uniform(0.1, 0.9))
            await asyncio.to_thread(started.kill)


async def test_a_worker_that_is_killed_at_any_moment_loses_and_doubles_nothing(
    made: Made, index: Index, embedder: str, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    writer, done = Writer(random.Random(SEED)), asyncio.Event()

    def worker() -> Any:
        return running("worker", made, tmp_path, embedder=embedder, batch_chunks="8", poll_seconds="0.2")

    async with Rig(made) as rig:

        async def client() -> None:
            while not done.is_set():
                await writer.write(rig.http, index)
                await asyncio.sleep(0.02)

        writing = asyncio.create_task(client())
        await killed_again_and_again(worker, times(4, 100), chance)
        done.set()
        await writing
        with ExitStack() as stack:
            last = await asyncio.to_thread(stack.enter_context, worker())
            await rig.level(index)
            last.terminate()
            await asyncio.to_thread(last.wait)
            assert "Traceback" not in last.log()
        made.check(index)
        await writer.check(rig.http, index)
    assert writer.statuses <= {200, 202, 404}


async def test_a_service_that_is_killed_at_any_moment_loses_nothing_that_it_acknowledged(
    made: Made, index: Index, tmp_path: Path
) -> None:
    chance, writer = random.Random(SEED), Writer(random.Random(SEED))
    for _ in range(times(3, 100)):
        with ExitStack() as stack:
            service = await asyncio.to_thread(stack.enter_context, running("service", made, tmp_path))
            async with httpx.AsyncClient(base_url=service.url, trust_env=False, timeout=30) as http:

                async def client(http: httpx.AsyncClient = http) -> None:
                    while True:
                        await writer.write(http, index)

                clients = [asyncio.create_task(client()) for _ in range(1)]
                await asyncio.sleep(chance.uniform(0.3, 0.8))
                await asyncio.to_thread(service.kill)
                results = await asyncio.gather(*clients, return_exceptions=True)
                assert all(isinstance(result, httpx.TransportError) for result in results), results
    async with Rig(made) as rig:
        await writer.check(rig.http, index)
        async with rig.worker():
            await rig.level(index)
    made.check(index)


@pytest.fixture
def own_postgres() -> Iterator[LocalPostgres]:
    """A server of the test's own, to be stopped."""
    with servers.running(servers.postgres18()) as server:
        yield server


@pytest.fixture
async def stoppable(own_postgres: LocalPostgres) -> AsyncIterator[Made]:
    with made_in(own_postgres) as database:
        yield database


async def test_postgresql_stopped_and_started_under_load_is_503_and_then_all_converges(
    own_postgres: LocalPostgres, stoppable: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "PATIENCE_SECONDS", 0.5)
    index = stoppable.index("shaken")
    writer, done, searches = Writer(random.Random(SEED)), asyncio.Event(), set[int]()
    async with Rig(stoppable) as rig, rig.worker(provider=Slow(), batch_chunks=8):

        async def write() -> None:
            while not done.is_set():
                await writer.write(rig.http, index)
                # An answer that nothing was waited for, from an app in this loop, lets nobody else run.
                await asyncio.sleep(0.001)

        async def search() -> None:
            while not done.is_set():
                await asyncio.sleep(0.001)
                response = await rig.http.post(f"{index.path}/search", json={"query": "text"})
                searches.add(response.status_code)
                if response.status_code == 503:
                    assert int(response.headers["retry-after"]) > 0

        clients = [asyncio.create_task(client()) for client in (write, write, search)]
        for _ in range(times(2, 20)):
            await until(lambda: 202 in writer.statuses)
            await asyncio.to_thread(own_postgres.stop)
            writer.statuses.clear()
            await until(lambda: 503 in writer.statuses)
            await asyncio.to_thread(own_postgres.start)
            writer.statuses.clear()
        await until(lambda: 202 in writer.statuses)
        done.set()
        await asyncio.gather(*clients)
        await rig.level(index)
        assert searches <= {200, 503, 504}
        assert {200, 503} <= searches
        stoppable.check(index)
        # A write whose answer was lost may have been done; what was acknowledged was.
        for id_, (version, text) in writer.acknowledged.items():
            if text is not None:
                got = await rig.get(index, id_, version=version)
                assert got.json()["text"] == text


async def test_the_embedder_stopped_and_started_under_load_delays_and_fails_nothing(
    made: Made, index: Index, tmp_path: Path
) -> None:
    port = doubles.free_port()
    async with Rig(made) as rig:
        with running(
            "worker",
            made,
            tmp_path,
            embedder=f"http://127.0.0.1:{port}",
            batch_chunks="4",
            poll_seconds="0.2",
            max_tries="1",
        ):
            with doubles.process(port, tmp_path):
                await rig.batch(index, [{"id": f"a{n}", "text": f"text {n}"} for n in range(100)])
                await until(lambda: applied(made, index) > 10)
            await rig.batch(index, [{"id": f"b{n}", "text": f"text {n}"} for n in range(100)])
            with doubles.process(port, tmp_path):
                await rig.level(index)
        told = (await rig.http.get(index.path)).json()
        assert (told["documents"], told["pending"], told["failed"]) == (200, 0, 0)
    made.check(index)


def applied(made: Made, index: Index) -> int:
    return int(made.value(f"SELECT count(*) FROM {index.table('g1_applied')} WHERE sequence > 0"))
