"""`verify-full` to PostgreSQL, by all who go there: operator, migrations, service and worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

from cli.program import here
from parts.servers import Database, run
from polaris.errors import DatabaseRefused, DatabaseUnavailable
from polaris_cli.up.postgres import LocalPostgres
from polaris_service import database as service_database
from polaris_service.database import Database as Pools
from polaris_service.database import Purpose
from polaris_service.metrics import Metrics
from scenes.credentials import FromSecret, from_secret
from scenes.folder import FolderScene
from tls.authority import Authority, mounted
from tls.front import Front, fronted

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

READY = ("True", "Ready")
VERIFIED = {"mode": "verify-full", "caSecretRef": {"name": "authority", "key": "ca.crt"}}


class Place:
    """A database behind a TLS end, and the operator over a folder of manifests."""

    def __init__(self, scene: FolderScene, source: FromSecret, authority: Authority, front: Front) -> None:
        self.scene, self.source, self.authority, self.front = scene, source, authority, front

    def believe(self, pem: str) -> None:
        folder = self.scene.data / "secrets" / "rag" / "authority"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca.crt").write_text(pem)

    def apply(self, **spec: object) -> None:
        where = {"host": "localhost", "port": self.front.port, "tls": VERIFIED, **spec}
        self.scene.apply(self.source.manifest(**where))

    def look(self) -> tuple[str, str]:
        self.scene.reconcile()
        return self.scene.condition("Ready")[:2]

    def url(self, host: str, authority: Path) -> str:
        admin = self.scene.secret("admin")
        who = f"{admin['username']}:{quote(admin['password'])}"
        database = self.source.database.name
        return f"postgresql://{who}@{host}:{self.front.port}/{database}?sslmode=verify-full&sslrootcert={authority}"

    def login(self, purpose: str) -> dict[str, str]:
        return dict(self.scene.secret(f"polaris-{purpose}"))


@pytest.fixture
def place(
    tmp_path: Path, postgres: LocalPostgres, fresh_database: Callable[[LocalPostgres], Database]
) -> Iterator[Place]:
    authority = Authority()
    with ExitStack() as stack:
        front = stack.enter_context(fronted(postgres.host, postgres.port, authority))
        scene = FolderScene(tmp_path / "operator")
        stack.callback(scene.stop)
        source = stack.enter_context(from_secret(scene, fresh_database(postgres)))
        made = Place(scene, source, authority, front)
        made.believe(authority.pem)
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the folder, and report, more often than in life."""
    monkeypatch.setattr(service_database, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(service_database, "REPORT_SECONDS", 0.2)


async def answers(pools: Pools) -> str:
    async with pools.connection("test") as connection:
        return str(await connection.fetchval("SELECT id FROM polaris.catalog"))


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await true():  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0.02)


async def test_operator_migrations_service_and_worker_each_verify_the_server_in_full(
    place: Place, tmp_path: Path
) -> None:
    authority = place.authority.file(tmp_path / "ca.crt")
    taken = place.front.taken
    migrated = here("migrate", "--database-url", place.url("localhost", authority))
    assert (migrated.code, place.front.taken > taken) == (0, True), migrated.err
    taken = place.front.taken
    place.apply()
    assert place.look() == READY
    assert place.front.taken > taken
    for purpose in ("query", "worker"):
        login = place.login(purpose)
        assert (login["sslmode"], login["host"]) == ("verify-full", "localhost")
        assert login["ca.crt"].strip() == place.authority.pem.strip()
        taken = place.front.taken
        secret = mounted(tmp_path / purpose, login)
        pools = Pools(secret.folder, Purpose(purpose), Metrics())
        await pools.start()
        try:
            assert pools.problem is None
            assert await answers(pools)
        finally:
            await pools.stop()
        assert place.front.taken > taken
        # `polaris migrate` takes the same folder, and gets past the certificate as far as its rights go.
        refused = here("migrate", "--database-secret", secret.folder)
        assert refused.code == 1
        assert "polaris_operator" in refused.err


@pytest.mark.parametrize("wrong", ["another authority", "another name", "no authority"])
def test_a_server_that_cannot_prove_who_it_is_gets_no_password(
    place: Place, tmp_path: Path, wrong: str
) -> None:
    authority = place.authority
    host = "127.0.0.1" if wrong == "another name" else "localhost"
    if wrong == "another authority":
        authority = Authority()
        place.believe(authority.pem)
    tls = {"mode": "verify-full"} if wrong == "no authority" else VERIFIED
    place.apply(host=host, tls=tls)
    with pytest.raises(DatabaseRefused, match="certificate"):
        place.scene.reconcile()
    assert place.scene.condition("Stalled")[:2] == ("True", "LoginRefused")
    if wrong != "no authority":
        refused = here("migrate", "--database-url", place.url(host, authority.file(tmp_path / "ca.crt")))
        assert refused.code == 1
        assert "certificate" in refused.err
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
    assert run(place.source.database.dsn, sessions, place.scene.secret("admin")["username"]) == [(0,)]


async def test_a_new_authority_reaches_operator_and_service_without_a_restart(
    place: Place, tmp_path: Path
) -> None:
    place.apply()
    assert place.look() == READY
    secret = mounted(tmp_path / "query", place.login("query"))
    pools = Pools(secret.folder, Purpose("query"), Metrics())
    await pools.start()
    try:
        catalog = await answers(pools)
        new = Authority()
        for believed, shown in ((place.authority.pem + new.pem, new), (new.pem, None)):
            place.believe(believed)
            assert place.look() == READY
            assert place.login("query")["ca.crt"].strip() == believed.strip()
            before = pools._bound
            secret.write(place.login("query"))

            async def swapped(before: object = before) -> bool:
                assert await answers(pools) == catalog  # No question fails meanwhile.
                return pools._bound is not before

            await until(swapped)
            if shown is not None:
                place.front.show(shown)
        assert place.look() == READY
        # What comes now is by the new authority alone.
        await _reconnect(pools, place)
        assert await answers(pools) == catalog
    finally:
        await pools.stop()


async def _reconnect(pools: Pools, place: Place) -> None:
    """End all sessions of the service, as a failover does."""
    login = place.login("query")["username"]
    run(
        place.source.database.dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
        login,
    )

    async def back() -> bool:
        try:
            return bool(await answers(pools))
        except DatabaseUnavailable:
            return False

    await until(back)


def test_a_server_whose_authority_changed_first_is_refused_until_the_secret_has_the_new_one(
    place: Place,
) -> None:
    place.apply()
    assert place.look() == READY
    new = Authority()
    place.front.show(new)
    place.scene.stop()
    place.scene.start()
    with pytest.raises(DatabaseRefused, match="certificate"):
        place.scene.reconcile()
    assert place.scene.condition("Stalled")[:2] == ("True", "LoginRefused")
    place.believe(new.pem)
    assert place.look() == READY
