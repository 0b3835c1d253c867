"""The whole system, once for the tests of the mission."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from kube.cluster import Cluster
from mission.system import MountedSecret, Program, answers, installed_chart, wait_for
from parts.servers import Database, drop_database, make_database
from parts.vault import Administrator, grant_roles
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.ports import any_free
from polaris_cli.up.postgres import LocalPostgres

NAMESPACE, TEAM = "rag", "team-a"


@dataclass
class System:
    """Everything that runs, and where it is reached."""

    cluster: Cluster
    database: Database
    openbao: LocalOpenBao
    administrator: Administrator
    programs: dict[str, Program]
    url: str
    """Of the service."""


@pytest.fixture(scope="module")
def system(
    cluster: Cluster, postgres: LocalPostgres, openbao: LocalOpenBao, vault_administrator: Administrator
) -> Iterator[System]:
    """PostgreSQL and OpenBao as administrators prepare them, the chart's rights, and four programs."""
    folder = Path(tempfile.mkdtemp(prefix="polaris-mission-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for namespace in (NAMESPACE, TEAM):
            cluster.kubectl("create", "namespace", namespace)
            stack.callback(cluster.kubectl, "delete", "namespace", namespace, "--wait=false", check=False)
        stack.enter_context(installed_chart(cluster, NAMESPACE))
        database = make_database(postgres)
        stack.callback(drop_database, database)
        _prepare_vault(cluster, database, vault_administrator)
        programs, port = _programs(cluster, stack, folder)
        for program in programs.values():
            stack.callback(program.stop)
            stack.callback(program.show_log)
            program.start()
        url = f"http://127.0.0.1:{port}"
        wait_for("the service to answer", lambda: answers(f"{url}/livez"), seconds=60)
        yield System(cluster, database, openbao, vault_administrator, programs, url)


def _prepare_vault(cluster: Cluster, database: Database, administrator: Administrator) -> None:
    administrator.connect_database(database, grant_roles(database), mount="mission")
    administrator.write_policy(mount="mission")
    cluster.kubectl("create", "serviceaccount", "polaris-vault", "-n", NAMESPACE)
    # In a cluster Vault asks with the token of its own pod.
    cluster.kubectl("create", "serviceaccount", "vault", "-n", NAMESPACE)
    cluster.kubectl(
        "create",
        "clusterrolebinding",
        "mission-vault",
        "--clusterrole=system:auth-delegator",
        f"--serviceaccount={NAMESPACE}:vault",
    )
    reviewer = cluster.token(NAMESPACE, "vault")
    administrator.allow_service_accounts(
        cluster.url, cluster.ca_file.read_text(), reviewer=reviewer, mount="mission"
    )


def _programs(cluster: Cluster, stack: ExitStack, folder: Path) -> tuple[dict[str, Program], int]:
    ports = {name: any_free() for name in ("operator", "service", "worker", "embedder")}
    embedder = f"http://127.0.0.1:{ports['embedder']}"
    secrets = {
        name: stack.enter_context(
            MountedSecret(cluster, NAMESPACE, f"polaris-{name}", folder / f"polaris-{name}")
        )
        for name in ("query", "worker")
    }

    def program(name: str, arguments: list[str], **environment: str) -> Program:
        return Program(name, arguments, environment, folder)

    def kubeconfig(name: str) -> str:
        return str(cluster.kubeconfig_for(NAMESPACE, f"polaris-{name}"))

    programs = {
        "operator": program(
            "operator",
            ["operator"],
            KUBECONFIG=kubeconfig("operator"),
            POLARIS_OPERATOR_NAMESPACE=NAMESPACE,
            POLARIS_METRICS_PORT=str(ports["operator"]),
            POLARIS_RESYNC_SECONDS="5",
        ),
        "embedder": program("embedder", ["embedder"], POLARIS_PORT=str(ports["embedder"])),
        "service": program(
            "service",
            ["serve"],
            KUBECONFIG=kubeconfig("service"),
            POLARIS_PORT=str(ports["service"]),
            POLARIS_EMBEDDER=embedder,
            POLARIS_DATABASE_SECRET=str(secrets["query"].folder),
            POLARIS_AUTH_CACHE_SECONDS="1",
            POLARIS_QUERY_URL=f"http://127.0.0.1:{ports['service']}",
        ),
        "worker": program(
            "worker",
            ["worker"],
            POLARIS_METRICS_PORT=str(ports["worker"]),
            POLARIS_EMBEDDER=embedder,
            POLARIS_DATABASE_SECRET=str(secrets["worker"].folder),
        ),
    }
    return programs, ports["service"]
