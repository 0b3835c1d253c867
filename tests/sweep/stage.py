"""All real but the workers: a folder of manifests, PostgreSQL, OpenBao, and an operator that is killed.

Time does not pass by itself here: `Stage.age` moves into the past what the operator waits for.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from typing import Any

import hvac.exceptions

from operator_index.place import catalog_of, fingerprint, index_manifest, said_of
from parts import servers
from parts.servers import make_database
from parts.vault import Administrator
from polaris.errors import PolarisError
from polaris.sql import identifier
from polaris_cli.up.postgres import PostgresServer
from polaris_operator.main import KINDS
from polaris_operator.objects import Key
from polaris_operator.postgres import Postgres
from polaris_operator.vault import Vault
from scenes.credentials import FromVault, from_vault
from scenes.folder import MAIN, FolderScene, query
from scenes.killed import Effects

TEAM = "team"
SUBJECT = Key("PolarisIndex", TEAM, "subject")
BYSTANDER = Key("PolarisIndex", TEAM, "bystander")
PATIENCE_SECONDS = 60

# What differs from one run to the next, and means nothing: times, epochs, and what was drawn.
_DRAWN = {
    "lastTransitionTime": "TIME",
    "expiresAt": "TIME",
    "sealToleranceSeconds": "TIME",
    "validSince": "TIME",
    "lastTime": "TIME",
    "deletedAt": "TIME",
    "dropAfter": "TIME",
    "epoch": "EPOCH",
    # An estimate, which whoever vacuums makes better.
    "rows": "ROWS",
    "holder": "HOLDER",
}
_WORDS = {
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?": "TIME",
    r"CATALOG/\d+": "LABEL",
    r"_i\d+": "_i#",
    r"at \d+ rows": "at ROWS",
}

# Who is in which group of this catalog by a login, and what the ledger says of it.
_LOGINS = """
SELECT regexp_replace(g.rolname, %(drawn)s, '#'), coalesce(l.state, 'unknown to the ledger'),
  coalesce(l.name, ''), count(*)
FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member JOIN pg_roles g ON g.oid = m.roleid
LEFT JOIN polaris.credentials l ON l.username = r.rolname AND l.state <> 'revoked'
WHERE r.rolcanlogin AND (g.rolname LIKE 'polaris_' || %(catalog)s || '_%%'
  OR (g.rolname = 'polaris_operator' AND r.rolname ~ '^v-'))
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
# The operator's own are seen by their roles and leases: the last one of a database that goes closes no row.
_LEDGER = """
SELECT name, state, count(*) FROM polaris.credentials WHERE state <> 'revoked' AND name <> 'operator'
GROUP BY 1, 2 ORDER BY 1, 2
"""
_GRANTS = """
SELECT coalesce(c.relname, n.nspname), regexp_replace(x::text, %(catalog)s, 'CATALOG', 'g')
FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'v', 'S'),
  unnest(coalesce(c.relacl, n.nspacl)) x
WHERE n.nspname = 'polaris' ORDER BY 1, 2
"""
_OLDER = """
UPDATE polaris.credentials SET requested_at = requested_at - interval '31 seconds',
  superseded_at = superseded_at - interval '301 seconds';
UPDATE polaris.indexes SET updated_at = updated_at - interval '2 hours',
  drop_after = drop_after - interval '8 days';
UPDATE polaris.generations SET superseded_at = superseded_at - interval '2 hours'
"""


class StandsStill(Exception):
    """What is wanted does not come true, however many passes are made."""


