"""PolarisDatabase without a cluster: a folder, real PostgreSQL, real OpenBao, one pass at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Connection

import polaris_migrations
from parts import servers
from parts.servers import Database, make_database, run
from parts.vault import Administrator, grant_roles
from polaris.errors import (
    DatabaseRefused,
    DatabaseUnavailable,
    InvalidManifest,
    NotFound,
    VaultRefused,
    VaultUnavailable,
)
from polaris.names import FINALIZER
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator import bootstrap
from polaris_operator import databases as own_logins
from polaris_operator import vault as vault_door
from polaris_operator.bootstrap import Grant
from polaris_operator.objects import Resource
from scenes.credentials import FromSecret, FromVault, from_secret, from_vault
from scenes.folder import MAIN, NAMESPACE, FolderScene, log_in, query
from scenes.killed import Effects, Killed, counted
from scenes.roles import operator_login
from soak import times

pytestmark = pytest.mark.postgres

READY, FRESH = ("True", "Ready"), ("True", "Fresh")
LOGINS = ("polaris-query", "polaris-worker")

Fresh = Callable[[LocalPostgres], Database]


@pytest.fixture
def secret(scene: FolderScene, postgres: LocalPostgres, fresh_database: Fresh) -> Iterator[FromSecret]:
    """The operator's login in a Secret."""
    with from_secret(scene, fresh_database(postgres)) as made:
        yield made


@pytest.fixture
def vault(
    scene: FolderScene,
    postgres: LocalPostgres,
    fresh_database: Fresh,
    vault_administrator: Administrator,
) -> Iterator[FromVault]:
    """The operator's login from OpenBao."""
    with from_vault(scene, fresh_database(postgres), vault_administrator, "approle") as made:
        yield made


@pytest.fixture(params=["secret", "vault"])
def source(request: pytest.FixtureRequest) -> FromSecret | FromVault:
    """Each of the two."""
    made: FromSecret | FromVault = request.getfixturevalue(request.param)
    return made


def stands(scene: FolderScene, kind: str = "Ready") -> tuple[str, str]:
    return scene.condition(kind)[:2]


def live_logins(database: Database) -> list[str]:
    """Logins of the server, but for those that administrators made."""
    rows = run(
        database.dsn,
        "SELECT rolname FROM pg_roles r WHERE rolcanlogin AND EXISTS (SELECT FROM pg_auth_members m"
        " JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid AND g.rolname ~"
        " ('^polaris_' || %s || '_')) ORDER BY 1",
        run(database.dsn, "SELECT id FROM polaris.catalog")[0][0],
    )
    return [row[0] for row in rows]


# --- it works


@pytest.mark.parametrize("kind", ["secret", "token", "approle"])
def test_a_database_becomes_ready_and_its_logins_do_what_they_should_and_no_more(
    scene: FolderScene,
    vector_postgres: LocalPostgres,
    fresh_database: Fresh,
    vault_administrator: Administrator,
    kind: str,
) -> None:
    database = fresh_database(vector_postgres)
    with ExitStack() as stack:
        source: FromSecret | FromVault
        if kind == "secret":
            source = stack.enter_context(from_secret(scene, database))
        else:
            source = stack.enter_context(from_vault(scene, database, vault_administrator, kind))
        scene.apply(source.manifest())
        scene.reconcile()
        assert stands(scene) == READY
        assert stands(scene, "CredentialsFresh") == FRESH
        assert scene.condition("Stalled") == scene.condition("Reconciling") == ("", "", "")
        status = scene.read().status
        assert status["serverVersion"] == vector_postgres.installation.version
        assert (status["catalogRevision"], status["indexes"]) == (polaris_migrations.HEAD, 0)
        assert [line["name"] for line in status["credentials"]] == ["query", "worker"]
        service, worker = (scene.secret(name) for name in LOGINS)
        assert query(service, "SELECT id FROM polaris.catalog") == [(status["catalog"],)]
        query(worker, "INSERT INTO polaris.models VALUES ('default', 'm', '1', 'worker-1', 8)")
        forbidden = [
            (service, "CREATE TABLE polaris.mine (a integer)"),
            (service, "CREATE SCHEMA mine"),
            (service, "SELECT * FROM polaris.credentials"),
            (service, "INSERT INTO polaris.models VALUES ('default', 'm', '2', 'x', 8)"),
            (service, "UPDATE polaris.indexes SET state = 'deleting'"),
            (worker, "SELECT * FROM polaris.credentials"),
            (worker, "UPDATE polaris.generations SET ef_search = 1"),
            (worker, "SET ROLE polaris_operator"),
            (worker, "CREATE ROLE mine"),
        ]
        for login, statement in forbidden:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                query(login, statement)


def test_a_secret_holds_all_that_a_program_needs(scene: FolderScene, secret: FromSecret) -> None:
    scene.apply(secret.manifest())
    scene.reconcile()
    found = scene.secret("polaris-query")
    assert set(found) == {
        *("username", "password", "host", "port", "dbname", "sslmode", "uri", "epoch", "expires-at")
    }
    assert found["epoch"] == "1"
    ends = datetime.fromisoformat(found["expires-at"])
    assert ends - datetime.now(UTC) > timedelta(hours=23)
    valid = run(
        secret.database.dsn, "SELECT rolvaliduntil FROM pg_roles WHERE rolname = %s", found["username"]
    )
    assert valid == [(ends,)]


