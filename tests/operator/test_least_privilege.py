"""What `polaris bootstrap` prints is enough, and every statement of it is needed; nobody may do more."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from hvac.exceptions import Forbidden, VaultError
from psycopg2 import errors

from operator_index.place import index_manifest
from parts import servers, vault
from parts.servers import Database, connect, run
from parts.vault import Administrator
from polaris.errors import PolarisError
from polaris_cli.up import openbao as local_openbao
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator import bootstrap
from polaris_operator.bootstrap import Platform, VaultSetup
from scenes.folder import MAIN, FolderScene, database_manifest, query

pytestmark = pytest.mark.postgres

READY = ("True", "Ready")
PASSWORD = "s3cret"
ISSUER = bootstrap.ISSUER
OPERATOR = bootstrap.OPERATOR


@pytest.fixture(scope="module")
def server() -> Iterator[LocalPostgres]:
    """A server in which nobody was ever granted anything: roles are the whole server's."""
    with servers.running(servers.postgres18()) as made:
        yield made


@pytest.fixture
def database(server: LocalPostgres) -> Iterator[Database]:
    """A bare database that only those may enter who were let in."""
    made = Database(server, f"least_{secrets.token_hex(4)}")
    run(server.superuser_dsn, f"CREATE DATABASE {made.name} TEMPLATE template0")
    run(server.superuser_dsn, f"REVOKE CONNECT ON DATABASE {made.name} FROM PUBLIC")
    yield made
    servers.drop_database(made)
    made_here = "SELECT quote_ident(rolname) FROM pg_roles WHERE rolname ~ '^(polaris|v-)'"
    if roles := [role for (role,) in run(server.superuser_dsn, made_here)]:
        run(server.superuser_dsn, f"DROP ROLE {', '.join(roles)}")  # At once: they granted one another.


class Setting:
    """Administrators who did what was printed, or not all of it, and the operator afterwards."""

    def __init__(self, scene: FolderScene, database: Database, administrator: Administrator) -> None:
        self.scene, self.database, self.administrator = scene, database, administrator
        self.mount = f"least-{secrets.token_hex(4)}"
        self.said: list[str] = []
        """What refused anybody anything, in its own words."""

    def grant(self, without: str | None = None) -> None:
        """Type in what is printed, line by line, but for the lines that hold `without`."""
        for line in printed(self.database).splitlines():
            if without is None or without not in line:
                self._try(lambda line=line: run(self.database.dsn, line))

    def log_in_by_vault(self) -> None:
        """Let Vault's administrator lead an engine to the database, and the operator log in there."""
        self._try(lambda: self.administrator.connect_database(self.database, PASSWORD, mount=self.mount))
        self.administrator.write_policy(mount=self.mount)
        app_role = self.administrator.app_role()
        self.scene.put_secret("vault", secret_id=app_role.secret_id)
        secret = {"name": "vault", "key": "secret-id"}
        way = {
            "address": self.administrator.client.url,
            "auth": {"appRole": {"roleId": app_role.role_id, "secretRef": secret}},
            "mount": self.mount,
        }
        self.scene.apply(database_manifest(self.database, {"vault": way}, allowedNamespaces=["*"]))

    def go(self) -> None:
        """Look twice, then let a login be used and taken back while it is in use."""
        for _time in range(2):
            self._try(self.scene.reconcile)
        self.said += [self.scene.condition(kind)[2] for kind in ("Ready", "Stalled", "CredentialsFresh")]
        if self.stands() != READY:
            return
        role = f"polaris-{self.scene.read().status['catalog']}-query"
        lease = vault.issue(self.administrator.client, mount=self.mount, role=role)
        dsn = self.database.dsn_of(lease.username, lease.password)
        self._try(lambda: self._take_back(dsn, lease))

    def _take_back(self, dsn: str, lease: vault.Lease) -> None:
        with closing(connect(dsn)) as session, session.cursor() as cursor:
            cursor.execute("SELECT id FROM polaris.catalog")
            vault.revoke(self.administrator.client, lease)
            with pytest.raises(psycopg2.Error):
                cursor.execute("SELECT id FROM polaris.catalog")

    def stands(self) -> tuple[str, str]:
        return self.scene.condition("Ready")[:2]

    def _try(self, work: Any) -> None:
        try:
            work()
        except (psycopg2.Error, PolarisError, VaultError) as error:
            self.said.append(" ".join(str(error).split()))

    def close(self) -> None:
        with suppress(VaultError):
            self.administrator.client.write_data(f"sys/leases/revoke-force/{self.mount}")
        self.administrator.client.delete(f"sys/mounts/{self.mount}")


