"""The service's way to PostgreSQL at 200 reads a second, while the operator replaces its logins.

What is asked is a table: an open session of a login that is gone still answers `SELECT 1`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from parts.servers import Database as Server
from parts.servers import run
from parts.vault import Administrator
from polaris.errors import PolarisError
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from polaris_service.database import Database, Purpose
from polaris_service.metrics import Metrics
from scenes.credentials import FromSecret, FromVault, from_secret, from_vault
from scenes.folder import NAMESPACE, FolderScene
from soak import SOAKING, times

pytestmark = [pytest.mark.postgres, pytest.mark.soak, pytest.mark.anyio]

PER_SECOND = 200
REASONS = ("PostgreSQL refuses", "PostgreSQL is not reachable")
Fresh = Callable[[LocalPostgres], Server]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def vault(
    scene: FolderScene,
    postgres: LocalPostgres,
    fresh_database: Fresh,
    vault_administrator: Administrator,
) -> Iterator[FromVault]:
    with from_vault(scene, fresh_database(postgres), vault_administrator, "approle") as made:
        yield made


@pytest.fixture
def secret(scene: FolderScene, postgres: LocalPostgres, fresh_database: Fresh) -> Iterator[FromSecret]:
    with from_secret(scene, fresh_database(postgres)) as made:
        yield made


@pytest.fixture(params=["secret", "vault"])
def source(request: pytest.FixtureRequest) -> FromSecret | FromVault:
    made: FromSecret | FromVault = request.getfixturevalue(request.param)
    return made


@dataclass
class Load:
    """What became of the reads."""

    answered: int = 0
    failed: list[tuple[float, str]] = field(default_factory=list)
    """When (monotonic), and why."""


@contextlib.asynccontextmanager
async def loaded(scene: FolderScene) -> AsyncIterator[tuple[Database, Load]]:
    """The service's database over the login that the operator publishes, with readers."""
    folder = scene.data / "secrets" / NAMESPACE / "polaris-query"
    database, load, stopping = Database(folder, Purpose("query"), Metrics(), size=4), Load(), asyncio.Event()

    async def read() -> None:
        try:
            async with database.connection("test") as connection:
                await connection.fetchval("SELECT id FROM polaris.catalog")
            load.answered += 1
        except PolarisError as error:
            load.failed.append((time.monotonic(), str(error)))

    async def offer() -> None:
        async with asyncio.TaskGroup() as reads:
            due = time.monotonic()
            while not stopping.is_set():
                reads.create_task(read())
                due = max(due + 1 / PER_SECOND, time.monotonic() - 0.5)
                await asyncio.sleep(max(due - time.monotonic(), 0))

    await database.start()
    try:
        await until(lambda: database.problem is None)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(offer())
            try:
                yield database, load
            finally:
                stopping.set()
    finally:
        await database.stop()


async def until(holds: Callable[[], object], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it did not come to be"
        await asyncio.sleep(0.02)


def age(database: Server, what: str, by: str) -> None:
    """Move a time of the service's login in the ledger into the past."""
    run(
        database.dsn, f"UPDATE polaris.credentials SET {what} = {what} - interval '{by}' WHERE name = 'query'"
    )


async def test_rotations_fail_no_request_and_the_old_role_goes_with_its_overlap(
    scene: FolderScene, source: FromSecret | FromVault
) -> None:
    scene.apply(source.manifest())
    scene.reconcile()
    async with loaded(scene) as (database, load):
        for _rotation in range(times(2, 50)):  # Of each source.
            before = dict(scene.secret("polaris-query"))
            age(source.database, "issued_at", "25 hours")
            await asyncio.to_thread(scene.reconcile)
            after = scene.secret("polaris-query")
            assert int(after["epoch"]) == int(before["epoch"]) + 1
            await until(lambda after=after: database.epoch == int(after["epoch"]))  # type: ignore[misc]
            await until(lambda after=after: _reported(source.database) == after["username"])  # type: ignore[misc]
            age(source.database, "superseded_at", "300 seconds")
            await asyncio.to_thread(scene.reconcile)
            exists = "SELECT 1 FROM pg_roles WHERE rolname = %s"
            assert run(source.database.dsn, exists, before["username"]) == []
    assert load.failed == []
    assert load.answered > 200


def _reported(database: Server) -> str:
    rows = run(database.dsn, "SELECT username FROM polaris.consumers WHERE kind = 'query'")
    return str(rows[0][0]) if rows else ""


@contextlib.asynccontextmanager
async def operated(scene: FolderScene) -> AsyncIterator[None]:
    """Let the operator look again whenever it wants to, and once a second at least."""
    stopping = asyncio.Event()

    async def look() -> None:
        while not stopping.is_set():
            again = None
            with contextlib.suppress(PolarisError):
                again = await asyncio.to_thread(scene.reconcile)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), min(again or 1.0, 1.0))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(look())
        try:
            yield
        finally:
            stopping.set()


def half_lived(scene: FolderScene, life: float) -> bool:
    ends = datetime.fromisoformat(scene.secret("polaris-query")["expires-at"])
    return (ends - datetime.now(UTC)).total_seconds() <= life * 0.6


async def test_a_vault_that_is_sealed_for_less_than_is_left_fails_no_request(
    scene: FolderScene, vault: FromVault, openbao: LocalOpenBao
) -> None:
    life = 60 if SOAKING else 20
    vault.longest_lease(life)
    scene.apply(vault.manifest())
    scene.reconcile()
    async with loaded(scene) as (database, load), operated(scene):
        await until(lambda: half_lived(scene, life), life)
        epoch = database.epoch
        assert epoch is not None
        openbao.seal()
        try:
            await asyncio.sleep(0.4 * life)
        finally:
            openbao.unseal()
        await until(lambda: (database.epoch or 0) > epoch)
        await asyncio.sleep(1)
    assert load.failed == []
    assert load.answered > 200


async def test_a_vault_that_is_sealed_for_longer_than_a_login_lives_is_said_and_recovered_from(
    scene: FolderScene, vault: FromVault, openbao: LocalOpenBao
) -> None:
    life = 30 if SOAKING else 10
    vault.longest_lease(life)
    scene.apply(vault.manifest())
    scene.reconcile()
    async with loaded(scene) as (database, load):
        epoch = database.epoch
        assert epoch is not None
        openbao.seal()
        try:
            # Vault revokes nothing while it is sealed, so sessions that are open may go on; at its end
            # every overdue login goes at once.
            await asyncio.sleep(1.2 * life)
        finally:
            openbao.unseal()
        # A session that is ended in the middle of a read says no more than that it is gone.
        await until(lambda: any("refuses the login" in why for _when, why in load.failed))
        async with operated(scene):
            await until(lambda: scene.secret("polaris-query")["epoch"] != str(epoch))
            there = time.monotonic()
            await until(lambda: (database.epoch or 0) > epoch, 10)
            await asyncio.sleep(1)
    assert all(why.startswith(REASONS) and when < there + 10 for when, why in load.failed), load.failed
    last = max(when for when, _why in load.failed)
    assert last < time.monotonic() - 0.5, "it has not recovered"
