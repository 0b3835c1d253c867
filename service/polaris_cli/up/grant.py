"""What administrators grant once (`polaris bootstrap` prints it), done here to parts of our own.

Everything may be done again at any time, and is: at each start of `polaris up`, since ports change.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Self

import httpx
import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  it is a class
from psycopg2.extensions import encrypt_password, make_dsn

from polaris import names
from polaris.errors import DatabaseRefused, DatabaseUnavailable, VaultRefused, VaultUnavailable
from polaris.sql import Sql, compose, identifier, literal
from polaris_operator import bootstrap

MOUNT = "database"
CONNECTION = "polaris"
APP_ROLE = "polaris"
API_SERVER = "https://kubernetes.default.svc"
_TIMEOUT_SECONDS = 30.0


def connect(dsn: str) -> Connection:
    """Connect as an administrator, each statement on its own; DatabaseUnavailable where nobody answers."""
    try:
        connection = psycopg2.connect(dsn, connect_timeout=5, application_name="polaris bootstrap")
    except psycopg2.OperationalError as error:
        raise DatabaseUnavailable(" ".join(str(error).split())) from None
    except psycopg2.ProgrammingError as error:
        raise DatabaseRefused(f"this is no connection string: {' '.join(str(error).split())}") from None
    connection.autocommit = True
    return connection


def run(connection: Connection, statements: Sequence[Sql]) -> None:
    """Run statements in order; DatabaseRefused with PostgreSQL's words where one fails."""
    with connection.cursor() as cursor:
        for statement in statements:
            try:
                cursor.execute(statement)
            except psycopg2.Error as error:
                said = " ".join(str(error).split())
                raise DatabaseRefused(f"PostgreSQL refused {_shown(statement)!r}: {said}") from None


def _shown(statement: Sql) -> str:
    # Up to the verifier of a password, which is nobody's to read.
    return statement.partition("PASSWORD")[0]


def make_database(dsn: str, database: str) -> str:
    """Make a database unless it is there; return the DSN of the same administrator in it."""
    with closing(connect(dsn)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", [database])
            there = cursor.rowcount
        if not there:
            run(connection, [compose("CREATE DATABASE {name}", name=identifier(database))])
    return str(make_dsn(dsn, dbname=database))


def grant(dsn: str, database: str, *, vault: bool = True) -> None:
    """Grant all that POLARIS needs in this database."""
    with closing(connect(dsn)) as connection:
        run(connection, bootstrap.statements(database, vault=vault))


def new_vault_password(dsn: str) -> str:
    """Give Vault's own login, which is the whole server's, a new password, and return it."""
    return _new_password(dsn, bootstrap.VAULT_LOGIN)


def new_admin_password(dsn: str) -> str:
    """Make the login that the operator has where there is no Vault, and return its new password."""
    return _new_password(dsn, bootstrap.ADMIN_LOGIN, bootstrap.admin_login_statements)


def _new_password(dsn: str, login: str, make: Callable[[str], Sequence[Sql]] = lambda _: ()) -> str:
    """Give a login a new password, after what makes it of a verifier has run; return the password.

    PostgreSQL gets the verifier: the password stands in no statement, so in no log.
    """
    password = secrets.token_urlsafe(24)
    with closing(connect(dsn)) as connection:
        verifier = encrypt_password(password, login, connection, "scram-sha-256")
        change = compose(
            "ALTER ROLE {role} PASSWORD {verifier}", role=identifier(login), verifier=literal(verifier)
        )
        run(connection, [*make(verifier), change])
    return password


class VaultAdministrator:
    """Somebody with OpenBao's root token. Use it as a context manager."""

    def __init__(self, address: str, token: str) -> None:
        self._client = httpx.Client(
            base_url=f"{address}/v1/",
            headers={"X-Vault-Token": token},
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,  # it is on this machine, whatever proxy there is
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def connect_database(self, host: str, port: int, database: str, password: str) -> None:
        """Let the database engine issue logins of this database, by its own login."""
        self._mount("sys/mounts", MOUNT, "database")
        self._ask(
            "PUT",
            f"{MOUNT}/config/{CONNECTION}",
            {
                "plugin_name": "postgresql-database-plugin",
                "allowed_roles": "polaris-*",
                "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{host}:{port}/{database}"
                "?sslmode=disable",
                "username": bootstrap.VAULT_LOGIN,
                "password": password,
                "password_authentication": "scram-sha-256",
            },
        )
        role = f"{MOUNT}/roles/{bootstrap.VAULT_OPERATOR_ROLE}"
        self._ask("PUT", role, bootstrap.vault_role_parameters(names.OPERATOR_ROLE, CONNECTION))

    def allow_operator(self) -> str:
        """Let whoever has the role id and a secret id log in as the operator does; return the role id."""
        self._write_policy()
        self._mount("sys/auth", "approle", "approle")
        role = {"token_policies": [bootstrap.VAULT_POLICY], "token_ttl": bootstrap.LOGIN_SECONDS}
        self._ask("PUT", f"auth/approle/role/{APP_ROLE}", role)
        answer = self._ask("GET", f"auth/approle/role/{APP_ROLE}/role-id")
        return str(answer["data"]["role_id"])

    def allow_service_account(self, namespace: str, name: str) -> None:
        """Let this ServiceAccount of the cluster that OpenBao runs in log in as the operator does.

        OpenBao asks the API server about tokens as its pod's ServiceAccount, which needs the ClusterRole
        `system:auth-delegator` for that.
        """
        self._write_policy()
        self._mount("sys/auth", bootstrap.VaultSetup.auth_mount, "kubernetes")
        self._ask("PUT", f"auth/{bootstrap.VaultSetup.auth_mount}/config", {"kubernetes_host": API_SERVER})
        role = {
            "bound_service_account_names": [name],
            "bound_service_account_namespaces": [namespace],
            "audience": bootstrap.VaultSetup.audience,
            "token_policies": [bootstrap.VAULT_POLICY],
            "token_ttl": bootstrap.LOGIN_SECONDS,
        }
        self._ask(
            "PUT", f"auth/{bootstrap.VaultSetup.auth_mount}/role/{bootstrap.VaultSetup.auth_role}", role
        )

    def _write_policy(self) -> None:
        policy = {"policy": bootstrap.vault_policy(MOUNT, CONNECTION)}
        self._ask("PUT", f"sys/policies/acl/{bootstrap.VAULT_POLICY}", policy)

    def secret_id(self, role_id: str, present: str | None) -> str:
        """Return the secret id that is there while it is good, else a new one."""
        if present and self._logs_in(role_id, present):
            return present
        answer = self._ask("PUT", f"auth/approle/role/{APP_ROLE}/secret-id")
        return str(answer["data"]["secret_id"])

    def _logs_in(self, role_id: str, secret_id: str) -> bool:
        try:
            answer = self._ask("PUT", "auth/approle/login", {"role_id": role_id, "secret_id": secret_id})
        except VaultRefused:
            return False
        self._ask("PUT", "auth/token/revoke", {"token": answer["auth"]["client_token"]})
        return True

    def _mount(self, what: str, path: str, kind: str) -> None:
        if f"{path}/" not in self._ask("GET", what)["data"]:
            self._ask("PUT", f"{what}/{path}", {"type": kind})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise VaultUnavailable(f"OpenBao does not answer: {error}") from None
        if response.is_error:
            raise VaultRefused(f"OpenBao answered {response.status_code} to {path}: {response.text.strip()}")
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer
