"""A namespace that is deleted goes, whatever is away meanwhile; what was left is cleaned up afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from kube.cluster import Cluster
from parts.servers import run
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.objects import Key
from scenes.cluster import PATIENCE_SECONDS, OperatorProcess, apply, eventually, get, says
from scenes.town import ACCOUNT, LOGINS, Town
from soak import SOAKING, times

pytestmark = [pytest.mark.postgres, pytest.mark.kubernetes]

DEADLINE = 4
RETAIN_SECONDS = 10.0
# A namespace whose objects are gone is looked at again by its controller after 8 s.
CONTROLLER_SECONDS = 9.0
INDEXES: dict[str, dict[str, Any]] = {
    "keep": {},
    "aside": {
        "deletionPolicy": "Delete",
        "deletionDeadlineSeconds": DEADLINE,
        "access": [{"name": "reporting", "secretName": "aside-reporting"}],  # Goes with the namespace.
    },
    "drop": {"deletionPolicy": "Delete", "deletionDeadlineSeconds": DEADLINE, "undeleteSeconds": 0},
}


@pytest.fixture
def operator(installed_cluster: Cluster, town: Town, tmp_path: Path) -> Iterator[OperatorProcess]:
    watched = ",".join([town.namespace, *(f"{town.namespace}-{name}" for name in ("team", "kept"))])
    made = OperatorProcess(installed_cluster, tmp_path, POLARIS_WATCH_NAMESPACES=watched)
    made.start()
    yield made
    made.kill()
    print(made.log())


def manifest(town: Town, namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisIndex",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "databaseRef": {"name": "main", "namespace": town.namespace},
            "embedding": {"model": "e5", "dimension": 8},
            **spec,
        },
    }


def made(town: Town, namespace: str, **indexes: dict[str, Any]) -> list[Key]:
    """Make a namespace with indexes, each Ready and with a document."""
    town.cluster.kubectl("create", "namespace", namespace)
    keys = [apply(town.cluster, manifest(town, namespace, name, **spec)) for name, spec in indexes.items()]
    for key in keys:
        eventually(f"{key} to be ready", lambda key=key: says(town.cluster, key, "Ready")[0] == "True")  # type: ignore[misc]
        schema = schema_of(town, key)
        run(
            town.database.dsn,
            f"INSERT INTO {schema}.stored_documents (external_id, version, sequence, content_hash)"
            f" VALUES ('d', 1, 1, ''); UPDATE {schema}.clock SET sequence = 1",
        )
    return keys


def begun(town: Town) -> None:
    """Make the PolarisDatabase, for all namespaces, and offer its model."""
    apply(town.cluster, town.manifest(allowedNamespaces=["*"], deletionDeadlineSeconds=DEADLINE))
    town.wait_ready()
    run(
        town.database.dsn,
        "INSERT INTO polaris.models (provider, model, revision, reporter, dimension, reported_at)"
        " VALUES ('default', 'e5', '1', 'test', 8, now() + interval '1 day') ON CONFLICT DO NOTHING",
    )


def schema_of(town: Town, key: Key) -> str:
    where = "WHERE namespace = %s AND name = %s"
    rows = run(town.database.dsn, f"SELECT schema_name FROM polaris.indexes {where}", key.namespace, key.name)
    return str(rows[0][0])


def rows_of(town: Town, namespace: str) -> dict[str, tuple[str, bool, str]]:
    """State, whether it is to be dropped, and uid, of what the catalog has of a namespace."""
    rows = run(
        town.database.dsn,
        "SELECT name, state, drop_after IS NOT NULL, uid FROM polaris.indexes WHERE namespace = %s",
        namespace,
    )
    return {name.partition("@")[0]: (state, ends, uid) for name, state, ends, uid in rows}


def seconds_until_gone(cluster: Cluster, path: str, within: float) -> float:
    began = time.monotonic()
    while cluster.api("GET", path).status_code != httpx.codes.NOT_FOUND:
        assert time.monotonic() - began < within, cluster.api("GET", path).text
        time.sleep(0.1)
    return time.monotonic() - began


@dataclass(frozen=True)
class Parts:
    """What a deletion needs, and may have to do without."""

    town: Town
    postgres: LocalPostgres
    openbao: LocalOpenBao
    operator: OperatorProcess


@contextmanager
def away(faults: str, parts: Parts) -> Iterator[None]:
    """What is named is away; the operator is started anew meanwhile."""
    postgres, openbao, operator = parts.postgres, parts.openbao, parts.operator
    with ExitStack() as back:
        if "secret" in faults:
            back.callback(account, parts.town, "create")
            account(parts.town, "delete")
            for login in LOGINS:
                parts.town.cluster.kubectl("delete", "secret", login, "-n", parts.town.namespace)
        if "postgres" in faults:
            back.callback(postgres.start)
            postgres.stop()
        if "vault" in faults:
            back.callback(openbao.unseal)
            openbao.seal()
        if "operator" in faults:
            operator.kill()
            threading.Timer(DEADLINE, operator.start).start()
        yield


def account(town: Town, verb: str) -> None:
    """Make or remove the ServiceAccount by which the operator gets its own login."""
    town.cluster.kubectl(verb, "serviceaccount", ACCOUNT, "-n", town.namespace)


# In `make test` all of them at once.
ALL = "postgres vault secret operator"
FAULTS = (ALL, *ALL.split(), "") if SOAKING else (ALL,)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_namespace_goes_in_time_whatever_is_away_and_what_is_left_is_cleaned_up_afterwards(
    town: Town, operator: OperatorProcess, postgres: LocalPostgres, openbao: LocalOpenBao
) -> None:
    begun(town)
    other = made_here(town)
    parts = Parts(town, postgres, openbao, operator)
    untouched = rows_of(town, town.namespace)
    for faults in times(1, 3) * FAULTS:
        retained, deleted = _deleted(town, away(faults, parts))
        print(f"{faults or 'nothing'} away: Retain {retained:.1f} s, Delete {deleted:.1f} s")
        assert rows_of(town, town.namespace) == untouched
        eventually("the other index to be ready", lambda: says(town.cluster, other, "Ready")[0] == "True")


def _deleted(town: Town, away: AbstractContextManager[None]) -> tuple[float, float]:
    """Delete a namespace whose indexes are kept, and one with others; return how long each took to go."""
    team, kept = (f"{town.namespace}-{name}" for name in ("team", "kept"))
    made(town, team, **INDEXES)
    made(town, kept, keep={}, paused={"deletionPolicy": "Delete"})
    suspend(town, Key("PolarisIndex", kept, "paused"))
    with away:
        town.cluster.kubectl("delete", "namespace", team, kept, "--wait=false")
        retained = seconds_until_gone(town.cluster, f"/api/v1/namespaces/{kept}", RETAIN_SECONDS)
        patience = 3 * DEADLINE + CONTROLLER_SECONDS + RETAIN_SECONDS
        deleted = seconds_until_gone(town.cluster, f"/api/v1/namespaces/{team}", patience)
    cleaned_up = {"keep": ("released", False), "aside": ("released", True)}
    wait_for_rows(town, team, cleaned_up)
    wait_for_rows(town, kept, dict.fromkeys(("keep", "paused"), ("released", False)))
    over = "UPDATE polaris.indexes SET drop_after = now() WHERE namespace = %s"
    eventually("no login of it to be left", lambda: not readers(town))
    for namespace in (team, kept):
        run(town.database.dsn, over, namespace)
        wait_for_rows(town, namespace, {})
    return retained, retained + deleted


def wait_for_rows(town: Town, namespace: str, wanted: dict[str, tuple[str, bool]]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (rows := {name: row[:2] for name, row in rows_of(town, namespace).items()}) != wanted:
        assert time.monotonic() < deadline, rows
        time.sleep(0.1)


def readers(town: Town) -> list[str]:
    """Logins in PostgreSQL that are members of a reader of an index."""
    rows = run(
        town.database.dsn,
        "SELECT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member JOIN pg_roles g"
        " ON g.oid = m.roleid, polaris.catalog c WHERE r.rolcanlogin"
        " AND g.rolname LIKE 'polaris\\_' || c.id || '\\_i%%\\_reader'",
    )
    return [row[0] for row in rows]


def made_here(town: Town) -> Key:
    """An index in the namespace of the database."""
    key = apply(town.cluster, manifest(town, town.namespace, "other"))
    eventually("the other index", lambda: says(town.cluster, key, "Ready")[0] == "True")
    return key


def suspend(town: Town, key: Key) -> None:
    town.cluster.kubectl(
        *("patch", "pidx", key.name, "-n", key.namespace, "--type=merge"),
        *("-p", '{"spec": {"suspend": true}}'),
    )
    eventually("no finalizer", lambda: "finalizers" not in (get(town.cluster, key) or {})["metadata"])
