"""Pools that follow a login, and failures with a reason."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest
import trustme

from polaris import CATALOG_LEVEL
from polaris.errors import DatabaseUnavailable, DeadlineExceeded, Overloaded
from polaris_service import database as module
from polaris_service.database import (
    CatalogTooNew,
    CatalogTooOld,
    Database,
    LoginRefused,
    NoDatabaseYet,
    Purpose,
    translate,
)
from polaris_service.login import Login, read_login
from polaris_service.metrics import Metrics
from service.made import Made, Secret
from service.rig import Rig, until
from service.tls_end import tls_end

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

LOGIN = {"username": "u", "password": " p\n", "host": "h", "port": "5432", "dbname": "d"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the folder, and report, more often than in life."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.2)


@asynccontextmanager
async def started(database: Database) -> AsyncIterator[Database]:
    await database.start()
    try:
        yield database
    finally:
        await database.stop()


async def answers(database: Database) -> str:
    async with database.connection("test") as connection:
        return str(await connection.fetchval("SELECT current_user FROM polaris.catalog"))


# --- the folder ---


def test_a_login_is_read_as_kubernetes_mounts_it(tmp_path: Path) -> None:
    secret = Secret(tmp_path / "secret")
    secret.write({**LOGIN, "sslmode": "disable\n", "epoch": "7", "expires-at": "2099-01-01T00:00:00Z"})
    login = read_login(secret.folder)
    assert login == Login("u", " p\n", "h", 5432, "d", "disable", 7, "2099-01-01T00:00:00Z")
    secret.write({**LOGIN, "username": "next"})
    found = read_login(secret.folder)
    assert found is not None
    assert (found.username, found.epoch, found.sslmode) == ("next", 0, "verify-full")


def test_a_login_is_read_from_plain_files_too(tmp_path: Path) -> None:
    for key, value in LOGIN.items():
        (tmp_path / key).write_text(value)
    login = read_login(tmp_path)
    assert login is not None
    assert (login.username, login.password) == ("u", " p\n")


@pytest.mark.parametrize("missing", [*LOGIN, "everything"])
def test_a_part_of_a_login_is_none(tmp_path: Path, missing: str) -> None:
    for key, value in LOGIN.items():
        if missing not in {key, "everything"}:
            (tmp_path / key).write_text(value)
    assert read_login(tmp_path) is None
    assert read_login(tmp_path / "nowhere") is None


def test_a_login_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    for name, value in {**LOGIN, "port": None}.items():
        (tmp_path / name).mkdir() if value is None else (tmp_path / name).write_text(value)
    with pytest.raises(DatabaseUnavailable, match="cannot be read"):
        read_login(tmp_path)


@pytest.mark.parametrize("key", ["port", "epoch"])
def test_a_login_that_makes_no_sense_says_so(tmp_path: Path, key: str) -> None:
    for name, value in {**LOGIN, key: "x"}.items():
        (tmp_path / name).write_text(value)
    with pytest.raises(DatabaseUnavailable, match="not a number"):
        read_login(tmp_path)


def test_a_password_is_never_printed() -> None:
    assert "secret" not in repr(Login("u", "secret", "h", 1, "d", ca="secret"))


# --- TLS ---


def test_each_mode_of_tls_checks_what_it_says() -> None:
    def context(mode: str) -> Any:
        return Login("u", "p", "h", 1, "d", mode).tls()

    assert context("disable") is False
    full, require = context("verify-full"), context("require")
    assert (full.verify_mode, full.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (require.verify_mode, require.check_hostname) == (ssl.CERT_NONE, False)


def test_an_authority_may_have_comments_in_any_script_and_has_to_be_one() -> None:
    pem = trustme.CA().cert_pem.bytes().decode()
    assert Login("u", "p", "h", 1, "d", ca=f"# Autoridade Certificadora Raiz é nossa\n{pem}").tls()
    with pytest.raises(DatabaseUnavailable, match=r"ca\.crt holds no certificate"):
        Login("u", "p", "h", 1, "d", ca="# nada").tls()


async def test_what_follows_the_login_goes_on_whatever_happens_to_it(
    own: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(own.connect()) as database:
        look, looked = database._look, asyncio.Event()

        async def breaks(**_: bool) -> None:
            monkeypatch.setattr(database, "_look", look)
            looked.set()
            raise TypeError("nobody foresaw this")

        monkeypatch.setattr(database, "_look", breaks)
        await looked.wait()
        values = {key.name: key.read_text() for key in own.folder("query").iterdir() if key.is_file()}
        own.secrets["query"].write({**values, "epoch": "7"})
        await until(lambda: database.epoch == 7)


@pytest.mark.parametrize(
    ("mode", "host", "authority", "works"),
    [
        ("verify-full", "localhost", "its own", True),
        ("verify-full", "localhost", "another", False),
        ("verify-full", "localhost", "", False),
        ("verify-full", "127.0.0.1", "its own", False),  # not in the certificate
        ("require", "127.0.0.1", "", True),
        ("disable", "127.0.0.1", "", False),  # this end speaks TLS only
    ],
)
async def test_a_server_is_only_believed_as_the_mode_says(
    own: Made, mode: str, host: str, authority: str, works: bool
) -> None:
    ours, another = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("localhost").configure_cert(context)
    certificates = {"its own": ours, "another": another}
    server = own.database.server
    async with tls_end(server.host, server.port, context) as port:
        values = {key.name: key.read_text() for key in own.folder("query").iterdir() if key.is_file()}
        values |= {"host": host, "port": str(port), "sslmode": mode}
        if authority:
            values["ca.crt"] = certificates[authority].cert_pem.bytes().decode()
        own.secrets["query"].write(values)
        async with started(own.connect()) as database:
            assert (database.problem is None) is works, database.problem
            if works:
                assert await answers(database) == own.logins["query"]
            else:
                believed = mode == "disable"
                assert ("not reachable" if believed else "not believed") in str(database.problem)


# --- life with a login ---


async def test_before_there_is_a_login_it_says_so_and_then_it_works(own: Made, tmp_path: Path) -> None:
    folder = tmp_path / "secret"
    async with started(Database(folder, Purpose("query"), Metrics())) as database:
        assert isinstance(database.problem, NoDatabaseYet)
        with pytest.raises(NoDatabaseYet):
            await answers(database)
        folder.symlink_to(own.folder("query"))
        await until(lambda: database.problem is None)
        assert await answers(database) == own.logins["query"]
        assert database.catalog == own.catalog
        assert database.vector_schema == "public"


async def test_a_rotation_fails_no_request(own: Made) -> None:
    async with started(own.connect(size=4)) as database:
        served: set[str] = set()
        stopping = asyncio.Event()

        async def client() -> None:
            while not stopping.is_set():
                served.add(await answers(database))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        for _ in range(3):
            before, login = own.logins["query"], own.rotate("query")
            own.logins["query"] = login
            await until(partial(served.__contains__, login))
            # Revoked once the operator hears that nobody uses it any more, and not before.
            await until(lambda: reported(own, database) == database.epoch)
            own.revoke(before)
        stopping.set()
        await asyncio.gather(*clients)
        assert len(served) == 4


def reported(own: Made, database: Database) -> Any:
    return own.value("SELECT epoch FROM polaris.consumers WHERE id = %s", database.consumer)


async def test_the_epoch_is_reported_only_when_the_old_login_is_not_used_any_more(own: Made) -> None:
    async with started(own.connect()) as database:
        await until(lambda: reported(own, database) == 1)
        async with database.connection("test") as connection:
            own.rotate("query")
            await until(lambda: database.epoch == 3)
            await asyncio.sleep(0.5)
            assert reported(own, database) == 1
            assert await connection.fetchval("SELECT id FROM polaris.catalog") == own.catalog
        await until(lambda: reported(own, database) == 3)


async def test_a_consumer_says_who_it_is_and_says_good_bye(own: Made) -> None:
    database = Database(own.folder("query"), Purpose("query", "https://rag.example"), Metrics())
    async with started(database):
        await until(lambda: reported(own, database) is not None)
        row = own.run("SELECT kind, username, query_url, catalog_level FROM polaris.consumers")
        assert row == [("query", own.logins["query"], "https://rag.example", CATALOG_LEVEL)]
    assert own.run("SELECT FROM polaris.consumers") == []


async def test_a_revoked_login_is_noticed_and_its_successor_adopted(own: Made) -> None:
    async with started(own.connect()) as database:
        assert await answers(database)
        own.revoke(own.logins["query"])
        with pytest.raises(LoginRefused):
            await answers(database)
        await until(lambda: isinstance(database.problem, LoginRefused))
        login = own.rotate("query")
        await until(lambda: database.problem is None)
        assert await answers(database) == login


async def test_a_new_login_that_is_wrong_leaves_the_old_one_in_use(own: Made) -> None:
    async with started(own.connect()) as database:
        values = {key.name: key.read_text() for key in own.folder("query").iterdir() if key.is_file()}
        own.secrets["query"].write({**values, "password": "wrong", "epoch": "9"})
        await asyncio.sleep(0.3)
        assert await answers(database) == own.logins["query"]
        assert database.epoch == 1


async def test_a_catalog_for_newer_code_is_refused_with_both_levels(own: Made) -> None:
    async with started(own.connect()) as database:
        own.run("UPDATE polaris.catalog SET oldest_code = 99")
        await until(lambda: isinstance(database.problem, CatalogTooNew))
        with pytest.raises(CatalogTooNew, match=r"level \d+\), and the catalog needs level 99"):
            await answers(database)
        assert not database.suited
        own.run("UPDATE polaris.catalog SET oldest_code = 1")
        await until(lambda: database.problem is None)
        assert database.suited


@pytest.mark.parametrize(
    ("back", "again"),
    [
        ("UPDATE polaris.catalog SET level = 1", f"UPDATE polaris.catalog SET level = {CATALOG_LEVEL}"),
        (
            "ALTER TABLE polaris.catalog DROP level",
            f"ALTER TABLE polaris.catalog ADD level integer NOT NULL DEFAULT {CATALOG_LEVEL}",
        ),
    ],
    ids=["an older one", "the first, which did not say"],
)
async def test_code_that_came_before_its_migration_waits_for_it(own: Made, back: str, again: str) -> None:
    own.run(back)
    async with started(own.connect()) as database:
        assert isinstance(database.problem, CatalogTooOld)
        assert "the catalog is at level 1: it waits to be migrated" in str(database.problem)
        assert not database.suited
        own.run(again)
        await until(lambda: database.problem is None)
        assert await answers(database) == own.logins["query"]


async def test_a_catalog_that_goes_back_below_running_code_is_noticed(own: Made) -> None:
    async with started(own.connect()) as database:
        own.run("ALTER TABLE polaris.catalog DROP level")
        await until(lambda: isinstance(database.problem, CatalogTooOld))


async def test_a_database_without_a_catalog_is_none_yet(own: Made) -> None:
    own.run("DROP SCHEMA polaris CASCADE")
    async with started(own.connect()) as database:
        assert isinstance(database.problem, LoginRefused | NoDatabaseYet)


async def test_where_nobody_listens_it_is_not_reachable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    for key, value in {**LOGIN, "host": "127.0.0.1", "port": str(port), "sslmode": "disable"}.items():
        (tmp_path / key).write_text(value)
    async with started(Database(tmp_path, Purpose("query"), Metrics())) as database:
        assert str(database.problem) == "PostgreSQL is not reachable"


# --- connections ---


async def test_when_all_connections_are_busy_it_is_overloaded(
    own: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ACQUIRE_SECONDS", 0.1)
    async with started(own.connect(size=1)) as database, database.connection("test"):
        with pytest.raises(Overloaded, match="all 1 connections"):
            await answers(database)


async def test_a_statement_beyond_its_time_is_cancelled(own: Made) -> None:
    database = Database(own.folder("query"), Purpose("query"), Metrics(), statement_seconds=0.2)
    async with started(database):
        with pytest.raises(DeadlineExceeded):
            async with database.connection("test") as connection:
                await connection.execute("SELECT pg_sleep(60)")
        assert await answers(database)
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
        await until(lambda: own.value(sleeping + " AND state = 'active'") == 0)


async def test_an_error_of_ours_leaves_as_it_is_and_rolls_back(own: Made) -> None:
    async with started(own.connect()) as database:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012  the block is what fails
            async with database.transaction("test") as connection:
                await connection.execute("DELETE FROM polaris.consumers")
                raise ZeroDivisionError
        with pytest.raises(asyncpg.UndefinedColumnError):
            async with database.transaction("test") as connection:
                await connection.execute("SELECT nothing FROM polaris.catalog")
        assert await answers(database)


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
async def test_vectors_travel_in_binary_by_copy_too(own: Made, kind: str) -> None:
    own.run(f"CREATE TABLE public.vectors (v {kind}(3))")
    own.run("GRANT ALL ON public.vectors TO PUBLIC")
    async with started(own.connect()) as database, database.connection("test") as connection:
        given = np.array([0.5, -1.25, 3.0], np.float32)
        assert await connection.fetchval(f"SELECT $1::{kind}(3)::text", given) == "[0.5,-1.25,3]"
        await connection.copy_records_to_table(
            "vectors", schema_name="public", columns=["v"], records=[(given,), ([1.0, 2.0, 4.0],)]
        )
        found = [row["v"].to_list() for row in await connection.fetch("SELECT v FROM public.vectors")]
        assert found == [[0.5, -1.25, 3.0], [1.0, 2.0, 4.0]]


async def test_listening_goes_on_after_its_connection_was_lost(own: Made) -> None:
    heard: list[str | None] = []
    async with started(own.connect()) as database:
        database.listen("polaris_work", heard.append)
        await until(lambda: heard == [None])
        own.run("SELECT pg_notify('polaris_work', '7')")
        await until(lambda: heard == [None, "7"])
        own.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'polaris-query-listen' AND datname = current_database()"
        )
        await until(lambda: len(heard) == 3)
        own.run("SELECT pg_notify('polaris_work', '8')")
        await until(lambda: heard == [None, "7", None, "8"])


async def test_a_changed_index_is_served_as_it_is_now(own: Made) -> None:
    index = own.index("changing")
    async with Rig(own) as rig:
        assert (await rig.http.get(index.path)).json()["target_recall_percent"] == 98
        own.run("UPDATE polaris.indexes SET spec = jsonb_set(spec, '{search,targetRecallPercent}', '91')")
        own.run("SELECT pg_notify('polaris_catalog', '1')")

        async def changed() -> bool:
            return bool((await rig.http.get(index.path)).json()["target_recall_percent"] == 91)

        await until(changed)


# --- translation ---


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(), DatabaseUnavailable),
        (ssl.SSLError(), DatabaseUnavailable),
        (socket.gaierror(), DatabaseUnavailable),
        (TimeoutError(), DeadlineExceeded),
        (asyncpg.InvalidPasswordError(""), LoginRefused),
        (asyncpg.InsufficientPrivilegeError(""), LoginRefused),
        (asyncpg.CannotConnectNowError(""), DatabaseUnavailable),
        (asyncpg.AdminShutdownError(""), DatabaseUnavailable),
        (asyncpg.ConnectionDoesNotExistError(""), DatabaseUnavailable),
        (asyncpg.TooManyConnectionsError(""), Overloaded),
        (asyncpg.DiskFullError(""), DatabaseUnavailable),
        (asyncpg.InvalidCatalogNameError(""), NoDatabaseYet),
        (asyncpg.SyntaxOrAccessError(""), None),
        (asyncpg.DataError(""), None),
        (KeyError(), None),
    ],
)
def test_each_failure_has_its_error(error: BaseException, expected: type[Exception] | None) -> None:
    made = translate(error)
    assert type(made) is (expected or type(None))
    if isinstance(made, DatabaseUnavailable | Overloaded):
        assert made.retry_after
