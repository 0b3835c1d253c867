"""Several operators of one cluster: one leads, another takes over, and who was replaced has no effect."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from kube.cluster import Cluster
from parts.servers import Database, connect, run
from polaris_cli.up.ports import any_free
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.lease import lease_name
from scenes.cluster import (
    LEASE_RULES,
    OPERATOR_ACCOUNT,
    OPERATOR_NAMESPACE,
    RBAC,
    OperatorProcess,
    apply,
    eventually,
    get,
    says,
)
from scenes.folder import log_in
from scenes.town import LOGINS, READY, Town, converges, roles_locked, vaults_sessions, wait_for_state
from soak import times

pytestmark = [pytest.mark.postgres, pytest.mark.kubernetes]

# The Lease lasts 15 s, and is looked at every other second.
TAKE_OVER_SECONDS = 30.0


class Replica(OperatorProcess):
    """An operator that tells whether it leads."""

    def __init__(self, cluster: Cluster, folder: Path, **environment: str) -> None:
        """Prepare one with a folder and a port of its own."""
        folder.mkdir()
        self._port = any_free()
        super().__init__(cluster, folder, POLARIS_METRICS_PORT=str(self._port), **environment)

    def metrics(self) -> str:
        """What it tells; nothing where it does not answer."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self._port}/metrics", timeout=1).text
        return ""

    def leads(self) -> bool:
        """Whether it says that it leads."""
        return "polaris_operator_leader 1.0" in self.metrics()

    def ready(self) -> bool:
        """Whether it could lead."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self._port}/readyz", timeout=1).is_success
        return False


@pytest.fixture
def start(installed_cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    """Start operators, each with its variables; all end with the test."""
    made: list[Replica] = []

    def start(**environment: str) -> Replica:
        replica = Replica(installed_cluster, tmp_path / str(len(made)), **environment)
        made.append(replica)
        replica.start()
        return replica

    yield start
    for replica in made:
        replica.kill()
        print(replica.log())


@pytest.fixture
def pair(town: Town, start: Callable[..., Replica]) -> tuple[Replica, Replica]:
    """One that leads and one that stands by, with a PolarisDatabase that is ready."""
    one, two = (start(POLARIS_WATCH_NAMESPACES=town.namespace) for _ in range(2))
    eventually("one to lead", lambda: one.leads() or two.leads())
    apply(town.cluster, town.manifest())
    town.wait_ready()
    return (one, two) if one.leads() else (two, one)


def test_one_reconciles_and_when_it_is_told_to_end_the_other_goes_on_at_once(
    town: Town, pair: tuple[Replica, Replica]
) -> None:
    leader, other = pair
    eventually("the other to be ready", other.ready)
    assert not other.leads()
    assert "polaris_operator_passes_total{" in leader.metrics()
    assert "polaris_operator_passes_total{" not in other.metrics()
    logins = town.logins()
    assert leader.stop() == 0
    # Far less than the Lease lasts.
    eventually("the other to lead", other.leads, 10)
    eventually("the database to be its", lambda: "took over" in other.log())
    town.cluster.kubectl("delete", "secret", "polaris-worker", "-n", town.namespace)
    eventually("the Secret", lambda: town.secret("polaris-worker"))
    converges(town)
    assert town.logins()[0] == logins[0], "a hand-over costs no login"
    assert all(log_in(login) for login in town.logins())


# Where a leader is frozen, each with something of its own in its hands.


@contextmanager
def while_vault_issues(town: Town) -> Iterator[None]:
    """It has asked for a login, and hears that there is one when it wakes."""
    with roles_locked(town.database):
        town.cluster.kubectl("delete", "secret", "polaris-query", "-n", town.namespace)
        wait_for_state(town, "requested")
        eventually("Vault to ask PostgreSQL", lambda: vaults_sessions(town.database) == ["active"])
        yield
    eventually("Vault to answer", lambda: not vaults_sessions(town.database))


@contextmanager
def in_a_transaction(town: Town) -> Iterator[None]:
    """It holds the fence, and has written."""
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    with closing(connect(town.database.dsn)) as holding, holding.cursor() as cursor:
        holding.autocommit = False
        cursor.execute("LOCK TABLE polaris.credentials IN SHARE MODE")
        town.cluster.kubectl("delete", "secret", "polaris-query", "-n", town.namespace)
        eventually("it to write", lambda: run(town.database.dsn, waits, town.database.name))
        yield
        holding.rollback()


@contextmanager
def at_any_moment(town: Town) -> Iterator[None]:
    """It is somewhere in the replacement of a login."""
    town.cluster.kubectl("delete", "secret", "polaris-query", "-n", town.namespace)
    time.sleep(secrets.randbelow(600) / 1000)
    yield


@contextmanager
def at_rest(_: Town) -> Iterator[None]:
    """It has nothing to do."""
    yield


MOMENTS = (while_vault_issues, in_a_transaction, at_any_moment, at_rest)


def picture(town: Town) -> dict[str, Any]:
    """All that a leader has an effect on, in a way that shows that it had one."""
    objects = f"/api/v1/namespaces/{town.namespace}/secrets"
    secrets_ = [town.cluster.api("GET", f"{objects}/{name}").json()["metadata"] for name in LOGINS]
    found = get(town.cluster, town.key)
    assert found is not None
    return {
        "object": found["metadata"]["resourceVersion"],
        "Secrets": [one["resourceVersion"] for one in secrets_],
        "ledger": run(town.database.dsn, "SELECT max(id) FROM polaris.credentials"),
        "fence": run(town.database.dsn, "SELECT epoch, holder FROM polaris.fences"),
    }


def epoch(database: Database) -> int:
    ((found,),) = run(database.dsn, "SELECT epoch FROM polaris.fences")
    return int(found)


def logins_of_operators(database: Database) -> set[str]:
    statement = (
        "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = %s"
        " AND application_name LIKE 'polaris-operator/%%'"
    )
    return {row[0] for row in run(database.dsn, statement, database.name)}


@pytest.mark.soak
@pytest.mark.timeout(times(300, 7200))
def test_who_was_frozen_and_replaced_has_no_effect_when_it_wakes(
    town: Town, pair: tuple[Replica, Replica], postgres: LocalPostgres
) -> None:
    """No statement that writes, no Secret, no status, no lease."""
    run(town.database.dsn, f"ALTER DATABASE {town.database.name} SET log_statement = 'mod'")
    old, new = pair
    took = []
    for freeze in islice(cycle(MOMENTS), times(1, 50)):
        used = logins_of_operators(town.database)
        before = epoch(town.database)
        with freeze(town):
            os.kill(old.pid, signal.SIGSTOP)
            frozen = time.monotonic()
        try:
            eventually("the other to lead", new.leads, TAKE_OVER_SECONDS)
            while epoch(town.database) == before:
                assert time.monotonic() - frozen < 2 * TAKE_OVER_SECONDS
                time.sleep(0.1)
            took.append(time.monotonic() - frozen)
            print(f"{freeze.__name__}: taken over after {took[-1]:.1f} s")
            # What Vault was asked for is waited for; here the answer is long there.
            run(
                town.database.dsn,
                "UPDATE polaris.credentials SET requested_at = requested_at - interval '30 seconds'"
                " WHERE state = 'requested'",
            )
            converges(town)
            seen, leases = picture(town), set(town.leases())
            logged = postgres.log_file.stat().st_size
            noticed = old.log().count("leads no more")
        finally:
            os.kill(old.pid, signal.SIGCONT)
        eventually("it to wake", lambda: old.log().count("leads no more") > noticed)  # noqa: B023
        eventually("it to stand by", old.ready)
        time.sleep(3)  # More than a resync.
        assert picture(town) == seen
        assert set(town.leases()) <= leases  # Whoever leads revokes those whose overlap has passed.
        with postgres.log_file.open(encoding="utf-8", errors="replace") as log:
            log.seek(logged)
            wrote = [line for line in log if "statement:" in line and any(user in line for user in used)]
        assert wrote == []
        assert (old.leads(), new.leads()) == (False, True)
        old, new = new, old
    took.sort()
    print(f"{len(took)} take-overs: median {statistics.median(took):.1f} s, longest {took[-1]:.1f} s")


def test_while_the_api_server_is_away_for_long_nobody_leads_and_afterwards_somebody_does(
    town: Town, start: Callable[..., Replica]
) -> None:
    """It can't know whether another one took over. It is the same process that goes on."""
    one = start(POLARIS_WATCH_NAMESPACES=town.namespace)
    apply(town.cluster, town.manifest())
    town.wait_ready()
    pid, logins = one.pid, town.logins()
    with town.cluster.api_server_stopped():
        eventually("it to lead no more", lambda: "leads no more" in one.log(), 30)
        assert not one.leads()
        assert all(log_in(login) for login in logins)
    eventually("it to lead", one.leads)
    town.cluster.kubectl("delete", "secret", "polaris-query", "-n", town.namespace)
    eventually("the Secret", lambda: town.secret("polaris-query"))
    converges(town)
    assert (one.pid, one.running) == (pid, True)