def test_no_password_stands_in_the_catalog_or_in_a_log(
    scene: FolderScene, source: FromSecret | FromVault, capfd: pytest.CaptureFixture[str]
) -> None:
    scene.apply(source.manifest())
    scene.reconcile()
    ledger = str(run(source.database.dsn, "SELECT * FROM polaris.credentials"))
    seen = capfd.readouterr()
    server_log = source.database.server.log_file.read_text(errors="replace")  # type: ignore[attr-defined]
    for name in LOGINS:
        for place in (ledger, seen.out, seen.err, server_log):
            assert scene.secret(name)["password"] not in place


# --- it stays as it is


def test_nothing_is_written_while_nothing_changes_not_even_by_the_next_process(
    scene: FolderScene, source: FromSecret | FromVault
) -> None:
    scene.apply(source.manifest())
    scene.reconcile()
    before, logins = scene.read(), [scene.secret(name) for name in LOGINS]
    scene.reconcile()
    assert scene.read() == before
    scene.stop()
    scene.start()
    scene.reconcile()
    assert scene.read() == before
    assert [scene.secret(name) for name in LOGINS] == logins


def test_a_process_that_was_killed_leaves_no_lease_and_fences_nobody_who_lives(
    scene: FolderScene, vault: FromVault
) -> None:
    scene.apply(vault.manifest())
    scene.reconcile()
    assert len(vault.leases()) == 3
    scene.abandon()
    scene.start()
    scene.reconcile()
    assert len(vault.leases()) == 4  # The dead process' own login may still end its work.
    scene.age_own_login(timedelta(minutes=2))
    scene.reconcile()
    assert len(vault.leases()) == 3
    assert stands(scene) == READY
    assert all(log_in(scene.secret(name)) for name in LOGINS)


