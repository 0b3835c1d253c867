"""A login that External Secrets Operator brings: what its manifest makes is what the operator reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from parts.servers import Database, run
from polaris_cli.up.postgres import LocalPostgres
from scenes.folder import FolderScene, database_manifest
from scenes.roles import operator_login

EXAMPLE = Path(__file__).parents[2] / "docs/examples/external-secrets/database.yaml"


def example() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(EXAMPLE.read_text("utf-8"))}


def synced(external: dict[str, Any], remote: dict[str, dict[str, str]]) -> dict[str, str]:
    """The values that External Secrets Operator writes for `spec.data`, from what stands in AWS."""
    return {
        entry["secretKey"]: remote[entry["remoteRef"]["key"]][entry["remoteRef"]["property"]]
        for entry in external["spec"]["data"]
    }


@pytest.mark.unit
def test_its_parts_refer_to_one_another() -> None:
    documents = example()
    store, external, database = (
        documents[kind] for kind in ("SecretStore", "ExternalSecret", "PolarisDatabase")
    )
    assert {document["metadata"]["namespace"] for document in documents.values()} == {"rag"}
    assert store["apiVersion"] == external["apiVersion"] == "external-secrets.io/v1"
    assert store["spec"]["provider"]["aws"]["service"] == "SecretsManager"
    assert external["spec"]["secretStoreRef"] == {"kind": "SecretStore", "name": store["metadata"]["name"]}
    assert database["spec"]["credentials"] == {"secretRef": {"name": external["spec"]["target"]["name"]}}


@pytest.mark.postgres
def test_the_operator_logs_in_with_what_it_brings_and_follows_its_rotation(
    scene: FolderScene, postgres: LocalPostgres, fresh_database: Callable[[LocalPostgres], Database]
) -> None:
    """Alternating users: the one in use stays valid until the other one has arrived."""
    database, documents = fresh_database(postgres), example()
    external = documents["ExternalSecret"]
    with operator_login(database) as first, operator_login(database) as second:
        for login in (first, second):
            remote = {"rag/polaris-admin": {"username": login.username, "password": login.password}}
            scene.put_secret(external["spec"]["target"]["name"], **synced(external, remote))
            scene.apply(database_manifest(database, documents["PolarisDatabase"]["spec"]["credentials"]))
            scene.reconcile()
            assert scene.condition("Ready")[:2] == ("True", "Ready")
            seen = "SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = %s"
            assert run(database.dsn, seen, login.username) == [(True,)]
            if login is first:
                before = scene.secret("polaris-query")
        # Whose login the operator has is nothing to service and worker.
        assert scene.secret("polaris-query") == before
        scene.stop()
        scene.start()
