"""A cluster that is lost and built again: the same manifests, other uids, and everything is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kube.cluster import Cluster
from parts.servers import run
from polaris.sql import identifier
from polaris_operator.lease import lease_name
from polaris_operator.objects import Key
from scenes.cluster import (
    OPERATOR_ACCOUNT,
    OPERATOR_NAMESPACE,
    OperatorProcess,
    apply,
    eventually,
    get,
    path,
    says,
)
from scenes.town import Town

pytestmark = [pytest.mark.postgres, pytest.mark.kubernetes]

ROWS = 40


@pytest.fixture
def operator(installed_cluster: Cluster, town: Town, tmp_path: Path) -> Iterator[OperatorProcess]:
    installation = f"production-{town.namespace}"
    # As the chart grants it: to work with the Lease of this installation.
    lead = ("-n", OPERATOR_NAMESPACE, town.namespace)
    installed_cluster.kubectl(
        *("create", "role", *lead, "--verb=get,update", "--resource=leases.coordination.k8s.io"),
        f"--resource-name={lease_name(installation)}",
    )
    installed_cluster.kubectl(
        *("create", "rolebinding", *lead, f"--role={town.namespace}"),
        f"--serviceaccount={OPERATOR_NAMESPACE}:{OPERATOR_ACCOUNT}",
    )
    made = OperatorProcess(
        installed_cluster,
        tmp_path,
        POLARIS_WATCH_NAMESPACES=town.namespace,
        POLARIS_INSTALLATION=installation,
    )
    made.start()
    yield made
    made.kill()
    print(made.log())


def manifest(town: Town, policy: str) -> dict[str, Any]:
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisIndex",
        "metadata": {"name": f"handbook-{policy.lower()}", "namespace": town.namespace},
        "spec": {
            "databaseRef": {"name": "main"},
            "embedding": {"model": "e5", "dimension": 4},
            "deletionPolicy": policy,
            "access": [{"name": "reporting", "secretName": f"reporting-{policy.lower()}"}],
        },
    }


def applied(town: Town) -> list[Key]:
    """Apply what Git has, and wait until all of it is true."""
    apply(town.cluster, town.manifest())
    keys = [apply(town.cluster, manifest(town, policy)) for policy in ("Retain", "Delete")]
    town.wait_ready()
    run(
        town.database.dsn,
        "INSERT INTO polaris.models (provider, model, revision, reporter, dimension, reported_at)"
        " VALUES ('default', 'e5', '1', 'test', 4, now() + interval '1 day') ON CONFLICT DO NOTHING",
    )
    for key in keys:
        eventually(f"{key} to be ready", partial(is_ready, town, key))
    return keys


def is_ready(town: Town, key: Key) -> bool:
    return says(town.cluster, key, "Ready")[0] == "True"


def is_gone(town: Town, key: Key) -> bool:
    return get(town.cluster, key) is None


def fill(town: Town, key: Key) -> None:
    """Be a worker that has applied some documents."""
    place = identifier(schema(town, key))
    run(
        town.database.dsn,
        f"WITH d AS (INSERT INTO {place}.stored_documents (external_id, version, sequence, content_hash)"
        f" SELECT 'd' || g, 1, g, '' FROM generate_series(1, {ROWS}) g RETURNING id, sequence), v AS ("
        f" INSERT INTO {place}.stored_versions (document_id, version, sequence, content_hash, text)"
        " SELECT id, 1, sequence, '', 'text ' || id FROM d), a AS ("
        f" INSERT INTO {place}.g1_applied (document_id, version, sequence, chunks)"
        f" SELECT id, 1, sequence, 1 FROM d) INSERT INTO {place}.g1_chunks"
        " SELECT id, 1, 0, 0, 4, '', '{}', ARRAY[random(), random(), random(), random()]::real[]::halfvec"
        f" FROM d; UPDATE {place}.clock SET sequence = {ROWS}",
    )


def schema(town: Town, key: Key) -> str:
    rows = run(town.database.dsn, "SELECT schema_name FROM polaris.indexes WHERE name = %s", key.name)
    return str(rows[0][0])


def content(town: Town, key: Key) -> list[Any]:
    """Every document with its vector, and which table holds it: embedded again it would differ."""
    place = identifier(schema(town, key))
    return run(
        town.database.dsn,
        f"SELECT d.external_id, c.embedding::text, to_regclass('{place}.g1_chunks')::oid::bigint"
        f" FROM {place}.stored_documents d JOIN {place}.g1_chunks c ON c.document_id = d.id ORDER BY 1",
    )


def lose(town: Town, keys: list[Key]) -> dict[Key, str]:
    """Lose the cluster, not the database: objects and Secrets go, and nobody is told; return the uids."""
    uids = {}
    for key in (*keys, town.key):
        found = get(town.cluster, key)
        assert found is not None
        uids[key] = found["metadata"]["uid"]
        let_go: dict[str, Any] = {"metadata": {"finalizers": []}}
        town.cluster.api("PATCH", path(key), let_go, content_type="application/merge-patch+json")
        town.cluster.api("DELETE", path(key))
        eventually(f"{key} to be gone", partial(is_gone, town, key))
    town.cluster.kubectl("delete", "secrets", "--all", "-n", town.namespace)
    return uids


def test_the_same_manifests_have_the_same_documents_and_vectors_again(
    town: Town, operator: OperatorProcess
) -> None:
    keys = applied(town)
    for key in keys:
        fill(town, key)
    before = {key: content(town, key) for key in keys}
    labels = {key: (get(town.cluster, key) or {})["status"]["catalog"] for key in keys}

    operator.kill()
    uids = lose(town, keys)
    operator.start()
    assert applied(town) == keys

    for key in keys:
        found = get(town.cluster, key)
        assert found is not None
        assert found["metadata"]["uid"] != uids[key]
        assert found["status"]["catalog"] == labels[key]
        assert found["status"]["active"]["generation"] == 1
        assert content(town, key) == before[key]
        assert len(before[key]) == ROWS
        assert town.secret(f"reporting-{key.name.removeprefix('handbook-')}") is not None
