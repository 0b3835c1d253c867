from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from operator_index.place import database_in, index_manifest
from parts.servers import Database, run
from parts.vault import Administrator
from polaris.names import FINALIZER, index_role, vault_role
from polaris_cli.up.postgres import LocalPostgres
from scenes.credentials import FromVault, from_vault
from scenes.folder import FolderScene, query

pytestmark = pytest.mark.postgres

ACCESS = [{"name": "reporting", "secretName": "handbook-reporting"}]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[FolderScene]:
    made = FolderScene(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def vault(
    scene: FolderScene, vector_postgres: LocalPostgres, vault_administrator: Administrator
) -> Iterator[FromVault]:
    with database_in(vector_postgres) as database:
        with from_vault(scene, database, vault_administrator, "approle") as made:
            yield made
        scene.stop()


def roles_of_the_index(database: Database, catalog: str) -> int:
    found = run(database.dsn, "SELECT count(*) FROM pg_roles WHERE rolname LIKE %s", f"polaris_{catalog}_i%")
    return int(found[0][0])


def test_logins_of_readers_are_leased_and_with_delete_nothing_of_them_is_left(
    scene: FolderScene, vault: FromVault
) -> None:
    scene.apply(vault.manifest(allowedNamespaces=["*"]))
    scene.reconcile()
    worker = scene.secret("polaris-worker")
    query(worker, "INSERT INTO polaris.models VALUES ('default', 'e5', '1', 'test', 8)")
    key = scene.apply(index_manifest(access=ACCESS, deletionPolicy="Delete"))
    scene.reconcile(key)

    assert scene.condition("Ready", key)[0] == "True"
    secret = scene.objects.secret("team", "handbook-reporting")
    assert secret is not None
    assert secret.data["username"].startswith("v-")
    assert query(secret.data, "SELECT count(*) FROM polaris_i1_handbook.chunks") == [(0,)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        query(secret.data, "SELECT * FROM polaris_i1_handbook.stored_versions")
    catalog = str(scene.read(key).status["catalog"]).partition("/")[0]
    role = vault_role(catalog, index_role(catalog, 1, "reader"))
    assert any(f"/creds/{role}/" in lease for lease in vault.leases())
    assert len(vault.leases()) == 4

    scene.delete(key)
    scene.reconcile(key)

    assert scene.objects.get(key) is None
    assert scene.objects.secret("team", "handbook-reporting") is None
    assert len(vault.leases()) == 3
    assert vault.administrator.client.read(f"{vault.mount}/roles/{role}") is None
    assert roles_of_the_index(vault.database, catalog) == 0
    assert run(vault.database.dsn, "SELECT 1 FROM pg_roles WHERE rolname = %s", secret.data["username"]) == []
    assert run(vault.database.dsn, "SELECT 1 FROM polaris.indexes") == []


def test_a_login_that_vault_does_not_issue_holds_up_nothing_but_itself(
    scene: FolderScene, vault: FromVault
) -> None:
    scene.apply(vault.manifest(allowedNamespaces=["*"]))
    scene.reconcile()
    query(
        scene.secret("polaris-worker"), "INSERT INTO polaris.models VALUES ('default', 'e5', '1', 'test', 8)"
    )
    key = scene.apply(index_manifest())
    scene.reconcile(key)
    run(vault.database.dsn, "DROP VIEW polaris_i1_handbook.documents")
    run(vault.database.dsn, "REVOKE polaris_issuer FROM polaris_vault")
    two = [*ACCESS, {"name": "second", "secretName": "handbook-second"}]
    scene.apply(index_manifest(access=two, deletionPolicy="Delete"))
    try:
        again = scene.reconcile(key)
        assert again is not None
        assert again <= 10
        assert scene.read(key).finalizers == (FINALIZER,)
        assert run(vault.database.dsn, "SELECT deletion_policy FROM polaris.indexes") == [("Delete",)]
        assert run(vault.database.dsn, "SELECT 1 FROM pg_views WHERE viewname = 'documents'") == [(1,)]
        assert scene.condition("Serving", key)[0] == "True"
        assert scene.condition("Ready", key)[0] == "False"
        assert "Vault does not issue a login" in scene.condition("Ready", key)[2]
        assert scene.condition("Reconciling", key)[0] == "True"
    finally:
        run(vault.database.dsn, "GRANT polaris_issuer TO polaris_vault")
    scene.reconcile(key)
    assert scene.condition("Ready", key)[0] == "True"
    scene.delete(key)
    scene.reconcile(key)
