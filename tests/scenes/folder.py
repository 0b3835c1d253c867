"""The operator over a folder of manifests, in this process, one pass at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import yaml

from parts.servers import Database
from polaris_operator.conditions.shared import condition
from polaris_operator.folder import FolderObjects
from polaris_operator.main import Operator
from polaris_operator.objects import Key, Resource

NAMESPACE = "rag"
MAIN = Key("PolarisDatabase", NAMESPACE, "main")


def database_manifest(
    database: Database, credentials: Mapping[str, Any], name: str = "main", **spec: Any
) -> dict[str, Any]:
    """A PolarisDatabase for this database, without TLS."""
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisDatabase",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "host": database.server.host,
            "port": database.server.port,
            "database": database.name,
            "tls": {"mode": "disable"},
            "credentials": dict(credentials),
            **spec,
        },
    }


class FolderScene:
    """A folder of manifests, a folder of data, and an operator whose passes the test calls for."""

    def __init__(self, folder: Path) -> None:
        self.manifests, self.data = folder / "manifests", folder / "data"
        self.manifests.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        """Start an operator; after `stop`, or instead of one that `abandon` left."""
        self.objects = FolderObjects(self.manifests, self.data)
        self.operator = Operator(self.objects)

    def stop(self) -> None:
        """End it in order."""
        self.operator.stop()
        self.objects.close()

    def abandon(self) -> None:
        """Leave it as a kill -9 would: nothing is logged out of, nothing revoked."""
        for entry in self.operator.databases._entries.values():
            if entry.listener is not None:
                entry.listener.stop()
            for door in (entry.postgres, entry.vault):
                if door is not None:
                    door.close()
        self.objects.close()

    def apply(self, manifest: Mapping[str, Any]) -> Key:
        """Write a manifest."""
        metadata = manifest["metadata"]
        file = self.manifests / f"{manifest['kind']}-{metadata['namespace']}-{metadata['name']}.yaml"
        file.write_text(yaml.safe_dump(dict(manifest)))
        self.objects.look()
        return Key(manifest["kind"], metadata["namespace"], metadata["name"])

    def delete(self, key: Key) -> None:
        """Remove a manifest."""
        (self.manifests / f"{key.kind}-{key.namespace}-{key.name}.yaml").unlink()
        self.objects.look()

    def put_secret(self, name: str, **data: str) -> None:
        """Write an input Secret, as a person does."""
        folder = self.data / "secrets" / NAMESPACE / name
        folder.mkdir(parents=True, exist_ok=True)
        for key, value in data.items():
            (folder / key.replace("_", "-")).write_text(value + "\n")

    def reconcile(self, key: Key = MAIN) -> float | None:
        """Make one pass."""
        return self.operator.reconciler.reconcile(key)

    def age_own_login(self, age: timedelta) -> None:
        """Let the operator's own login be so much older."""
        entry = self.operator.databases._entries[MAIN]
        assert entry.own is not None
        entry.own = replace(entry.own, issued_at=entry.own.issued_at - age)

    def own_login(self) -> str:
        """The operator's own login now, of Vault."""
        own = self.operator.databases._entries[MAIN].own
        assert own is not None
        return own.username

    def read(self, key: Key = MAIN) -> Resource:
        """The object now."""
        resource = self.objects.get(key)
        assert resource is not None
        return resource

    def condition(self, kind: str, key: Key = MAIN) -> tuple[str, str, str]:
        """Status, reason and message of a condition; empty strings where it is not there."""
        found = condition(self.read(key).status, kind)
        return found.get("status", ""), found.get("reason", ""), found.get("message", "")

    def secret(self, name: str) -> Mapping[str, str]:
        """The values of a Secret."""
        found = self.objects.secret(NAMESPACE, name)
        assert found is not None, f"no Secret {name}"
        return found.data


def query(login: Mapping[str, str], statement: str) -> list[tuple[Any, ...]]:
    """Run one statement as the login of a Secret."""
    with closing(psycopg2.connect(login["uri"])) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
        connection.commit()
        return rows


def log_in(login: Mapping[str, str]) -> bool:
    """Whether a login of a Secret is let in."""
    try:
        return query(login, "SELECT 1") == [(1,)]
    except psycopg2.OperationalError:
        return False
