"""PolarisDatabase in a real cluster: the operator as a process, with its own rights and no more."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from kube.cluster import Cluster
from parts.servers import run
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from scenes.cluster import (
    OperatorProcess,
    api_server_pid,
    apply,
    eventually,
    frozen,
    get,
)
from scenes.credentials import longest_lease
from scenes.folder import log_in, query
from scenes.town import LOGINS, Town, converges, roles_locked, vaults_sessions, wait_for_state

pytestmark = [pytest.mark.postgres, pytest.mark.kubernetes]


@pytest.fixture
def operator(installed_cluster: Cluster, town: Town, tmp_path: Path) -> Iterator[OperatorProcess]:
    made = OperatorProcess(installed_cluster, tmp_path, POLARIS_WATCH_NAMESPACES=town.namespace)
    made.start()
    yield made
    made.kill()
    print(made.log())


def test_from_a_manifest_to_logins_that_work(town: Town, operator: OperatorProcess) -> None:
    apply(town.cluster, town.manifest())
    town.wait_ready()
    found = get(town.cluster, town.key)
    assert found is not None
    status = found["status"]
    assert status["observedGeneration"] == found["metadata"]["generation"] == 1
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Ready": "True",
        "CredentialsFresh": "True",
    }
    service, worker = town.logins()
    assert query(service, "SELECT id FROM polaris.catalog") == [(status["catalog"],)]
    for login, statement in (
        (service, "CREATE TABLE polaris.mine (a integer)"),
        (service, "SELECT * FROM polaris.credentials"),
        (worker, "SELECT lease_id FROM polaris.credentials"),
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            query(login, statement)
    secret = town.cluster.api("GET", f"/api/v1/namespaces/{town.namespace}/secrets/polaris-query").json()
    (owner,) = secret["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("PolarisDatabase", found["metadata"]["uid"])
    printed = town.cluster.kubectl("get", "pgdb", "-n", town.namespace).stdout
    assert "True" in printed

    # A restart, and a resync, with no change: nothing is written.
    before = found["metadata"]["resourceVersion"]
    assert operator.stop() == 0
    operator.start()
    eventually("a pass after the restart", lambda: operator.log().count("took over") == 2)
    time.sleep(4)  # One resync, too.
    after = get(town.cluster, town.key)
    assert after is not None
    assert after["metadata"]["resourceVersion"] == before
    assert town.logins() == [service, worker]

    # A Secret that somebody deletes comes back, with another login.
    town.cluster.kubectl("delete", "secret", "polaris-query", "-n", town.namespace)
    again = eventually("the Secret", lambda: town.secret("polaris-query") or {})
    assert again["epoch"] == "2"
    assert log_in(again)

    # What is invalid by itself never gets here; what the world makes invalid is said.
    town.cluster.kubectl(
        *("patch", "pgdb", "main", "-n", town.namespace, "--type=merge"),
        *("-p", json.dumps({"spec": {"port": 1}})),
    )
    eventually("the condition", lambda: town.stands() == ("False", "DatabaseUnavailable"))
    town.cluster.kubectl(
        *("patch", "pgdb", "main", "-n", town.namespace, "--type=merge"),
        *("-p", json.dumps({"spec": {"port": town.database.server.port}})),
    )
    town.wait_ready()

    # And its end: no login, no Secret, no lease, and the object is gone.
    logins = town.logins()
    town.cluster.kubectl("delete", "pgdb", "main", "-n", town.namespace, "--timeout=60s")
    assert not any(log_in(login) for login in logins)
    assert town.live_logins() == []
    assert [town.secret(name) for name in LOGINS] == [None, None]
    eventually("the operator's own lease to end", lambda: town.leases() == [])


def test_short_leases_are_replaced_and_faults_of_every_part_are_outlived(
    town: Town, operator: OperatorProcess, postgres: LocalPostgres, openbao: LocalOpenBao
) -> None:
    """One process throughout: nothing is restarted but the part that failed."""
    longest_lease(town.administrator, town.mount, 16)
    apply(town.cluster, town.manifest())
    town.wait_ready()
    pid, first = operator.pid, town.logins()
    eventually("a rotation", lambda: town.logins() != first)
    assert all(log_in(login) for login in town.logins())

    openbao.seal()
    try:
        eventually(
            "CredentialsFresh to say so",
            lambda: town.stands("CredentialsFresh") == ("False", "VaultUnavailable"),
        )
    finally:
        openbao.unseal()
    eventually("fresh credentials", lambda: town.stands("CredentialsFresh") == ("True", "Fresh"))
    town.wait_ready()
    assert all(log_in(login) for login in town.logins())

    longest_lease(town.administrator, town.mount, 3600)
    postgres.stop()
    try:
        eventually("the condition", lambda: town.stands() == ("False", "DatabaseUnavailable"))
        assert town.stands("Reconciling")[0] == "True"
    finally:
        postgres.start()
    town.wait_ready()

    town.cluster.stop_api_server()
    time.sleep(2)
    town.cluster.start_api_server()
    moved = {"query": {"secretName": "moved"}, "worker": {"secretName": "polaris-worker"}}
    apply(town.cluster, town.manifest(logins=moved))
    eventually("the new Secret", lambda: town.secret("moved"))
    assert log_in(town.secret("moved") or {})
    assert operator.pid == pid
    assert operator.running


def test_killed_while_vault_issues_no_second_login_stays(
    town: Town, operator: OperatorProcess, openbao: LocalOpenBao
) -> None:
    """What Vault makes for a process that is dead is known to nobody but Vault, or not even to it."""
    apply(town.cluster, town.manifest())
    town.wait_ready()
    assert openbao.pid is not None
    with contextlib.ExitStack() as stack:
        with roles_locked(town.database):
            town.cluster.kubectl("delete", "secret", "polaris-query", "-n", town.namespace)
            wait_for_state(town, "requested")
            eventually("Vault to ask PostgreSQL", lambda: vaults_sessions(town.database) == ["active"])
            # Frozen, it does not see that its client is gone until PostgreSQL has done its part.
            stack.enter_context(frozen(openbao.pid))
            operator.kill()
        eventually("PostgreSQL's part", lambda: vaults_sessions(town.database) == ["idle in transaction"])
    eventually("Vault's part", lambda: not vaults_sessions(town.database))
    run(
        town.database.dsn,
        "UPDATE polaris.credentials SET requested_at = requested_at - interval '30 seconds'"
        " WHERE state = 'requested'",
    )
    operator.start()
    converges(town)


def test_killed_before_the_secret_is_written_no_second_login_stays(
    town: Town, operator: OperatorProcess
) -> None:
    apply(town.cluster, town.manifest())
    town.wait_ready()
    with frozen_after_issuing(town):
        operator.kill_alone()
    operator.remove_lease()
    operator.start()
    converges(town)


@contextmanager
def frozen_after_issuing(town: Town) -> Iterator[None]:
    """The API server stands still from when a login is asked for; the login is issued meanwhile."""
    with contextlib.ExitStack() as stack:
        with roles_locked(town.database):
            town.cluster.kubectl("delete", "secret", "polaris-query", "-n", town.namespace)
            wait_for_state(town, "requested")
            stack.enter_context(frozen(api_server_pid(town.cluster)))
        wait_for_state(town, "issued")
        yield