def test_a_process_that_ends_revokes_its_login_but_not_where_it_can_t_see_whether_that_builds(
    scene: FolderScene, vault: FromVault
) -> None:
    scene.apply(vault.manifest())
    scene.reconcile()
    scene.stop()
    assert len(vault.leases()) == 2
    scene.start()
    scene.reconcile()
    assert len(vault.leases()) == 3
    # Vault answers, PostgreSQL lets nobody in: the next process may find a build of this login's there.
    own = scene.own_login()
    run(vault.database.dsn, f'ALTER ROLE "{own}" NOLOGIN')
    run(vault.database.dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", own)
    scene.stop()
    assert len(vault.leases()) == 3


def test_two_clusters_use_one_database_side_by_side(
    scene: FolderScene, secret: FromSecret, tmp_path: Path
) -> None:
    scene.apply(secret.manifest())
    other = FolderScene(tmp_path / "other")
    try:
        other.put_secret("admin", **_admin(scene))
        other.apply(secret.manifest())
        for _time in range(2):
            scene.reconcile()
            other.reconcile()
            assert stands(scene) == stands(other) == READY
        assert scene.secret("polaris-query")["epoch"] == "1"
        assert other.secret("polaris-query")["epoch"] == "1"
        assert len(live_logins(secret.database)) == 4
    finally:
        other.stop()


def _admin(scene: FolderScene) -> dict[str, str]:
    return dict(scene.secret("admin"))


# --- what is in the way is said, with what helps

SPOIL: dict[Grant, list[str]] = {
    Grant.EXTENSION: ["DROP EXTENSION vector"],
    Grant.OPERATOR_ROLE: ["ALTER ROLE polaris_operator NOCREATEROLE"],
    Grant.STATISTICS: ["REVOKE pg_read_all_stats FROM polaris_operator"],
    Grant.SIGNALS: ["REVOKE pg_signal_backend FROM polaris_operator"],
    Grant.DATABASE: ["REVOKE CREATE ON DATABASE {database} FROM polaris_operator"],
    # Otherwise it is Vault that can't issue, and says so.
    Grant.ISSUER_ADMIN: [
        "ALTER ROLE polaris_vault SUPERUSER",
        "REVOKE ADMIN OPTION FOR polaris_operator FROM polaris_issuer CASCADE",
    ],
}


@pytest.mark.parametrize("grant", SPOIL)
def test_what_was_not_granted_is_a_condition_whose_text_grants_it(
    scene: FolderScene, vault: FromVault, grant: Grant
) -> None:
    database = vault.database
    remedy = bootstrap.remedy(grant, database.name)
    for statement in SPOIL[grant]:
        run(database.dsn, statement.format(database=database.name))
    scene.apply(vault.manifest())
    try:
        scene.reconcile()
        status, reason, message = scene.condition("Ready")
        assert (status, reason) == ("False", "PrerequisiteMissing")
        assert scene.condition("Stalled")[:2] == ("True", "PrerequisiteMissing")
        assert remedy in message
    finally:
        run(database.dsn, remedy)
        run(database.dsn, "ALTER ROLE polaris_vault NOSUPERUSER")
    scene.reconcile()
    assert stands(scene) == READY


def test_a_login_that_is_no_member_hears_of_it(
    scene: FolderScene, postgres: LocalPostgres, fresh_database: Fresh
) -> None:
    with from_secret(scene, fresh_database(postgres)) as source:
        username = scene.secret("admin")["username"]
        run(source.database.dsn, f"REVOKE polaris_operator FROM {username}")
        scene.apply(source.manifest())
        with pytest.raises(Exception, match="member of polaris_operator"):
            scene.reconcile()
        assert stands(scene) == ("False", "PrerequisiteMissing")


def test_a_pgvector_that_is_too_old_is_refused_naming_both(scene: FolderScene, secret: FromSecret) -> None:
    run(secret.database.dsn, "UPDATE pg_extension SET extversion = '0.8.1' WHERE extname = 'vector'")
    scene.apply(secret.manifest())
    scene.reconcile()
    assert stands(scene) == ("False", "VersionUnsupported")
    assert "0.8.1" in scene.condition("Ready")[2]
    assert "0.8.4" in scene.condition("Ready")[2]


def test_a_person_who_migrates_is_told_when_and_how(scene: FolderScene, secret: FromSecret) -> None:
    scene.apply(secret.manifest(migrations="Manual"))
    scene.reconcile()
    assert stands(scene, "Stalled") == ("True", "MigrationNeeded")
    assert "polaris migrate" in scene.condition("Stalled")[2]
    doors = scene.operator.databases._entries[MAIN].doors
    assert doors is not None
    with doors.postgres.unfenced() as connection:
        polaris_migrations.upgrade(connection)
    scene.reconcile()
    assert stands(scene) == READY


def test_a_catalog_that_needs_newer_code_is_left_alone(scene: FolderScene, secret: FromSecret) -> None:
    scene.apply(secret.manifest())
    scene.reconcile()
    run(secret.database.dsn, "UPDATE polaris.catalog SET oldest_code = 99")
    scene.reconcile()
    assert stands(scene) == ("False", "CatalogTooNew")
    assert all(log_in(scene.secret(name)) for name in LOGINS)


def test_a_secret_that_is_missing_or_lacks_a_key_is_named(scene: FolderScene, secret: FromSecret) -> None:
    manifest = secret.manifest()
    scene.apply({**manifest, "spec": {**manifest["spec"], "credentials": {"secretRef": {"name": "none"}}}})
    with pytest.raises(NotFound):
        scene.reconcile()
    assert stands(scene, "Stalled") == ("True", "SecretNotFound")
    assert "rag/none" in scene.condition("Stalled")[2]
    scene.put_secret("none", username="x")
    with pytest.raises(NotFound):
        scene.reconcile()
    assert "password" in scene.condition("Stalled")[2]


def test_a_refused_login_is_a_condition_and_a_changed_secret_is_followed(
    scene: FolderScene, secret: FromSecret
) -> None:
    right = _admin(scene)
    scene.put_secret("admin", username=right["username"], password="wrong")
    scene.apply(secret.manifest())
    with pytest.raises(DatabaseRefused):
        scene.reconcile()
    assert stands(scene, "Stalled") == ("True", "LoginRefused")
    scene.put_secret("admin", **right)
    scene.reconcile()
    assert stands(scene) == READY
    with operator_login(secret.database) as another:
        scene.put_secret("admin", username=another.username, password=another.password)
        run(secret.database.dsn, f"ALTER ROLE {right['username']} NOLOGIN")
        scene.reconcile()
        assert stands(scene) == READY
        scene.put_secret("admin", **right)
        run(secret.database.dsn, f"ALTER ROLE {right['username']} LOGIN")
        scene.reconcile()


def test_a_kubernetes_login_in_a_folder_is_refused_with_what_to_use(
    scene: FolderScene, vault: FromVault
) -> None:
    vault.auth = {"kubernetes": {"role": "polaris", "serviceAccountName": "x"}}
    scene.apply(vault.manifest())
    with pytest.raises(InvalidManifest):
        scene.reconcile()
    assert stands(scene, "Stalled") == ("True", "InvalidSpec")


# --- what somebody changed is put right


def test_roles_grants_and_secrets_that_were_altered_by_hand_are_put_right(
    scene: FolderScene, source: FromSecret | FromVault
) -> None:
    scene.apply(source.manifest())
    scene.reconcile()
    catalog = scene.read().status["catalog"]
    dsn = source.database.dsn
    run(dsn, f"REVOKE ALL ON polaris.indexes FROM polaris_{catalog}_query")
    run(dsn, f"GRANT SELECT ON polaris.credentials TO PUBLIC, polaris_{catalog}_query")
    run(dsn, f"GRANT CREATE ON SCHEMA polaris TO polaris_{catalog}_worker")
    run(dsn, f"ALTER ROLE polaris_{catalog}_worker LOGIN")
    scene.reconcile()
    service, worker = (scene.secret(name) for name in LOGINS)
    query(service, "SELECT * FROM polaris.indexes")
    for login, statement in (
        (service, "SELECT * FROM polaris.credentials"),
        (worker, "CREATE TABLE polaris.mine (a integer)"),
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            query(login, statement)
    assert run(dsn, "SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", f"polaris_{catalog}_worker") == [
        (False,)
    ]
    assert service["epoch"] == "1"


def test_a_secret_that_was_deleted_or_altered_gets_a_new_login(
    scene: FolderScene, source: FromSecret | FromVault
) -> None:
    scene.apply(source.manifest())
    scene.reconcile()
    folder = scene.data / "secrets" / NAMESPACE
    shutil.rmtree(folder / "polaris-query")
    (folder / "polaris-worker" / "..data" / "password").write_text("guessed")
    scene.reconcile()
    assert stands(scene) == READY
    for name in LOGINS:
        assert scene.secret(name)["epoch"] == "2"
        assert log_in(scene.secret(name))


def test_a_login_that_was_dropped_is_issued_anew(scene: FolderScene, secret: FromSecret) -> None:
    scene.apply(secret.manifest())
    scene.reconcile()
    run(secret.database.dsn, f"DROP ROLE {scene.secret('polaris-query')['username']}")
    scene.reconcile()
    assert scene.secret("polaris-query")["epoch"] == "2"
    assert scene.secret("polaris-worker")["epoch"] == "1"
    assert log_in(scene.secret("polaris-query"))


def test_a_secret_of_somebody_else_is_left_alone_and_said(scene: FolderScene, secret: FromSecret) -> None:
    scene.put_secret("polaris-query", mine="1")
    scene.apply(secret.manifest())
    scene.reconcile()
    assert stands(scene, "Stalled") == ("True", "SecretNotOurs")
    assert scene.secret("polaris-query") == {"mine": "1"}
    assert log_in(scene.secret("polaris-worker"))
    shutil.rmtree(scene.data / "secrets" / NAMESPACE / "polaris-query")
    scene.reconcile()
    assert stands(scene) == READY


# --- rotation


def report(database: Database, kind: str, login: dict[str, str] | None, consumer: str = "one") -> None:
    """Say in the catalog which login a consumer uses, as the service does; None: it is gone."""
    run(database.dsn, "DELETE FROM polaris.consumers WHERE id = %s", consumer)
    if login is not None:
        run(
            database.dsn,
            "INSERT INTO polaris.consumers (id, kind, username, epoch, version, catalog_level)"
            " VALUES (%s, %s, %s, %s, '0', 1)",
            *(consumer, kind, login["username"], login["epoch"]),
        )


def pass_time(scene: FolderScene, database: Database, name: str, age: timedelta) -> None:
    """Let a login be so much older, in the ledger and in its Secret."""
    run(
        database.dsn,
        "UPDATE polaris.credentials SET issued_at = issued_at - %s, superseded_at = superseded_at - %s,"
        " expires_at = date_trunc('second', expires_at) - %s WHERE name = %s",
        *(age, age, age, name),
    )
    secret = scene.data / "secrets" / NAMESPACE / f"polaris-{name}" / "..data" / "expires-at"
    ends = datetime.fromisoformat(secret.read_text()) - age
    secret.write_text(ends.strftime("%Y-%m-%dT%H:%M:%SZ"))


def past_half(source: FromSecret | FromVault) -> timedelta:
    """A little more than half of a login's life: a day, or an hour as the tokens of tests live."""
    return timedelta(minutes=35) if isinstance(source, FromVault) else timedelta(hours=13)


def test_a_login_is_replaced_at_half_of_its_life_and_ends_when_nobody_uses_it(
    scene: FolderScene, secret: FromSecret
) -> None:
    database = secret.database
    scene.apply(secret.manifest())
    scene.reconcile()
    first = dict(scene.secret("polaris-query"))
    report(database, "query", first)
    pass_time(scene, database, "query", timedelta(hours=11))
    scene.reconcile()
    assert scene.secret("polaris-query")["epoch"] == "1"
    pass_time(scene, database, "query", timedelta(hours=2))
    scene.reconcile()
    second = dict(scene.secret("polaris-query"))
    assert second["epoch"] == "2"
    assert log_in(first)
    assert log_in(second)
    (line, _) = scene.read().status["credentials"]
    assert (line["epoch"], line["acknowledged"], line["consumers"]) == (2, 0, 1)
    pass_time(scene, database, "query", timedelta(hours=1))
    scene.reconcile()
    assert log_in(first), "a consumer still says that it uses it"
    report(database, "query", second)
    scene.reconcile()
    assert not log_in(first)
    assert log_in(second)
    assert first["username"] not in live_logins(database)
    (line, _) = scene.read().status["credentials"]
    assert (line["acknowledged"], line["consumers"]) == (1, 1)


def test_a_consumer_that_does_not_go_over_is_named_once_and_is_not_cut_off(
    scene: FolderScene, source: FromSecret | FromVault
) -> None:
    database = source.database
    told: list[tuple[str, str]] = []
    event = scene.objects.event

    def telling(resource: Resource, reason: str, message: str, *, warning: bool) -> None:
        told.append((reason, message))
        event(resource, reason, message, warning=warning)

    scene.objects.event = telling  # type: ignore[method-assign]
    scene.apply(source.manifest())
    scene.reconcile()
    first = dict(scene.secret("polaris-query"))
    report(database, "query", first, "polaris-serve-7")
    pass_time(scene, database, "query", past_half(source))
    scene.reconcile()
    assert told == []
    assert "late" not in scene.condition("CredentialsFresh")[2]
    pass_time(scene, database, "query", timedelta(minutes=6))
    for _look in range(2):
        scene.reconcile()
    ((reason, message),) = told
    assert reason == "LoginNotAcknowledged"
    assert "polaris-serve-7" in message
    assert stands(scene, "CredentialsFresh") == FRESH
    assert "polaris-serve-7" in scene.condition("CredentialsFresh")[2]
    assert scene.read().status["credentials"][0]["late"] == ["polaris-serve-7"]
    assert log_in(first)
    report(database, "query", dict(scene.secret("polaris-query")), "polaris-serve-7")
    scene.reconcile()
    assert not log_in(first)
    assert scene.read().status["credentials"][0]["late"] == []


def test_a_revoked_login_reads_no_table_in_a_session_that_was_open(
    scene: FolderScene, source: FromSecret | FromVault
) -> None:
    """`SELECT 1` would prove nothing: where only the role is gone, an open session still answers that."""
    scene.apply(source.manifest())
    scene.reconcile()
    first = dict(scene.secret("polaris-query"))
    with closing(psycopg2.connect(first["uri"])) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SELECT id FROM polaris.catalog")
        pass_time(scene, source.database, "query", past_half(source))
        scene.reconcile()
        cursor.execute("SELECT id FROM polaris.catalog")
        pass_time(scene, source.database, "query", timedelta(minutes=6))
        scene.reconcile()
        with pytest.raises(psycopg2.Error):
            cursor.execute("SELECT id FROM polaris.catalog")
    assert not log_in(first)


def test_where_only_the_authority_or_the_host_changes_the_login_stays(
    scene: FolderScene, source: FromSecret | FromVault
) -> None:
    scene.put_secret("authority", ca="first")
    tls = {"mode": "disable", "caSecretRef": {"name": "authority", "key": "ca"}}
    scene.apply(source.manifest(tls=tls))
    scene.reconcile()
    first = dict(scene.secret("polaris-query"))
    scene.put_secret("authority", ca="second")
    scene.reconcile()
    after = dict(scene.secret("polaris-query"))
    assert after == {**first, "ca.crt": after["ca.crt"]}
    assert "second" in after["ca.crt"]
    scene.apply(source.manifest(tls=tls, host="localhost"))
    scene.reconcile()
    moved = dict(scene.secret("polaris-query"))
    assert (moved["host"], moved["username"], moved["epoch"]) == ("localhost", first["username"], "1")
    assert "@localhost:" in moved["uri"]
    assert log_in(moved)
    assert stands(scene) == READY
    assert len(live_logins(source.database)) == 2


def test_it_is_published_how_long_consumers_outlive_a_sealed_vault(
    scene: FolderScene, source: FromSecret | FromVault
) -> None:
    scene.apply(source.manifest())
    scene.reconcile()
    for line in scene.read().status["credentials"]:
        left = (datetime.fromisoformat(line["expiresAt"]) - datetime.now(UTC)).total_seconds()
        assert abs(line["sealToleranceSeconds"] - left / 2) <= 60


def test_a_short_lease_is_replaced_in_time_again_and_again(scene: FolderScene, vault: FromVault) -> None:
    vault.longest_lease(6)
    scene.apply(vault.manifest())
    epochs = set()
    for _time in range(3):
        again = scene.reconcile()
        assert stands(scene) == READY
        assert all(log_in(scene.secret(name)) for name in LOGINS)
        epochs.add(scene.secret("polaris-query")["epoch"])
        assert again is not None
        assert again <= 3
        time.sleep(max(again, 0))
    assert len(epochs) >= 2


# --- crashes in the middle of issuing


@pytest.mark.parametrize("vault_forgot", [False, True])
def test_a_login_that_nobody_wrote_down_is_found_and_ended(
    scene: FolderScene, vault: FromVault, vault_forgot: bool
) -> None:
    """Vault may have made the login and the lease, or the login and then have lost its client."""
    scene.apply(vault.manifest())
    scene.reconcile()
    catalog = scene.read().status["catalog"]
    if vault_forgot:
        vault.make_and_forget("v-lost", f"polaris_{catalog}_query")
    else:
        vault.administrator.client.read(f"{vault.mount}/creds/polaris-{catalog}-query")
    mine = "person_of_" + catalog
    run(vault.database.dsn, f"CREATE ROLE {mine} LOGIN IN ROLE polaris_{catalog}_query")
    run(
        vault.database.dsn,
        "INSERT INTO polaris.credentials (installation_id, owner, name, epoch, group_role, source, state,"
        " secret_namespace, secret_name, requested_at) SELECT installation_id, owner, name, 2, group_role,"
        " source, 'requested', secret_namespace, secret_name, now() - interval '31 seconds'"
        " FROM polaris.credentials WHERE name = 'query'",
    )
    before = scene.secret("polaris-query")
    scene.reconcile()
    assert len(vault.leases()) == 3
    assert scene.secret("polaris-query") == before
    known = {scene.secret(name)["username"] for name in LOGINS}
    assert set(live_logins(vault.database)) == {*known, mine}, "a person's own login is let be"
    assert run(vault.database.dsn, "SELECT state FROM polaris.credentials WHERE epoch = 2") == [("revoked",)]
    run(vault.database.dsn, f"DROP ROLE {mine}")


def test_a_login_that_was_issued_and_never_published_is_revoked_and_the_next_one_is_published(
    scene: FolderScene, source: FromSecret | FromVault
) -> None:
    scene.apply(source.manifest())
    scene.reconcile()
    run(
        source.database.dsn,
        "UPDATE polaris.credentials SET state = 'issued' WHERE name = 'query';"
        "UPDATE polaris.credentials SET epoch = 7 WHERE name = 'query'",
    )
    scene.reconcile()
    assert scene.secret("polaris-query")["epoch"] == "8"
    assert log_in(scene.secret("polaris-query"))
    assert len(live_logins(source.database)) == 2


def test_a_login_that_was_published_before_the_ledger_knew_stays(
    scene: FolderScene, source: FromSecret | FromVault
) -> None:
    scene.apply(source.manifest())
    scene.reconcile()
    before = scene.secret("polaris-query")
    run(source.database.dsn, "UPDATE polaris.credentials SET state = 'issued' WHERE name = 'query'")
    scene.reconcile()
    assert scene.secret("polaris-query") == before
    assert stands(scene) == READY
    state = "SELECT state FROM polaris.credentials WHERE name = 'query'"
    assert run(source.database.dsn, state) == [("published",)]


@pytest.mark.soak
def test_killed_at_any_step_of_a_rotation_nothing_is_leaked_and_one_login_an_entry_lives(
    scene: FolderScene, vault: FromVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own login and that of the service are both due; kill -9 after each effect, then another process."""
    for module in (vault_door, own_logins):
        monkeypatch.setattr(module, "TRIAL_SECONDS", 3)
    scene.apply(vault.manifest())
    scene.reconcile()
    with counted(Effects()) as effects:
        rotate(scene, vault)
    assert effects.done.count("vault _issue") == effects.done.count("vault revoke") == 2
    for _round in range(times(1, 20)):
        for step in range(1, len(effects.done) + 1, times(3, 1)):
            with counted(Effects(step)), pytest.raises(Killed):
                rotate(scene, vault)
            scene.abandon()
            scene.start()
            assert leaked(scene, vault) == [], f"after {effects.done[step - 1]}, effect {step}"


def rotate(scene: FolderScene, vault: FromVault) -> None:
    """Replace the operator's own login and that of the service, and let the ones before end."""
    scene.age_own_login(timedelta(hours=13))
    pass_time(scene, vault.database, "query", timedelta(minutes=35))
    scene.reconcile()
    pass_time(scene, vault.database, "query", timedelta(minutes=6))
    scene.age_own_login(timedelta(minutes=2))
    scene.reconcile()


def leaked(scene: FolderScene, vault: FromVault) -> list[str]:
    """Leases and roles beyond one of each entry, once what a crash left had its two minutes."""
    scene.reconcile()
    run(
        vault.database.dsn,
        "UPDATE polaris.credentials SET requested_at = requested_at - interval '31 seconds',"
        " superseded_at = superseded_at - interval '301 seconds'",
    )
    scene.age_own_login(timedelta(minutes=2))
    scene.reconcile()
    known = {scene.own_login(), *(scene.secret(name)["username"] for name in LOGINS)}

    def more() -> list[str]:
        leased = run(vault.database.dsn, "SELECT rolname FROM pg_roles WHERE rolname ~ '^v-' ORDER BY 1")
        roles = [name for (name,) in leased if name not in known]
        return roles + vault.leases()[len(known) :]

    assert stands(scene) == READY
    assert all(log_in(scene.secret(name)) for name in LOGINS)
    ends = time.monotonic() + 10
    while more() and time.monotonic() < ends:
        time.sleep(0.1)
    return more()


def test_a_login_on_trial_lives_on_while_its_process_does_and_no_ledger_can_have_it(
    scene: FolderScene, vault: FromVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (vault_door, own_logins):
        monkeypatch.setattr(module, "TRIAL_SECONDS", 4)
    scene.apply(vault.manifest(migrations="Manual"))
    scene.reconcile()
    assert stands(scene, "Stalled") == ("True", "MigrationNeeded")
    own = scene.own_login()
    for _look in range(3):
        time.sleep(2.2)
        scene.reconcile()
    assert scene.own_login() == own
    assert len(vault.leases()) == 1
    scene.apply(vault.manifest())
    scene.reconcile()
    assert stands(scene) == READY
    time.sleep(4.5)
    scene.reconcile()
    assert scene.own_login() == own
    assert len(vault.leases()) == 3


def test_a_migration_may_take_longer_than_a_trial_and_a_process_that_is_killed_in_it_leaves_no_login(
    scene: FolderScene, vault: FromVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (vault_door, own_logins):
        monkeypatch.setattr(module, "TRIAL_SECONDS", 2)

    def migrate(connection: Connection, revision: str) -> None:  # noqa: ARG001
        time.sleep(4)
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_class").scalar_one()
        assert len(vault.leases()) == 1
        raise Killed("in a migration")

    monkeypatch.setattr(polaris_migrations, "upgrade", migrate)
    scene.apply(vault.manifest())
    with pytest.raises(Killed):
        scene.reconcile()
    scene.abandon()
    scene.start()
    ends = time.monotonic() + 20
    while (left := vault.leases()) and time.monotonic() < ends:
        time.sleep(0.1)
    assert left == []


def test_where_the_policy_lets_nobody_make_a_token_a_login_is_issued_all_the_same(
    scene: FolderScene, vault: FromVault
) -> None:
    before = bootstrap.vault_policy(vault.mount).split('path "auth/token/create"')[0]
    policies = vault.administrator.client.sys
    policies.create_or_update_policy(bootstrap.VAULT_POLICY, before)
    try:
        scene.apply(vault.manifest())
        scene.reconcile()
        assert stands(scene) == READY
    finally:
        vault.administrator.write_policy(mount=vault.mount)
    assert len(vault.leases()) == 3


# --- parts that go away


def test_while_vault_is_sealed_all_goes_on_and_afterwards_it_is_made_good(
    scene: FolderScene, vault: FromVault, openbao: LocalOpenBao
) -> None:
    scene.apply(vault.manifest())
    scene.reconcile()
    openbao.seal()
    try:
        scene.reconcile()
        assert stands(scene) == READY
        assert stands(scene, "CredentialsFresh") == FRESH
        pass_time(scene, vault.database, "query", timedelta(minutes=35))
        scene.reconcile()
        assert stands(scene) == READY
        assert stands(scene, "CredentialsFresh") == ("False", "VaultUnavailable")
        assert log_in(scene.secret("polaris-query"))
    finally:
        openbao.unseal()
    scene.reconcile()
    assert stands(scene, "CredentialsFresh") == FRESH
    assert scene.secret("polaris-query")["epoch"] == "2"


def test_vault_that_is_away_from_the_beginning_is_a_condition_and_then_it_converges(
    scene: FolderScene, vault: FromVault, openbao: LocalOpenBao
) -> None:
    openbao.seal()
    scene.apply(vault.manifest())
    try:
        with pytest.raises(VaultUnavailable):
            scene.reconcile()
        assert stands(scene) == ("False", "VaultUnavailable")
        assert stands(scene, "Reconciling") == ("True", "VaultUnavailable")
    finally:
        openbao.unseal()
    scene.reconcile()
    assert stands(scene) == READY


def test_a_vault_that_refuses_is_a_condition_for_a_person(scene: FolderScene, vault: FromVault) -> None:
    scene.put_secret("vault", secret_id="wrong")
    scene.apply(vault.manifest())
    with pytest.raises(VaultRefused):
        scene.reconcile()
    assert stands(scene, "Stalled") == ("True", "VaultRefused")


def test_a_vault_whose_engine_cannot_issue_says_why_in_the_status(
    scene: FolderScene, vault: FromVault
) -> None:
    """Its own login to PostgreSQL lost the right to make members of the groups."""
    scene.apply(vault.manifest())
    run(vault.database.dsn, "REVOKE polaris_issuer FROM polaris_vault")
    try:
        with pytest.raises(VaultUnavailable):
            scene.reconcile()
        assert "permission denied" in scene.condition("Ready")[2]
    finally:
        run(vault.database.dsn, "GRANT polaris_issuer TO polaris_vault")
    scene.reconcile()
    assert stands(scene) == READY


def test_while_postgresql_is_stopped_the_status_says_so_and_then_it_converges(
    scene: FolderScene, source: FromSecret | FromVault, postgres: LocalPostgres
) -> None:
    scene.apply(source.manifest())
    scene.reconcile()
    before = scene.read().status
    postgres.stop()
    try:
        with pytest.raises(DatabaseUnavailable):
            scene.reconcile()
        assert stands(scene) == ("False", "DatabaseUnavailable")
        assert stands(scene, "Reconciling") == ("True", "DatabaseUnavailable")
        assert scene.read().status["catalog"] == before["catalog"], "what was known is still said"
    finally:
        postgres.start()
    scene.reconcile()
    assert stands(scene) == READY


def test_when_vault_revoked_the_own_login_another_is_asked_for(scene: FolderScene, vault: FromVault) -> None:
    scene.apply(vault.manifest())
    scene.reconcile()
    (own,) = [lease for lease in vault.leases() if "/polaris-operator/" in lease]
    vault.administrator.client.write_data(f"sys/leases/revoke/{own}", data={"sync": True})
    with pytest.raises((DatabaseRefused, DatabaseUnavailable)):
        scene.reconcile()
    scene.reconcile()
    assert stands(scene) == READY


# --- the end


def test_a_deleted_database_leaves_no_login_lease_or_secret(scene: FolderScene, vault: FromVault) -> None:
    scene.apply(vault.manifest())
    scene.reconcile()
    assert scene.read().finalizers == (FINALIZER,)
    logins = [dict(scene.secret(name)) for name in LOGINS]
    scene.delete(MAIN)
    scene.reconcile()
    assert scene.objects.get(MAIN) is None
    assert vault.leases() == []
    assert not any(log_in(login) for login in logins)
    assert not any((scene.data / "secrets" / NAMESPACE / name).exists() for name in LOGINS)
    roles = vault.administrator.client.list(f"{vault.mount}/roles")
    assert isinstance(roles, dict)
    assert roles["data"]["keys"] == ["polaris-operator"]


def test_killed_as_it_lets_a_deleted_database_go_a_process_leaves_no_login_that_lives_for_hours(
    scene: FolderScene, vault: FromVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.apply(vault.manifest())
    scene.reconcile()
    monkeypatch.setattr(own_logins, "TRIAL_SECONDS", 2)
    let_go = scene.objects.set_finalizer

    def killed(resource: Resource, *, present: bool) -> Resource:
        let_go(resource, present=present)
        raise Killed("after the finalizer was taken off")

    monkeypatch.setattr(scene.objects, "set_finalizer", killed)
    scene.delete(MAIN)
    with pytest.raises(Killed):
        scene.reconcile()
    scene.abandon()
    scene.start()
    assert scene.objects.get(MAIN) is None
    ends = time.monotonic() + 20
    while (left := vault.leases()) and time.monotonic() < ends:
        time.sleep(0.1)
    assert left == []


def test_applied_again_after_its_deletion_a_database_goes_on_with_the_next_epochs(
    scene: FolderScene, secret: FromSecret
) -> None:
    scene.apply(secret.manifest())
    scene.reconcile()
    catalog = scene.read().status["catalog"]
    scene.delete(MAIN)
    scene.reconcile()
    scene.apply(secret.manifest())
    scene.reconcile()
    assert scene.read().status["catalog"] == catalog
    assert scene.secret("polaris-query")["epoch"] == "2"
    assert log_in(scene.secret("polaris-query"))


def test_a_deleted_database_waits_for_its_indexes(scene: FolderScene, secret: FromSecret) -> None:
    scene.apply(secret.manifest())
    scene.reconcile()
    dsn = secret.database.dsn
    run(
        dsn,
        "INSERT INTO polaris.indexes (installation_id, namespace, name, uid, state, deletion_policy,"
        " schema_name) SELECT id, 'elsewhere', 'handbook', 'u', 'active', 'Retain', 's'"
        " FROM polaris.installations",
    )
    # An index whose object may not be seen here: nobody releases it.
    scene.objects._complete = False
    scene.delete(MAIN)
    scene.reconcile()
    assert stands(scene, "Reconciling") == ("True", "InUse")
    assert "elsewhere/handbook" in scene.condition("Reconciling")[2]
    assert all(log_in(scene.secret(name)) for name in LOGINS)
    run(dsn, "UPDATE polaris.indexes SET state = 'released'")
    scene.reconcile()
    assert scene.objects.get(MAIN) is None


def test_a_deleted_database_whose_postgresql_is_gone_holds_nobody_for_longer_than_its_deadline(
    scene: FolderScene, secret: FromSecret
) -> None:
    scene.apply(secret.manifest())
    scene.reconcile()
    gone = {**secret.manifest(), "spec": {**secret.manifest()["spec"], "port": 1}}
    scene.apply(gone)
    scene.delete(MAIN)
    with pytest.raises(DatabaseUnavailable):
        scene.reconcile()
    assert scene.objects.get(MAIN) is not None
    scene.stop()
    file = scene.data / "objects" / "PolarisDatabase" / NAMESPACE / "main.json"
    kept = json.loads(file.read_text())
    kept["deleted_at"] = (datetime.now(UTC) - timedelta(seconds=601)).isoformat()
    file.write_text(json.dumps(kept))
    scene.start()
    with pytest.raises(DatabaseUnavailable):
        scene.reconcile()
    assert scene.objects.get(MAIN) is None


# --- TLS, and a server without pgvector


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[Database, str]]:
    """Debian's PostgreSQL 15 with a certificate for `localhost`; yields a database and the authority."""
    files = ["-keyout", str(tmp_path / "server.key"), "-out", str(tmp_path / "server.crt")]
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *files,
        ],
        check=True,
        capture_output=True,
    )
    with servers.running(servers.postgres15()) as server:
        owner = server.data.stat()
        for name in ("server.key", "server.crt"):
            target = server.data / name
            target.write_bytes((tmp_path / name).read_bytes())
            target.chmod(0o600)
            shutil.chown(target, owner.st_uid, owner.st_gid)
        run(server.superuser_dsn, "ALTER SYSTEM SET ssl = on")
        run(server.superuser_dsn, "SELECT pg_reload_conf()")
        yield make_database(server), (tmp_path / "server.crt").read_text()


# PostgreSQL's own TLS: servers from wheels are built without OpenSSL, so this one has to be Debian's. Where
# that can't be had, tests/tls checks names and authorities through a TLS end before a server from a wheel.
@pytest.mark.skipif(servers.why_not_15() is not None, reason=str(servers.why_not_15()))
def test_a_certificate_is_verified_by_name_and_authority(
    scene: FolderScene, encrypted: tuple[Database, str]
) -> None:
    """It gets as far as it can without pgvector: the condition that says so came through TLS."""
    database, authority = encrypted
    with operator_login(database) as identity:
        scene.put_secret("admin", username=identity.username, password=identity.password)
        scene.put_secret("authority", ca=authority)
        verified = {"mode": "verify-full", "caSecretRef": {"name": "authority", "key": "ca"}}
        source = FromSecret(database)
        scene.apply(source.manifest(tls=verified, host="localhost"))
        scene.reconcile()
        assert stands(scene) == ("False", "PrerequisiteMissing")
        assert "CREATE EXTENSION IF NOT EXISTS vector" in scene.condition("Ready")[2]
        backend = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)"
        assert run(database.dsn, f"{backend} WHERE s.ssl AND a.usename = %s", identity.username) > [(0,)]
        for wrong in (
            {"tls": verified, "host": "127.0.0.1"},
            {"tls": {"mode": "verify-full"}, "host": "localhost"},
        ):
            scene.apply(source.manifest(**wrong))
            with pytest.raises(DatabaseRefused, match="certificate"):
                scene.reconcile()
            assert stands(scene, "Stalled") == ("True", "LoginRefused")
        scene.apply(source.manifest(tls={"mode": "require"}, host="127.0.0.1"))
        scene.reconcile()
        assert stands(scene) == ("False", "PrerequisiteMissing")


def test_an_older_server_without_pgvector_is_told_what_is_missing(
    scene: FolderScene, any_postgres: LocalPostgres, fresh_database: Fresh
) -> None:
    database = fresh_database(any_postgres)
    run(database.dsn, "DROP EXTENSION IF EXISTS vector")
    grant_roles(database)
    run(database.dsn, "DROP EXTENSION IF EXISTS vector")
    with operator_login(database) as identity:
        run(database.dsn, "DROP EXTENSION IF EXISTS vector")
        scene.put_secret("admin", username=identity.username, password=identity.password)
        scene.apply(FromSecret(database).manifest())
        scene.reconcile()
        assert stands(scene) == ("False", "PrerequisiteMissing")
