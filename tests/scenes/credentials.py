"""Where the operator's own login comes from, for a test: a Secret, or a Vault of its own mount."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from parts.servers import Database, run
from parts.vault import Administrator, grant_roles
from polaris.sql import Sql
from polaris_operator import bootstrap
from scenes.folder import FolderScene, database_manifest
from scenes.roles import operator_login


@dataclass
class FromSecret:
    """Credentials from a Secret: a login that an administrator made."""

    database: Database

    def manifest(self, **spec: Any) -> dict[str, Any]:
        """A PolarisDatabase with these credentials."""
        return database_manifest(self.database, {"secretRef": {"name": "admin"}}, **spec)


@dataclass
class FromVault:
    """Credentials from an engine of OpenBao at a mount of its own."""

    database: Database
    administrator: Administrator
    mount: str
    auth: dict[str, Any]

    def manifest(self, **spec: Any) -> dict[str, Any]:
        """A PolarisDatabase with these credentials."""
        vault = {"address": self.administrator.client.url, "auth": self.auth, "mount": self.mount}
        return database_manifest(self.database, {"vault": vault}, **spec)

    def leases(self) -> list[str]:
        """The ids of all leases of the mount that live."""
        return leases(self.administrator, self.mount)

    def longest_lease(self, seconds: int) -> None:
        """Say how long a lease of the mount may live."""
        longest_lease(self.administrator, self.mount, seconds)

    def make_and_forget(self, username: str, group_role: str) -> None:
        """Make a login as Vault makes it and have no lease, as when its client went away in between."""
        statement = bootstrap.creation_statement(group_role)
        for place, value in {"name": username, "password": "x", "expiration": "infinity"}.items():
            statement = Sql(statement.replace("{{" + place + "}}", value))
        run(self.database.dsn, f"SET ROLE {bootstrap.VAULT_LOGIN}; {statement}")


def leases(administrator: Administrator, mount: str) -> list[str]:
    """The ids of all leases of a mount that live."""
    return list(_leases(administrator, f"{mount}/creds/"))


def _leases(administrator: Administrator, prefix: str) -> Iterator[str]:
    answer = administrator.client.list(f"sys/leases/lookup/{prefix}")
    for key in answer["data"]["keys"] if isinstance(answer, dict) else ():
        if key.endswith("/"):
            yield from _leases(administrator, prefix + key)
        else:
            yield prefix + key


def longest_lease(administrator: Administrator, mount: str, seconds: int) -> None:
    """Say how long a lease of the mount may live."""
    administrator.client.write_data(f"sys/mounts/{mount}/tune", data={"max_lease_ttl": f"{seconds}s"})


@contextmanager
def from_secret(scene: FolderScene, database: Database) -> Iterator[FromSecret]:
    """Grants, an administrator's login, and the Secret that holds it."""
    with operator_login(database) as identity:
        scene.put_secret("admin", username=identity.username, password=identity.password)
        yield FromSecret(database)


@contextmanager
def from_vault(
    scene: FolderScene, database: Database, administrator: Administrator, auth: str
) -> Iterator[FromVault]:
    """Grants, an engine that leads to the database, and a Secret to log in to OpenBao with."""
    mount = f"database-{secrets.token_hex(4)}"
    administrator.connect_database(database, grant_roles(database), mount=mount)
    administrator.write_policy(mount=mount)
    if auth == "token":
        scene.put_secret("vault", token=administrator.token())
        method: dict[str, Any] = {"token": {"secretRef": {"name": "vault", "key": "token"}}}
    else:
        app_role = administrator.app_role()
        scene.put_secret("vault", secret_id=app_role.secret_id)
        method = {"appRole": {"roleId": app_role.role_id, "secretRef": {"name": "vault", "key": "secret-id"}}}
    yield FromVault(database, administrator, mount, method)
    administrator.client.write_data(f"sys/leases/revoke-force/{mount}")
    administrator.client.delete(f"sys/mounts/{mount}")
    for (role,) in run(database.dsn, "SELECT rolname FROM pg_roles WHERE rolname ~ '^v-' AND NOT rolsuper"):
        run(database.dsn, f'DROP ROLE "{role}"')
