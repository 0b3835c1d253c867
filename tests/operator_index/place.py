"""A PolarisDatabase with everything real: a folder of manifests, PostgreSQL, the operator's own login.

What runs is what `polaris operator --files` runs, one pass at a time.
"""

from __future__ import annotations

import ast
import json
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import yaml

from parts import servers
from parts.servers import Database, make_database
from polaris import names
from polaris.errors import PolarisError
from polaris.spec import PolarisIndexSpec, TlsMode, parse_spec
from polaris.sql import identifier
from polaris_cli.up.postgres import PostgresServer
from polaris_operator import bootstrap
from polaris_operator.apply import apply
from polaris_operator.databases import Databases
from polaris_operator.doors import Doors
from polaris_operator.folder import FolderObjects
from polaris_operator.objects import Key, Resource
from polaris_operator.patrol import patrol
from polaris_operator.postgres import Identity, Postgres, Server
from polaris_operator.reconcile import Reconciler, Sides
from polaris_operator.sides import database, index
from polaris_operator.steps import Plan, Step
from polaris_operator.world.database import Process
from polaris_operator.world.index import IndexAndLogins

MAIN = Key("PolarisDatabase", "rag", "main")
DIMENSION = 8
PATIENCE_SECONDS = 60

P = TypeVar("P", bound="Place")