@pytest.fixture
def setting(scene: FolderScene, database: Database, vault_administrator: Administrator) -> Iterator[Setting]:
    with ExitStack() as stack:
        made = Setting(scene, database, vault_administrator)
        stack.callback(made.close)
        yield made


def printed(database: Database) -> str:
    """The SQL for the superuser, as it is printed, with a password in its place."""
    setup = VaultSetup(database=database.name)
    (sql, _) = bootstrap.parts(Platform.POSTGRESQL, setup)
    return sql.text.replace(bootstrap.PASSWORD_PLACE, PASSWORD)


def test_with_all_that_is_printed_everything_works_and_nothing_is_refused(setting: Setting) -> None:
    setting.grant()
    setting.log_in_by_vault()
    setting.go()
    assert setting.stands() == READY
    assert [said for said in setting.said if "denied" in said or "refuse" in said] == []


# A statement, by what stands in it; and what fails without it, by what is said.
NEEDED = {
    "CREATE EXTENSION": "CREATE EXTENSION IF NOT EXISTS vector",
    f"CREATE ROLE {OPERATOR}": 'role "polaris_operator" does not exist',
    "GRANT pg_read_all_stats": f"GRANT pg_read_all_stats TO {OPERATOR}",
    f"GRANT pg_signal_backend TO {OPERATOR}": f"GRANT pg_signal_backend TO {OPERATOR}",
    "GRANT CREATE ON DATABASE": "GRANT CREATE ON DATABASE",
    "WITH GRANT OPTION": "permission denied for database",
    f"CREATE ROLE {ISSUER}": 'role "polaris_issuer" does not exist',
    f"GRANT {OPERATOR} TO {ISSUER}": 'permission denied to grant role "polaris_operator"',
    'CREATE ROLE "polaris_vault"': 'role "polaris_vault" does not exist',
    f"GRANT {ISSUER} TO": "permission denied to grant role",
    'GRANT pg_signal_backend TO "polaris_vault"': "permission denied to terminate process",
    'TO "polaris_vault"$': "permission denied for database",
}


@pytest.mark.parametrize("without", NEEDED)
def test_each_statement_is_needed_and_what_fails_without_it_is_named(setting: Setting, without: str) -> None:
    line = without.removesuffix("$")
    if without.endswith("$"):
        line = f'GRANT CONNECT ON DATABASE "{setting.database.name}" {line}'
    assert line in printed(setting.database)
    setting.grant(without=line)
    setting.log_in_by_vault()
    setting.go()
    assert any(NEEDED[without] in said for said in setting.said), setting.said


def test_every_statement_is_one_that_was_looked_at(database: Database) -> None:
    """But for the one that puts an operator's role right that somebody made otherwise, which is below."""
    others = [line for line in printed(database).splitlines() if not line.startswith("ALTER ROLE")]
    assert len(others) == len(NEEDED)


def test_an_operators_role_that_somebody_made_otherwise_is_put_right(setting: Setting) -> None:
    run(setting.database.dsn, f"CREATE ROLE {OPERATOR} LOGIN")
    setting.grant()
    setting.log_in_by_vault()
    setting.go()
    assert setting.stands() == READY


# --- nobody may do more


@pytest.fixture
def whole(setting: Setting) -> Setting:
    """A database and an index that are ready."""
    setting.grant()
    setting.log_in_by_vault()
    setting.go()
    worker = setting.scene.secret("polaris-worker")
    query(worker, "INSERT INTO polaris.models VALUES ('default', 'e5', '1', 'worker-1', 8)")
    reporting = {"name": "reporting", "secretName": "faq-reporting"}
    for name in ("faq", "other"):
        key = setting.scene.apply(index_manifest(name, access=[reporting] if name == "faq" else []))
        while setting.scene.condition("Ready", key)[:2] != READY:
            setting.scene.reconcile(key)
    return setting