class Stage:
    """One installation at work in one database, until it is killed, and then again."""

    def __init__(self, scene: FolderScene, vault: FromVault) -> None:
        self.scene, self.vault = scene, vault
        self.errors: list[PolarisError] = []
        """Of the last round of passes."""
        self._session = servers.connect(vault.database.dsn)
        self._doors: list[Postgres | Vault] = []
        """All that were opened: who is killed as it closes one has forgotten it already."""

    def close(self) -> None:
        """Look no more."""
        self._session.close()

    # Manifests

    def database(self) -> None:
        """Ask for the PolarisDatabase."""
        self.scene.apply(self.vault.manifest(allowedNamespaces=["*"]))

    def index(self, key: Key = SUBJECT, annotations: Mapping[str, str] | None = None, **spec: Any) -> None:
        """Ask for an index, or for another spec of it."""
        self.scene.apply(index_manifest(key.name, annotations=annotations and dict(annotations), **spec))

    def remove(self, key: Key) -> None:
        """Remove a manifest, where there is one."""
        if self.scene.objects.get(key) is not None:
            self.scene.delete(key)

    # The operator

    def stand(self) -> None:
        """Make passes until everything is as it is wanted."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while not (self.round() and self._stands()):
            if time.monotonic() >= ends:
                raise StandsStill(self.errors, [self._said(key) for key in self._keys()])
            time.sleep(0.01)

    def settle(self) -> None:
        """Make passes until everything is as it is wanted, and time has passed: what was left is gone."""
        self.stand()
        for _ in range(2):
            self.age()
            self.stand()

    def die(self, effects: Effects) -> None:
        """End as a process that was killed does, and begin as another one."""
        self.scene.abandon()
        while self._doors:
            self._doors.pop().close()
        for trial in effects.trials:  # Nobody renews it any more.
            self._revoke_token(trial.client.token)
        self.scene.start()
        self.scene.objects.look()

    def age(self) -> None:
        """Let everything be so much older that what has to be waited for is due."""
        if self.scene.objects.get(MAIN) is not None and self.known("polaris.credentials"):
            self.sql(_OLDER)
        for entry in self.scene.operator.databases._entries.values():
            if entry.own is not None:
                self.scene.age_own_login(timedelta(minutes=2))

    def grow_old(self, logins: Sequence[str]) -> None:
        """Let logins be past half of their life, in the ledger and in their Secrets."""
        age = timedelta(minutes=35)
        for name, namespace, secret in self.sql(
            "UPDATE polaris.credentials SET issued_at = issued_at - %(age)s,"
            " expires_at = date_trunc('second', expires_at) - %(age)s"
            " WHERE name = ANY(%(names)s) AND state = 'published'"
            " RETURNING name, secret_namespace, secret_name",
            age=age,
            names=list(logins),
        ):
            file = self.scene.data / "secrets" / namespace / secret / "..data" / "expires-at"
            ends = datetime.fromisoformat(file.read_text()) - age
            file.write_text(ends.strftime("%Y-%m-%dT%H:%M:%SZ"))
            assert name in logins

    def round(self) -> bool:
        """Look at the folder, and make a pass over each object; whether all could be done."""
        self.scene.objects.look()
        self._remember()
        self.errors = []
        for key in self._keys():
            try:
                self.scene.reconcile(key)
            except PolarisError as error:
                self.errors.append(error)
        self._work()
        return not self.errors

    def _remember(self) -> None:
        for entry in self.scene.operator.databases._entries.values():
            found = (entry.postgres, entry.vault)
            self._doors += [door for door in found if door is not None and door not in self._doors]

    def _keys(self) -> list[Key]:
        return sorted(one.key for kind in KINDS for one in self.scene.objects.list(kind))

    def _stands(self) -> bool:
        """Whether every object is Ready as its spec is now, and none is on its way out."""
        found = (self.scene.objects.get(key) for key in self._keys())
        return all(
            one is None
            or (
                one.deleted_at is None
                and said_of(dict(one.status), "Ready").get("status") == "True"
                and one.status["observedGeneration"] == one.generation
                and not self._loading()
            )
            for one in found
        )

    def _said(self, key: Key) -> Any:
        found = self.scene.objects.get(key)
        return found and found.status.get("conditions")

    # Workers

    def offer(self) -> None:
        """Be a worker that embeds with every model."""
        self.sql(
            "INSERT INTO polaris.models (provider, model, revision, reporter, dimension, reported_at)"
            " SELECT 'default', model, '1', 'test', dimension, now() + interval '1 day'"
            " FROM (VALUES ('e5', 8), ('other', 4)) m (model, dimension) ON CONFLICT DO NOTHING"
        )

    def fill(self, key: Key, documents: Sequence[str]) -> None:
        """Put documents of one chunk each."""
        place = identifier(self.schema(key))
        self.sql(
            f"WITH d AS (INSERT INTO {place}.stored_documents (external_id, version, sequence, content_hash)"
            f" SELECT id, 1, (SELECT sequence FROM {place}.clock) + place, ''"
            " FROM unnest(%(documents)s) WITH ORDINALITY u (id, place) RETURNING id, sequence)"
            f" INSERT INTO {place}.stored_versions (document_id, version, sequence, content_hash, text,"
            " attributes) SELECT id, 1, sequence, '', 'text ' || sequence, '{\"lang\": \"pt\"}' FROM d;"
            f"UPDATE {place}.clock SET sequence = sequence + %(many)s",
            documents=list(documents),
            many=len(documents),
        )
        self._work()

    def _work(self) -> None:
        """Bring the generations that load or serve level with the documents, as workers do."""
        if self.known("polaris.models"):
            self.offer()
        for schema, number, dimension in self._generations("g.state IN ('loading', 'serving')"):
            place = identifier(schema)
            if not self.known(f"{place}.g{number}_applied"):
                continue
            self.sql(
                f"WITH d AS (SELECT id, version, sequence FROM {place}.stored_documents d WHERE NOT EXISTS"
                f" (SELECT FROM {place}.g{number}_applied a WHERE a.document_id = d.id)), a AS ("
                f"INSERT INTO {place}.g{number}_applied (document_id, version, sequence, chunks)"
                " SELECT id, version, sequence, 1 FROM d)"
                f" INSERT INTO {place}.g{number}_chunks SELECT d.id, d.version, 0, 0, 4,"
                " sha256(convert_to('text', 'UTF8')), '{\"lang\": \"pt\"}',"
                " (SELECT array_agg(sin(d.sequence * g)) FROM"
                f" generate_series(1, {dimension}) g)::real[]::halfvec FROM d;"
                "UPDATE polaris.generations g SET low_water = (SELECT sequence FROM"
                f" {place}.clock) FROM polaris.indexes i WHERE i.id = g.index_id AND g.number = {number}"
                f" AND i.schema_name = '{schema}'"
            )

    def _loading(self) -> bool:
        return bool(self._generations("g.state <> 'serving'"))

    def _generations(self, where: str) -> list[tuple[Any, ...]]:
        if not self.known("polaris.generations"):
            return []
        return self.sql(
            "SELECT i.schema_name, g.number, (g.embedding ->> 'dimension')::integer"
            " FROM polaris.generations g JOIN polaris.indexes i ON i.id = g.index_id"
            f" WHERE i.state = 'active' AND {where}"
        )

    # What there is

    def picture(self) -> dict[str, Any]:
        """Return all that there is: objects, catalogs, grants, rows, Secrets, logins, the ledger, leases."""
        catalog = catalog_of(self.vault.database)
        named = {"catalog": catalog, "drawn": f"{catalog}_i\\d+"}
        found = {
            "objects": {str(key): self._object(key, catalog) for key in self._keys()},
            "indexes": self._indexes(),
            "grants": self.sql(_GRANTS, **named),
            "logins": self._forgotten(lambda: self.sql(_LOGINS, **named)),
            "ledger": self.sql(_LEDGER),
            "secrets": {name: self._secret(*name) for name in self._secrets()},
            "leases": self._leases(catalog),
            "vault roles": sorted(re.sub(rf"{catalog}-i\d+", "#", one) for one in self._vault_roles(catalog)),
        }
        text = repr(found).replace(catalog, "CATALOG").replace(self.vault.database.name, "DATABASE")
        plain: dict[str, Any] = ast.literal_eval(text)
        return plain

    def _object(self, key: Key, catalog: str) -> Any:
        found = self.scene.read(key)
        text = repr(_plain((found.finalizers, dict(found.status)))).replace(catalog, "CATALOG")
        for drawn, name in _WORDS.items():
            text = re.sub(drawn, name, text)
        return ast.literal_eval(text)

    def _indexes(self) -> list[Any]:
        rows = self.sql("SELECT namespace, name, schema_name FROM polaris.indexes ORDER BY 1, 2")
        return [
            (namespace, name, fingerprint(self.vault.database, schema), self._rows(schema))
            for namespace, name, schema in rows
        ]

    def _rows(self, schema: str) -> Any:
        """Every document, and what the serving generation holds of it."""
        place = identifier(schema)
        numbers = self.sql(
            "SELECT serving FROM polaris.indexes WHERE schema_name = %(schema)s AND serving IS NOT NULL",
            schema=schema,
        )
        return [
            self.sql(
                "SELECT d.external_id, d.version, v.text, c.embedding::text"
                f" FROM {place}.stored_documents d JOIN {place}.stored_versions v ON v.document_id = d.id"
                f" LEFT JOIN {place}.g{number}_chunks c ON c.document_id = d.id ORDER BY 1"
            )
            for (number,) in numbers
        ]

    def _secrets(self) -> Iterator[tuple[str, str]]:
        for folder in sorted((self.scene.data / "secrets").glob("*/*")):
            if not folder.name.startswith(".."):
                yield folder.parent.name, folder.name

    def _secret(self, namespace: str, name: str) -> Any:
        found = self.scene.objects.secret(namespace, name)
        if found is None or "uri" not in found.data:
            return found and sorted(found.data)
        reads = query(found.data, "SELECT current_user")[0][0] == found.data["username"]
        return sorted(found.data), reads, [found.data[key] for key in ("host", "port", "dbname", "sslmode")]

    def _leases(self, catalog: str) -> list[str]:
        """The role of each lease that lives."""

        def look() -> list[str]:
            paths = (lease.split("/creds/")[1].split("/")[0] for lease in self._all_leases())
            return sorted(re.sub(rf"{catalog}-i\d+", "#", path) for path in paths)

        found: list[str] = self._forgotten(look)
        return found

    def _all_leases(self) -> list[str]:
        try:
            return self.vault.leases()
        except hvac.exceptions.InvalidPath:
            return []

    def _forgotten(self, look: Callable[[], Any]) -> Any:
        """Look, once what Vault ends in the background had a moment: until it stays as it is."""
        found, ends = look(), time.monotonic() + 5
        while time.monotonic() < ends:
            time.sleep(0.05)
            before, found = found, look()
            if before == found:
                break
        return found

    def _vault_roles(self, catalog: str) -> list[str]:
        answer = self.vault.administrator.client.list(f"{self.vault.mount}/roles")
        names = answer["data"]["keys"] if isinstance(answer, dict) else []
        return [name for name in names if catalog in name]

    def _revoke_token(self, token: str) -> None:
        self.vault.administrator.client.write_data("auth/token/revoke", data={"token": token})

    # PostgreSQL

    def schema(self, key: Key) -> str:
        """The schema of an index."""
        rows = self.sql(
            "SELECT schema_name FROM polaris.indexes WHERE namespace = %(namespace)s AND name = %(name)s"
            " AND state = 'active'",
            namespace=key.namespace,
            name=key.name,
        )
        return str(rows[0][0])

    def known(self, relation: str) -> bool:
        """Whether a table is there."""
        return bool(self.sql("SELECT to_regclass(%(relation)s) IS NOT NULL", relation=relation)[0][0])

    def sql(self, statement: str, **named: object) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser."""
        with self._session.cursor() as cursor:
            cursor.execute(statement, named or None)
            return cursor.fetchall() if cursor.description else []