class Place:
    """One installation at work in one database."""

    def __init__(self, place: Database, folder: Path, *, name: str = "here") -> None:
        self.database = place
        self._folder = folder
        self._neighbours: list[Place] = []
        self.manifests = folder / name / "manifests"
        self.data = folder / name / "data"
        self.manifests.mkdir(parents=True)
        self.woken: set[Key] = set()
        self.errors: list[PolarisError] = []
        """Of the last round of passes."""
        self.login = f"login_{uuid.uuid4().hex[:12]}"
        self._secret()
        self._grant(place)
        self.put(_database_manifest(place))
        self.start()

    def start(self) -> None:
        """Begin as a process that has just been started."""
        self.objects = self.folder()
        installation = uuid.UUID(self.objects.installation)
        process = Process(installation, str(self.manifests), f"process-{uuid.uuid4()}")
        self.databases = Databases(self.objects, process, self.woken.add)
        self.side = index.Index()
        sides = Sides(database.Database(patrol), self.side)
        self.reconciler = Reconciler(self.objects, self.databases, sides, self.woken.add)
        self.objects.look()

    def folder(self) -> FolderObjects:
        """The objects of its manifests, as a process that has just been started has them."""
        return FolderObjects(self.manifests, self.data)

    def neighbour(self, name: str) -> Place:
        """Another installation in the same database; it ends with this one."""
        made = Place(self.database, self._folder, name=name)
        self._neighbours.append(made)
        made.go()
        return made

    def stop(self) -> None:
        """End; PostgreSQL goes on."""
        while self._neighbours:
            self._neighbours.pop().stop()
        self.databases.close_all()
        self.objects.close()

    def restart(self) -> None:
        """Begin again, with nothing remembered."""
        self.stop()
        self.start()

    @contextmanager
    def elsewhere(self, server: PostgresServer) -> Iterator[None]:
        """Let the database lead to one of the same name in another server, and then back."""
        home = self.database
        with database_in(server, home.name) as away:
            self._grant(away)
            try:
                self.lead_to(away)
                self.go(MAIN)
                self.offer()
                yield
            finally:
                self.lead_to(home)
        self.objects.look()

    def lead_to(self, database: Database) -> None:
        """Write host and port of a database into its manifest."""
        self.database = database
        self.put(_database_manifest(database))

    # Manifests

    def put(self, manifest: dict[str, Any]) -> Key:
        """Write a manifest into the folder."""
        metadata = manifest["metadata"]
        key = Key(manifest["kind"], metadata["namespace"], metadata["name"])
        self._file(key).write_text(yaml.safe_dump(manifest), encoding="utf-8")
        return key

    def remove(self, key: Key) -> None:
        """Remove a manifest from the folder."""
        self._file(key).unlink()

    def age_deletion(self, key: Key) -> None:
        """Begin again, a day after the object was deleted."""
        self._edit(key, deleted_at=(datetime.now(UTC) - timedelta(days=1)).isoformat())

    def edit_deleted(self, key: Key, **changes: Any) -> None:
        """Begin again with another spec of an object that is being deleted, as in a cluster one may."""
        self._edit(key, spec={**self.resource(key).spec, **changes})

    def _edit(self, key: Key, **changes: Any) -> None:
        self.stop()
        file = self.data / "objects" / key.kind / key.namespace / f"{key.name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        self.start()

    def _file(self, key: Key) -> Path:
        return self.manifests / f"{key.kind}-{key.namespace}-{key.name}.yaml".lower()

    # Passes

    def go(self, key: Key | None = None) -> dict[str, Any]:
        """Look at the folder, and make a pass over the database and one object, or all; return its status.

        What can't be done now is left to the next pass, as the queue does.
        """
        changed = self.objects.look()
        wanted = {one.key for kind in _KINDS for one in self.objects.list(kind)} if key is None else {key}
        self.errors = []
        for one in sorted(changed | wanted | {MAIN}):
            self._reconcile(one)
        while self.woken or self.databases.measuring():
            if self.woken:
                self._reconcile(self.woken.pop())
            else:
                time.sleep(0.005)
        found = self.objects.get(key) if key else None
        return dict(found.status) if found else {}

    def _reconcile(self, key: Key) -> None:
        try:
            self.reconciler.reconcile(key)
        except PolarisError as error:
            self.errors.append(error)

    def ready(self, name: str = "handbook", **changes: Any) -> Key:
        """Make an index, from its manifest to Ready."""
        key = self.put(index_manifest(name, **changes))
        status = self.go(key)
        assert said_of(status, "Ready").get("status") == "True", status
        return key

    @property
    def _looks_again(self) -> bool:
        """Whether a step found under its lock that a build had ended since the look: see observe.index."""
        return any(str(error).startswith("no longer true") for error in self.errors)

    def go_until(self, key: Key, condition: str, status: str = "True") -> dict[str, Any]:
        """Make passes until a condition has this status."""
        return self.until(key, lambda said: said_of(said, condition).get("status") == status)

    def until(self, key: Key, holds: Any) -> dict[str, Any]:
        """Make passes until the status is as it should be; there is no other way to wait for a build."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            said = self.go(key)
            if holds(said) and not self._looks_again:
                return said
            assert time.monotonic() < end, (said, self.errors)
            time.sleep(0.02)

    @property
    def doors(self) -> Doors:
        """Those of the database, as indexes get them."""
        found = self.databases.find(MAIN, "team")
        assert isinstance(found, Doors), found
        return found

    def resource(self, key: Key) -> Resource:
        """The object as it is."""
        found = self.objects.get(key)
        assert found is not None
        return found

    def look(self, key: Key) -> tuple[Resource, PolarisIndexSpec, IndexAndLogins]:
        """Gather, and nothing else."""
        found = self.resource(key)
        spec = parse_spec(PolarisIndexSpec, found.spec)
        return found, spec, self.side.gather(found, spec, self.doors, datetime.now(UTC))

    def decide(self, key: Key) -> Plan:
        """Gather and decide."""
        found, spec, facts = self.look(key)
        return self.side.plan(found, spec, facts, datetime.now(UTC))

    def act(self, key: Key, steps: Sequence[Step]) -> None:
        """Carry steps out."""
        apply(steps, self.doors, self.resource(key))

    # PostgreSQL

    def sql(self, statement: str, *parameters: object, **named: object) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, in a session of its own."""
        with closing(servers.connect(self.database.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or named or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *parameters: object) -> Any:
        """Return the one value of a statement."""
        return self.sql(statement, *parameters)[0][0]

    def offer(self, model: str = "e5", dimension: int = DIMENSION) -> None:
        """Be a worker that embeds with this model."""
        self.sql(
            "INSERT INTO polaris.models (provider, model, revision, reporter, dimension, reported_at)"
            " VALUES ('default', %s, '1', 'test', %s, now() + interval '1 day')",
            model,
            dimension,
        )

    def schema(self, key: Key) -> str:
        """The schema of an index."""
        found: str = self.one(
            "SELECT schema_name FROM polaris.indexes WHERE namespace = %s AND name = %s",
            key.namespace,
            key.name,
        )
        return found

    def role(self, key: Key, kind: str) -> str:
        """One of the three roles of an index."""
        found: str = self.one(
            "SELECT format('polaris_%%s_i%%s_%%s', c.id, i.id, %s::text)"
            " FROM polaris.catalog c, polaris.indexes i WHERE i.schema_name = %s",
            kind,
            self.schema(key),
        )
        return found

    def fill(self, key: Key, rows: int, *, dimension: int = DIMENSION, seed: int = 1) -> None:
        """Put documents of one chunk each, with random vectors, as a worker would have."""
        place = identifier(self.schema(key))
        self.sql(
            f"SELECT setseed(0.{seed});"
            f"WITH d AS (INSERT INTO {place}.stored_documents (external_id, version, sequence, content_hash)"
            f" SELECT 'd' || g || '-{seed}', 1, g, '' FROM generate_series(1, {rows}) g"
            " RETURNING id, sequence), v AS ("
            f" INSERT INTO {place}.stored_versions (document_id, version, sequence, content_hash, text,"
            " attributes) SELECT id, 1, sequence, '', 'text ' || id, '{\"lang\": \"pt\"}' FROM d),"
            f" a AS (INSERT INTO {place}.g1_applied (document_id, version, sequence, chunks)"
            " SELECT id, 1, sequence, 1 FROM d)"
            f" INSERT INTO {place}.g1_chunks SELECT id, 1, 0, 0, 4, '', '{{\"lang\": \"pt\"}}',"
            " (SELECT array_agg(random() + 0 * (g + id))"
            f" FROM generate_series(1, {dimension}) g)::real[]::halfvec"
            " FROM d;"
            f"UPDATE {place}.clock SET sequence = {rows}; ANALYZE {place}.g1_chunks"
        )

    def fingerprint(self, key: Key) -> dict[str, Any]:
        """All that PostgreSQL and the catalog hold of an index, without what differs from one to the next."""
        return fingerprint(self.database, self.schema(key))

    def _grant(self, database: Database) -> None:
        """Grant what administrators grant, and make the operator a login that is no superuser."""
        superuser = Postgres(
            Server(database.server.host, database.server.port, database.name, TlsMode.DISABLE),
            Identity(database.server.superuser, database.server.password),
        )
        superuser.administer(bootstrap.statements(database.name, vault=False))
        superuser.close()
        servers.run(
            database.dsn, f"CREATE ROLE {self.login} LOGIN PASSWORD 'secret' IN ROLE {names.OPERATOR_ROLE}"
        )

    def _secret(self) -> None:
        secret = self.data / "secrets" / MAIN.namespace / "admin"
        secret.mkdir(parents=True)
        (secret / "username").write_text(self.login, encoding="utf-8")
        (secret / "password").write_text("secret", encoding="utf-8")


_FINGERPRINT = {
    "relations": """
        SELECT c.relname, c.relkind::text, pg_get_userbyid(c.relowner),
          ARRAY(SELECT x::text FROM unnest(c.relacl) x ORDER BY 1),
          ARRAY(SELECT format('%%s %%s %%s %%s', a.attname, format_type(a.atttypid, a.atttypmod),
                  a.attnotnull, a.attstorage)
                FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                ORDER BY a.attnum)
        FROM pg_class c WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind IN ('r', 'v')
        ORDER BY 1""",
    "indexes": """
        SELECT pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE c.relnamespace = to_regnamespace(%(schema)s) ORDER BY 1""",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = %(schema)s ORDER BY 1",
    "schema": """
        SELECT pg_get_userbyid(nspowner), ARRAY(SELECT x::text FROM unnest(nspacl) x ORDER BY 1)
        FROM pg_namespace WHERE nspname = %(schema)s""",
    "roles": """
        SELECT r.rolname, r.rolcanlogin,
          ARRAY(SELECT DISTINCT m.member::regrole::text FROM pg_auth_members m
                WHERE m.roleid = r.oid ORDER BY 1)
        FROM pg_roles r WHERE starts_with(r.rolname, %(role)s) ORDER BY 1""",
    "index": """
        SELECT namespace, state, deletion_policy, spec::text, serving FROM polaris.indexes
        WHERE id = %(number)s""",
    "generations": """
        SELECT number, state, embedding::text, chunking::text, vector_index FROM polaris.generations
        WHERE index_id = %(number)s""",
}


def catalog_of(database: Database) -> str:
    """Return the id of the catalog in a database."""
    return str(servers.run(database.dsn, "SELECT id FROM polaris.catalog")[0][0])


def fingerprint(database: Database, schema: str) -> dict[str, Any]:
    """All that PostgreSQL and the catalog hold of the index in a schema, without what differs."""
    catalog = catalog_of(database)
    with closing(servers.connect(database.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id FROM polaris.indexes WHERE schema_name = %s", (schema,))
        ((number,),) = cursor.fetchall()
        named = {"schema": schema, "number": number, "role": f"polaris_{catalog}_i{number}_"}
        found = {}
        for name, query in _FINGERPRINT.items():
            cursor.execute(query, named)
            found[name] = cursor.fetchall()
    text = repr(found)
    for this, that in ((schema, "SCHEMA"), (f"{catalog}_i{number}", "INDEX"), (catalog, "CATALOG")):
        text = text.replace(this, that)
    text = re.sub(r"\bv-[\w-]+", "v-login", re.sub(r"_login_\d+", "_login", text))
    plain: dict[str, Any] = ast.literal_eval(text)
    return plain


_KINDS: tuple[Any, ...] = ("PolarisDatabase", "PolarisIndex")


def _database_manifest(place: Database) -> dict[str, Any]:
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisDatabase",
        "metadata": {"name": MAIN.name, "namespace": MAIN.namespace},
        "spec": {
            "host": place.server.host,
            "port": place.server.port,
            "database": place.name,
            "tls": {"mode": "disable"},
            "credentials": {"secretRef": {"name": "admin"}},
            "allowedNamespaces": ["*"],
        },
    }


def index_manifest(name: str = "handbook", *, annotations: Any = None, **changes: Any) -> dict[str, Any]:
    """A manifest of an index; `changes` replace whole fields of its spec."""
    spec = {
        "databaseRef": {"name": MAIN.name, "namespace": MAIN.namespace},
        "embedding": {"model": "e5", "dimension": DIMENSION},
        **changes,
    }
    metadata = {"name": name, "namespace": "team", **({"annotations": annotations} if annotations else {})}
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisIndex",
        "metadata": metadata,
        "spec": spec,
    }


def said_of(status: dict[str, Any], condition: str) -> dict[str, Any]:
    """A condition of a status; {} where it is not there."""
    return next((dict(c) for c in status.get("conditions", ()) if c["type"] == condition), {})


@contextmanager
def place_in(server: PostgresServer) -> Iterator[Place]:
    """A place in a database of its own; both go when the test ends."""
    with place_of(Place, server) as place:
        yield place


@contextmanager
def place_of(kind: type[P], server: PostgresServer) -> Iterator[P]:
    """The same, of another kind of place."""
    with servers.open_folder() as folder, database_in(server) as made:
        place = kind(made, folder)
        try:
            yield place
        finally:
            place.stop()


@contextmanager
def database_in(server: PostgresServer, name: str | None = None) -> Iterator[Database]:
    """A fresh database with `vector`. Roles stay in the server, under names that nobody else draws."""
    made = make_database(server)
    try:
        if name is not None:
            servers.run(server.superuser_dsn, f"ALTER DATABASE {made.name} RENAME TO {name}")
            made = Database(server, name)
        yield made
    finally:
        servers.drop_database(made)


__all__ = [
    "DIMENSION",
    "MAIN",
    "Place",
    "catalog_of",
    "database_in",
    "fingerprint",
    "index_manifest",
    "place_in",
    "place_of",
    "said_of",
]