def schema(setting: Setting, name: str) -> str:
    found = "SELECT schema_name FROM polaris.indexes WHERE name = %s"
    return str(run(setting.database.dsn, found, name)[0][0])


def test_no_part_is_a_superuser_or_reaches_beyond_its_task(whole: Setting) -> None:
    dsn = whole.database.dsn
    mighty = "rolsuper OR rolcreatedb OR rolreplication OR rolbypassrls"
    assert run(dsn, f"SELECT rolname FROM pg_roles WHERE rolname ~ '^(polaris|v-)' AND ({mighty})") == []
    may_log_in = run(dsn, "SELECT rolname FROM pg_roles WHERE rolname ~ '^polaris' AND rolcanlogin")
    assert may_log_in == [("polaris_vault",)]
    for statement in (
        "ALTER SYSTEM SET log_statement = 'all'",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT rolpassword FROM pg_authid",
        "CREATE DATABASE mine",
        "CREATE EXTENSION amcheck",
        f"ALTER ROLE {whole.database.server.superuser} NOLOGIN",
        "CREATE ROLE mine SUPERUSER",
    ):
        with closing(connect(dsn)) as session, session.cursor() as cursor:
            cursor.execute("SET ROLE polaris_operator")
            with pytest.raises(errors.InsufficientPrivilege):
                cursor.execute(statement)


def test_the_service_and_the_worker_have_no_ddl_and_a_reader_sees_two_views_of_one_index(
    whole: Setting,
) -> None:
    faq, other = schema(whole, "faq"), schema(whole, "other")
    secret = whole.scene.objects.secret("team", "faq-reporting")
    assert secret is not None
    reader = dict(secret.data)
    ddl = (
        f"CREATE TABLE {faq}.mine (a integer)",
        f"ALTER TABLE {faq}.stored_documents ADD COLUMN mine integer",
        f"DROP TABLE {faq}.stored_documents",
        f"TRUNCATE {faq}.stored_documents",
        f"CREATE INDEX ON {faq}.stored_documents (version)",
        f"DROP SCHEMA {faq} CASCADE",
        f"CREATE FUNCTION {faq}.mine() RETURNS integer RETURN 1",
        "CREATE TABLE public.mine (a integer)",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "SET ROLE polaris_operator",
        "SELECT * FROM polaris.credentials",
        "SELECT * FROM polaris.fences",
        "UPDATE polaris.catalog SET id = 'mine'",
    )
    reading = (
        f"SELECT * FROM {faq}.stored_documents",
        f"SELECT * FROM {other}.documents",
        f"SELECT * FROM {other}.chunks",
        f"INSERT INTO {faq}.documents DEFAULT VALUES",
        f"DELETE FROM {faq}.chunks",
        "SELECT * FROM polaris.indexes",
    )
    logins = {name: whole.scene.secret(f"polaris-{name}") for name in ("query", "worker")}
    for login, statements in (*((one, ddl) for one in logins.values()), (reader, (*ddl, *reading))):
        for statement in statements:
            # A view of several tables takes no rows, whoever brings them.
            with pytest.raises((errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState)):
                query(login, statement)
    assert query(reader, f"SELECT count(*) FROM {faq}.documents") == [(0,)]
    assert query(reader, f"SELECT count(*) FROM {faq}.chunks") == [(0,)]


def test_only_the_operator_reads_the_ledger_of_logins(whole: Setting) -> None:
    readers = run(
        whole.database.dsn,
        "SELECT rolname FROM pg_roles WHERE NOT rolsuper"
        " AND has_any_column_privilege(oid, 'polaris.credentials', 'SELECT, INSERT, UPDATE') ORDER BY 1",
    )
    own = whole.scene.operator.databases._entries[MAIN].own
    assert own is not None
    # The first two are PostgreSQL's own, of which nobody is a member; the last is leased by the operator.
    assert [name for (name,) in readers] == [
        *("pg_read_all_data", "pg_write_all_data", "polaris_operator", own.username)
    ]
    members = (
        "SELECT count(*) FROM pg_auth_members WHERE roleid::regrole::text ~ '^pg_(read|write)_all_data$'"
    )
    assert run(whole.database.dsn, members) == [(0,)]


# --- Vault