def test_two_installations_on_one_database_each_have_a_leader_and_leave_the_other_alone(
    town: Town, start: Callable[..., Replica]
) -> None:
    other = f"{town.namespace}-other"
    name = lease_name(other)
    town.cluster.apply(role_for(name))
    town.cluster.kubectl("create", "namespace", other)
    town.cluster.kubectl("create", "serviceaccount", "polaris-vault", "-n", other)
    try:
        here = start(POLARIS_WATCH_NAMESPACES=town.namespace)
        there = start(POLARIS_WATCH_NAMESPACES=other, POLARIS_INSTALLATION=other)
        eventually("both to lead", lambda: here.leads() and there.leads())
        apply(town.cluster, town.manifest())
        theirs = town.manifest()
        theirs["metadata"]["namespace"] = other
        key = apply(town.cluster, theirs)
        town.wait_ready()
        eventually("theirs", lambda: says(town.cluster, key, "Ready")[:2] == READY)
        fences = "SELECT holder FROM polaris.fences ORDER BY holder"
        before, logins = run(town.database.dsn, fences), town.logins()
        here.kill()
        here.start()
        eventually("another to lead", here.leads)
        eventually("a take-over", lambda: here.log().count("took over") == 2)
        after = run(town.database.dsn, fences)
        assert len(set(before) & set(after)) == 1, "of two fences one changed hands"
        assert there.leads()
        assert says(town.cluster, key, "Ready")[:2] == READY
        assert "NotOwner" not in there.log()
        assert town.logins() == logins
    finally:
        patch: dict[str, Any] = {"metadata": {"finalizers": []}}
        where = f"/apis/polaris.dev/v1alpha1/namespaces/{other}/polarisdatabases/main"
        town.cluster.api("PATCH", where, patch, content_type="application/merge-patch+json")
        town.cluster.kubectl("delete", "namespace", other, "--wait=false")


def role_for(lease: str) -> str:
    """The rights of an installation of another name on its Lease."""
    account = {"kind": "ServiceAccount", "name": OPERATOR_ACCOUNT, "namespace": OPERATOR_NAMESPACE}
    create, use = LEASE_RULES
    role = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "Role",
        "metadata": {"name": lease, "namespace": OPERATOR_NAMESPACE},
        "rules": [create, {**use, "resourceNames": [lease]}],
    }
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": lease, "namespace": OPERATOR_NAMESPACE},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": lease},
        "subjects": [account],
    }
    return f"{json.dumps(role)}\n---\n{json.dumps(binding)}"
