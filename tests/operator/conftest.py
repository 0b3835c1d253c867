"""What the operator's tests share."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kube.cluster import Cluster
from parts.servers import Database, run
from parts.vault import Administrator, grant_roles
from polaris_cli.up.postgres import LocalPostgres
from scenes.cluster import OPERATOR_NAMESPACE, install, path
from scenes.folder import FolderScene
from scenes.town import ACCOUNT, Town


@pytest.fixture(scope="session")
def installed_cluster(cluster: Cluster) -> Cluster:
    """The API server with our CRDs, and the operator's ServiceAccount with its rights."""
    install(cluster)
    return cluster


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[FolderScene]:
    """The operator over a folder of manifests."""
    made = FolderScene(tmp_path)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def vault_reviewer(installed_cluster: Cluster) -> str:
    """A token by which OpenBao asks the API server who logs in."""
    installed_cluster.kubectl("create", "serviceaccount", "reviewer", "-n", OPERATOR_NAMESPACE)
    installed_cluster.kubectl(
        *("create", "clusterrolebinding", "vault-reviewer", "--clusterrole=system:auth-delegator"),
        f"--serviceaccount={OPERATOR_NAMESPACE}:reviewer",
    )
    return installed_cluster.token(OPERATOR_NAMESPACE, "reviewer")


@pytest.fixture
def town(
    installed_cluster: Cluster,
    fresh_database: Callable[[LocalPostgres], Database],
    postgres: LocalPostgres,
    vault_administrator: Administrator,
    vault_reviewer: str,
) -> Iterator[Town]:
    cluster, mark = installed_cluster, secrets.token_hex(4)
    database = fresh_database(postgres)
    made = Town(
        *(cluster, f"rag-{mark}", database, vault_administrator),
        *(f"database-{mark}", f"kubernetes-{mark}"),
    )
    vault_administrator.connect_database(database, grant_roles(database), mount=made.mount)
    vault_administrator.write_policy(mount=made.mount)
    vault_administrator.allow_service_accounts(
        cluster.url,
        cluster.ca_file.read_text(),
        reviewer=vault_reviewer,
        mount=made.auth_mount,
        namespaces=[made.namespace, f"{made.namespace}-other"],
    )
    cluster.kubectl("create", "namespace", made.namespace)
    cluster.kubectl("create", "serviceaccount", ACCOUNT, "-n", made.namespace)
    yield made
    patch: dict[str, Any] = {"metadata": {"finalizers": []}}
    cluster.api("PATCH", path(made.key), patch, content_type="application/merge-patch+json")
    cluster.api("DELETE", path(made.key))
    cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")
    vault_administrator.client.write_data(f"sys/leases/revoke-force/{made.mount}")
    for place in (f"sys/mounts/{made.mount}", f"sys/auth/{made.auth_mount}"):
        vault_administrator.client.delete(place)
    for (role,) in run(database.dsn, "SELECT rolname FROM pg_roles WHERE rolname ~ '^v-'"):
        run(database.dsn, f'DROP ROLE "{role}"')