@pytest.fixture
def printed_policy(
    database: Database, openbao: LocalOpenBao, vault_administrator: Administrator, tmp_path: Path
) -> Iterator[tuple[Administrator, str]]:
    """An engine and a policy by the commands that are printed, typed in as they are; and the mount."""
    for line in printed(database).splitlines():
        run(database.dsn, line)
    mount = f"printed-{secrets.token_hex(4)}"
    auth = f"kubernetes-{secrets.token_hex(4)}"
    setup = VaultSetup(
        *(database.server.host, database.server.port, database.name, "disable"), mount=mount, auth_mount=auth
    )
    (tmp_path / "vault").symlink_to(local_openbao.binary())
    script = bootstrap.vault_commands(setup).replace(bootstrap.PASSWORD_PLACE, PASSWORD)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"vault auth enable -path={auth} kubernetes\n{script}"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "BAO_ADDR": openbao.address,
            "BAO_TOKEN": openbao.root_token,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    yield vault_administrator, mount
    vault_administrator.client.write_data(f"sys/leases/revoke-force/{mount}")
    vault_administrator.client.delete(f"sys/mounts/{mount}")
    vault_administrator.client.delete(f"sys/auth/{auth}")


def test_a_login_with_the_printed_policy_reaches_nothing_else_in_vault(
    printed_policy: tuple[Administrator, str], openbao: LocalOpenBao
) -> None:
    administrator, mount = printed_policy
    root = administrator.client
    root.sys.enable_secrets_engine("kv", path=f"{mount}-kv")
    root.write_data(f"{mount}-kv/somebody", data={"key": "value"})
    # Another connection of the same engine, with rights that are none of ours.
    root.write_data(
        f"{mount}/roles/payroll", data={**bootstrap.vault_role_parameters("pg_monitor"), "db_name": "payroll"}
    )
    role = f"{mount}/roles/polaris-0a-query"
    right = bootstrap.vault_role_parameters("polaris_0a_query")
    with vault.client(openbao.address, administrator.token()) as mine:
        mine.write_data(role, data=right)
        assert vault.read(mine, role)["db_name"] == "polaris"
        mine.delete(role)
        refused: dict[str, Any] = {
            "another connection": lambda: mine.write_data(role, data={**right, "db_name": "payroll"}),
            "no connection": lambda: mine.write_data(role, data={"rollback_statements": ["SELECT 1"]}),
            "the operator's role": lambda: mine.write_data(f"{mount}/roles/polaris-operator", data=right),
            "to delete it": lambda: mine.delete(f"{mount}/roles/polaris-operator"),
            "a login of another role": lambda: mine.read(f"{mount}/creds/payroll"),
            "another role": lambda: mine.read(f"{mount}/roles/payroll"),
            "a list of roles": lambda: mine.list(f"{mount}/roles"),
            "the connection": lambda: mine.read(f"{mount}/config/polaris"),
            "another connection of its own": lambda: mine.write_data(f"{mount}/config/mine", data={}),
            "a new root password": lambda: mine.write_data(f"{mount}/rotate-root/polaris", data={}),
            "static logins": lambda: mine.read(f"{mount}/static-creds/polaris-x"),
            "somebody's secret": lambda: mine.read(f"{mount}-kv/somebody"),
            "leases of others": lambda: mine.list(f"sys/leases/lookup/{mount}/creds/payroll"),
            "to revoke those": lambda: mine.write_data(f"sys/leases/revoke/{mount}/creds/payroll/x", data={}),
            "to revoke all": lambda: mine.write_data(f"sys/leases/revoke-prefix/{mount}", data={}),
            "mounts": lambda: mine.read("sys/mounts"),
            "policies": lambda: mine.read("sys/policy"),
            "ways to log in": lambda: mine.read("sys/auth"),
            "a token": lambda: mine.write_data("auth/token/create-orphan", data={}),
            "more rights": lambda: mine.write_data(
                "sys/policies/acl/polaris-operator", data={"policy": 'path "*" { capabilities = ["sudo"] }'}
            ),
        }
        for what, ask in refused.items():
            assert _is_refused(ask), f"it got {what}"
    root.delete(f"sys/mounts/{mount}-kv")


def _is_refused(ask: Callable[[], Any]) -> bool:
    try:
        ask()
    except Forbidden:
        return True
    return False