def _plain(value: Any) -> Any:
    """Leave out what is a time, an epoch or was drawn."""
    if isinstance(value, Mapping):
        return {key: _DRAWN.get(key) or _plain(one) for key, one in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def differences(this: Any, that: Any, where: str = "") -> Iterator[str]:
    """Tell what differs, and no more than that."""
    if isinstance(this, dict) and isinstance(that, dict):
        for key in sorted({*this, *that}, key=str):
            yield from differences(this.get(key), that.get(key), f"{where}/{key}")
    elif isinstance(this, list | tuple) and isinstance(that, list | tuple) and len(this) == len(that):
        for place, (one, other) in enumerate(zip(this, that, strict=True)):
            yield from differences(one, other, f"{where}/{place}")
    elif this != that:
        yield f"{where}: {this!r}, and now {that!r}"


@contextmanager
def stage(server: PostgresServer, administrator: Administrator) -> Iterator[Stage]:
    """A stage with a database and an engine of Vault of its own."""
    with servers.open_folder() as folder:
        scene = FolderScene(folder)
        try:
            database = make_database(server)
            try:
                with from_vault(scene, database, administrator, "approle") as vault:
                    with closing(Stage(scene, vault)) as made:
                        yield made
                    scene.stop()
            finally:
                servers.drop_database(database)
        finally:
            scene.objects.close()


__all__ = ["BYSTANDER", "MAIN", "SUBJECT", "TEAM", "Stage", "StandsStill", "differences", "stage"]
