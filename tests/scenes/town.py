"""A namespace of a real cluster with a PolarisDatabase in it, whose logins a real OpenBao issues."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from kube.cluster import Cluster
from parts.servers import Database, connect, run
from parts.vault import Administrator
from polaris_operator.objects import Key
from scenes.cluster import eventually, says
from scenes.credentials import leases
from scenes.folder import log_in

LOGINS = ("polaris-query", "polaris-worker")
ACCOUNT = "polaris-vault"
READY = ("True", "Ready")


@dataclass
class Town:
    """A namespace with a PolarisDatabase to be made, and everything that it needs, real."""

    cluster: Cluster
    namespace: str
    database: Database
    administrator: Administrator
    mount: str
    auth_mount: str

    @property
    def key(self) -> Key:
        return Key("PolarisDatabase", self.namespace, "main")

    def manifest(self, **spec: Any) -> dict[str, Any]:
        """With the kubernetes login of a ServiceAccount of this namespace."""
        kubernetes = {"mount": self.auth_mount, "role": "polaris", "serviceAccountName": ACCOUNT}
        vault = {
            "address": self.administrator.client.url,
            "auth": {"kubernetes": kubernetes},
            "mount": self.mount,
        }
        return {
            "apiVersion": "polaris.dev/v1alpha1",
            "kind": "PolarisDatabase",
            "metadata": {"name": "main", "namespace": self.namespace},
            "spec": {
                "host": self.database.server.host,
                "port": self.database.server.port,
                "database": self.database.name,
                "tls": {"mode": "disable"},
                "credentials": {"vault": vault},
                **spec,
            },
        }

    def wait_ready(self) -> None:
        """`kubectl wait`, as a pipeline does."""
        self.cluster.kubectl(
            "wait", "--for=condition=Ready", "pgdb/main", "-n", self.namespace, "--timeout=60s"
        )

    def stands(self, kind: str = "Ready") -> tuple[str, str]:
        return says(self.cluster, self.key, kind)[:2]

    def secret(self, name: str) -> dict[str, str] | None:
        answer = self.cluster.api("GET", f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        data = answer.raise_for_status().json()["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def logins(self) -> list[dict[str, str]]:
        """What stands in both Secrets."""
        found = [self.secret(name) for name in LOGINS]
        assert all(found), found
        return [one for one in found if one]

    def leases(self) -> list[str]:
        """The ids of all leases of the mount that live."""
        return leases(self.administrator, self.mount)

    def ledger(self, column: str, name: str = "query") -> list[Any]:
        """A column of the ledger's rows that are not revoked, oldest first."""
        statement = (
            f"SELECT {column} FROM polaris.credentials WHERE name = %s AND state <> 'revoked' ORDER BY epoch"
        )
        return [row[0] for row in run(self.database.dsn, statement, name)]

    def live_logins(self) -> list[str]:
        """Logins in PostgreSQL that are members of the groups of service and workers."""
        rows = run(
            self.database.dsn,
            "SELECT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member JOIN pg_roles g"
            " ON g.oid = m.roleid, polaris.catalog c WHERE r.rolcanlogin"
            " AND g.rolname IN ('polaris_' || c.id || '_query', 'polaris_' || c.id || '_worker')",
        )
        return [row[0] for row in rows]


@contextmanager
def roles_locked(database: Database) -> Iterator[None]:
    """Nobody can make a role meanwhile: who is asked for one waits."""
    with closing(connect(database.dsn)) as connection, connection.cursor() as cursor:
        connection.autocommit = False
        cursor.execute("LOCK TABLE pg_authid IN SHARE MODE")
        yield
        connection.rollback()


def vaults_sessions(database: Database) -> list[str]:
    """What the sessions of Vault's own login are at."""
    statement = (
        "SELECT state FROM pg_stat_activity WHERE usename = 'polaris_vault' AND datname = %s"
        " AND state <> 'idle'"
    )
    return [row[0] for row in run(database.dsn, statement, database.name)]


def wait_for_state(town: Town, state: str) -> None:
    """Wait until the newest row of the ledger is in a state."""
    eventually(f"a row that is {state}", lambda: town.ledger("state")[-1:] == [state])


def converges(town: Town) -> None:
    """Wait until all is as it should be; nobody has a login that the ledger does not know."""

    def settled() -> bool:
        secret = town.secret("polaris-query")
        return (
            secret is not None
            and "requested" not in town.ledger("state")
            and "issued" not in town.ledger("state")
            and town.stands() == READY
            and log_in(secret)
        )

    eventually("everything to settle", settled)
    secret = town.secret("polaris-query")
    assert secret is not None
    # The one of before lives through its overlap, and the ledger knows it; nobody else does.
    known = set(town.ledger("username")) | set(town.ledger("username", "worker"))
    assert set(town.live_logins()) <= known
    assert town.ledger("state")[-1] == "published"
    assert town.ledger("username")[-1] == secret["username"]
    assert town.ledger("state").count("published") == 1
    leased = {lease for lease in town.leases() if "/polaris-operator/" not in lease}
    assert leased <= set(town.ledger("lease_id")) | set(town.ledger("lease_id", "worker"))
