"""What the administrators of a database and of Vault do once, done for a test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import hvac

from parts.servers import Database, connect
from polaris import names
from polaris_operator import bootstrap


@dataclass(frozen=True)
class AppRole:
    """A login by Vault's `approle` method."""

    role_id: str
    secret_id: str


@dataclass(frozen=True)
class Lease:
    """A login that the database engine issued; `seconds` it lives."""

    username: str
    password: str
    lease_id: str
    seconds: int


def grant_roles(database: Database) -> str:
    """Run what `polaris bootstrap` prints, as a superuser; return the password of Vault's login."""
    password = secrets.token_urlsafe(16)
    has_vector = "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"
    with closing(connect(database.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(has_vector)
        grants = [grant for grant in bootstrap.Grant if cursor.rowcount or grant != bootstrap.Grant.EXTENSION]
        for grant in grants:
            for statement in bootstrap.grant_statements(grant, database.name, password):
                cursor.execute(statement)
        # Roles are the server's: an earlier test may have made the login, with another password.
        cursor.execute(f"ALTER ROLE {bootstrap.VAULT_LOGIN} PASSWORD %s", [password])
    return password


@contextmanager
def client(address: str, token: str | None = None) -> Iterator[hvac.Client]:
    """A client of Vault's API, closed at the end."""
    opened = hvac.Client(url=address, token=token)
    try:
        yield opened
    finally:
        opened.adapter.close()


class Administrator:
    """Somebody with Vault's root token."""

    def __init__(self, client: hvac.Client) -> None:
        self.client = client

    def connect_database(
        self, database: Database, password: str, *, mount: str = "database", connection: str = "polaris"
    ) -> None:
        """Enable the database engine at `mount`, with a connection to `database` and the operator's role.

        `password` is that of Vault's own login, from `grant_roles`.
        """
        if f"{mount}/" not in read(self.client, "sys/mounts"):
            self.client.sys.enable_secrets_engine("database", path=mount)
        server = f"{database.server.host}:{database.server.port}"
        url = f"postgresql://{{{{username}}}}:{{{{password}}}}@{server}/{database.name}?sslmode=disable"
        self.client.write_data(
            f"{mount}/config/{connection}",
            data={
                "plugin_name": "postgresql-database-plugin",
                "allowed_roles": ["polaris-*"],
                "connection_url": url,
                "username": bootstrap.VAULT_LOGIN,
                "password": password,
                "password_authentication": "scram-sha-256",
            },
        )
        self.client.write_data(
            f"{mount}/roles/{bootstrap.VAULT_OPERATOR_ROLE}",
            data=bootstrap.vault_role_parameters(names.OPERATOR_ROLE, connection),
        )

    def write_policy(self, *, mount: str = "database") -> str:
        """Write the policy of whoever logs in for a PolarisDatabase; return its name."""
        self.client.sys.create_or_update_policy(bootstrap.VAULT_POLICY, bootstrap.vault_policy(mount))
        return bootstrap.VAULT_POLICY

    def allow_service_accounts(
        self,
        url: str,
        ca: str,
        *,
        reviewer: str | None = None,
        mount: str = "kubernetes",
        role: str = "polaris",
        accounts: Sequence[str] = ("polaris-vault",),
        namespaces: Sequence[str] = ("*",),
        audience: str = "vault",
        policies: Sequence[str] = (bootstrap.VAULT_POLICY,),
        seconds: int = 3600,
    ) -> None:
        """Let ServiceAccounts of the API server at `url` log in at `mount` as `role`.

        `ca` is PEM; `reviewer` is the token of an account with the ClusterRole `system:auth-delegator`.
        Without it each login's own token asks for the review: then its account needs that role, and
        the token the API server's audience beside Vault's.
        """
        self._enable_auth("kubernetes", mount)
        self.client.auth.kubernetes.configure(
            kubernetes_host=url,
            kubernetes_ca_cert=ca,
            token_reviewer_jwt=reviewer,
            disable_local_ca_jwt=True,
            mount_point=mount,
        )
        self.client.write_data(
            f"auth/{mount}/role/{role}",
            data={
                "bound_service_account_names": list(accounts),
                "bound_service_account_namespaces": list(namespaces),
                "audience": audience,
                "token_policies": list(policies),
                "token_ttl": seconds,
            },
        )

    def app_role(
        self,
        name: str = "polaris",
        *,
        mount: str = "approle",
        policies: Sequence[str] = (bootstrap.VAULT_POLICY,),
        seconds: int = 3600,
    ) -> AppRole:
        """Let whoever has the ids returned log in at `mount`, for life without a cluster."""
        self._enable_auth("approle", mount)
        method = self.client.auth.approle
        method.create_or_update_approle(
            name, token_policies=list(policies), token_ttl=f"{seconds}s", mount_point=mount
        )
        role_id = method.read_role_id(name, mount_point=mount)["data"]["role_id"]
        secret_id = method.generate_secret_id(name, mount_point=mount)["data"]["secret_id"]
        return AppRole(role_id, secret_id)

    def token(self, *, policies: Sequence[str] = (bootstrap.VAULT_POLICY,), seconds: int = 3600) -> str:
        """Return a token of its own, no child of ours."""
        answer = self.client.auth.token.create_orphan(policies=list(policies), ttl=f"{seconds}s")
        return str(answer["auth"]["client_token"])

    def _enable_auth(self, method: str, mount: str) -> None:
        if f"{mount}/" not in read(self.client, "sys/auth"):
            self.client.sys.enable_auth_method(method, path=mount)


def read(client: hvac.Client, path: str) -> dict[str, Any]:
    """Return the data that stands at a path of Vault's API."""
    return cast("dict[str, Any]", cast("dict[str, Any]", client.read(path))["data"])


def issue(
    client: hvac.Client, *, mount: str = "database", role: str = bootstrap.VAULT_OPERATOR_ROLE
) -> Lease:
    """Have the database engine issue a login, as whoever `client` is."""
    answer = cast("dict[str, Any]", client.read(f"{mount}/creds/{role}"))
    login = answer["data"]
    return Lease(login["username"], login["password"], answer["lease_id"], answer["lease_duration"])


def revoke(client: hvac.Client, lease: Lease) -> None:
    """Revoke a lease, and return when it is done."""
    client.write_data(f"sys/leases/revoke/{lease.lease_id}", data={"sync": True})
