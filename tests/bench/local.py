"""POLARIS without a cluster, as processes: PostgreSQL, operator over a folder, service, worker."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psycopg2
import yaml
from psycopg2 import sql

from parts.servers import Database, connect, make_database, open_folder
from polaris import names
from polaris.errors import Unavailable
from polaris_cli.up import ports
from polaris_cli.up.postgres import LocalPostgres
from polaris_cli.up.process import Process
from polaris_operator import bootstrap

NAMESPACE = "bench"
DATABASE = "main"
MODEL = {"provider": "bench", "model": "bench", "revision": "1", "dimension": 384}
"""What vectors of the bench are said to be made with; nobody embeds anything."""
TARGET_RECALL = 99

# A server, not a laptop: what 100,000 rows and their graph need fits. All else is PostgreSQL's default,
# durability too. Both sides of every ratio run on it.
SERVER_SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "wal_level": "replica",
    "max_wal_senders": "10",
}
OPERATOR_LOGIN = "bench_operator"
_STEP_SECONDS = 120.0


class BenchError(Exception):
    """What was to be measured did not come about."""


def wait_for(what: str, ready: Callable[[], bool], seconds: float = _STEP_SECONDS) -> None:
    """Wait until `ready`; raise BenchError that names what was waited for."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise BenchError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)


def program(name: str, folder: Path, arguments: list[str], **environment: str) -> Process:
    """Return one of POLARIS' programs as a process; nothing of ours that is set steers it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("POLARIS_", "KUBE", "OTEL_", "PYTHON"))}
    kept = {k: v for k, v in os.environ.items() if k == "POLARIS_CACHE"}
    binary = str(Path(sys.executable).with_name("polaris"))
    return Process(
        name,
        folder,
        lambda: [binary, *arguments],
        environment={**clean, **kept, **environment},
    )


def grant(database: Database) -> dict[str, str]:
    """Grant what `polaris bootstrap` prints, without Vault; return the operator's own login."""
    password = secrets.token_urlsafe(16)
    with closing(connect(database.dsn)) as connection, connection.cursor() as cursor:
        for statement in bootstrap.statements(database.name, vault=False):
            cursor.execute(statement)
        login = sql.Identifier(OPERATOR_LOGIN)
        cursor.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD %s").format(login), [password])
        operator = sql.Identifier(names.OPERATOR_ROLE)
        cursor.execute(sql.SQL("GRANT {} TO {}").format(operator, login))
    return {"username": OPERATOR_LOGIN, "password": password}


def database_manifest(database: Database, namespace: str) -> dict[str, Any]:
    """Return the PolarisDatabase; the operator's login stands in the Secret `admin`."""
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisDatabase",
        "metadata": {"name": DATABASE, "namespace": namespace},
        "spec": {
            "host": database.server.host,
            "port": database.server.port,
            "database": database.name,
            "tls": {"mode": "disable"},
            "credentials": {"secretRef": {"name": "admin"}},
        },
    }


def index_manifest(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """Return a PolarisIndex: HNSW with m 16 and ef_construction 64, its own defaults but for `spec`."""
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisIndex",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "databaseRef": {"name": DATABASE},
            "embedding": MODEL,
            "index": {"type": "hnsw", "m": 16, "efConstruction": 64},
            "search": {"targetRecallPercent": TARGET_RECALL},
            **spec,
        },
    }


def write_settings(folder: Path) -> Path:
    """Write the settings file that names the provider of the vectors; return it."""
    model = {key: MODEL[key] for key in ("model", "revision", "dimension")}
    path = folder / "settings.yaml"
    # What a provider declares with its dimension is not asked of it: nothing listens there.
    provider = {"name": MODEL["provider"], "url": "http://127.0.0.1:9", "models": [model]}
    path.write_text(yaml.safe_dump({"providers": [provider]}))
    return path


def worker(folder: Path, secret: Path) -> Process:
    """Return a worker; it has nothing to embed, but offers the model and keeps the books of loads."""
    return program(
        "worker",
        folder,
        ["worker"],
        POLARIS_METRICS_PORT="0",
        POLARIS_DATABASE_SECRET=str(secret),
        POLARIS_SETTINGS_FILE=str(write_settings(folder)),
    )


@dataclass
class Service:
    """HTTP to a running service."""

    host: str
    port: int

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return status and JSON of one request on a connection of its own."""
        status, text = self.raw(method, path, None if body is None else json.dumps(body).encode())
        return status, json.loads(text or b"null")

    def serves(self, path: str) -> bool:
        """Whether a GET is answered with 200."""
        try:
            return self.raw("GET", path, None)[0] == 200
        except (OSError, HTTPException):
            return False

    def raw(
        self, method: str, path: str, body: bytes | None, media_type: str = "application/json"
    ) -> tuple[int, bytes]:
        """Return status and body of one request on a connection of its own."""
        with closing(HTTPConnection(self.host, self.port, timeout=_STEP_SECONDS)) as connection:
            connection.request(method, path, body, {"Content-Type": media_type} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()


@dataclass
class Local:
    """What runs, and the ways in."""

    database: Database
    server: LocalPostgres
    service: Service
    folder: Path
    manifests: Path
    programs: Mapping[str, Process]
    """By their names; whoever profiles one asks for its pid here."""

    @contextmanager
    def cursor(self) -> Iterator[psycopg2.extensions.cursor]:
        """A superuser's cursor, each statement on its own."""
        with closing(connect(self.database.dsn)) as connection, connection.cursor() as cursor:
            yield cursor

    def make_index(self, name: str, **spec: Any) -> str:
        """Put an index's manifest there, and return its path in HTTP once the service serves it."""
        manifest = index_manifest(name, NAMESPACE, deletionPolicy="Delete", undeleteSeconds=0, **spec)
        _write(self.manifests / f"{name}.yaml", yaml.safe_dump(manifest))
        path = f"/v1/indexes/{NAMESPACE}/{name}"
        wait_for(f"the index {name}", lambda: self.service.serves(path))
        return path

    def drop_index(self, name: str) -> None:
        """Take its manifest away, and return once its data is gone."""
        (self.manifests / f"{name}.yaml").unlink()
        wait_for(f"the index {name} to be gone", lambda: self.catalog_row(name) is None)

    def catalog_row(self, name: str) -> dict[str, Any] | None:
        """Return what the catalog holds of an index and its serving generation; None of one that is gone."""
        with self.cursor() as cursor:
            cursor.execute(
                "SELECT to_jsonb(i) || coalesce(to_jsonb(g), '{}') FROM polaris.indexes i LEFT JOIN"
                " polaris.generations g ON g.index_id = i.id AND g.number = i.serving WHERE i.name = %s",
                [name],
            )
            row = cursor.fetchone()
        return row[0] if row else None


@contextmanager
def running(resync_seconds: float) -> Iterator[Local]:
    """POLARIS on this machine, empty; all of it goes at the end."""
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder("polaris-bench-"))
        server = LocalPostgres(folder / "postgres", settings=SERVER_SETTINGS)
        stack.callback(server.stop)
        server.start()
        database = make_database(server)
        manifests, data = folder / "manifests", folder / "data"
        manifests.mkdir()
        _write_secret(data, "admin", grant(database))
        _write(manifests / "database.yaml", yaml.safe_dump(database_manifest(database, NAMESPACE)))
        port = ports.any_free()
        service = Service(ports.LOOPBACK, port)
        processes = [
            program(
                "operator",
                folder,
                ["operator", "--files", str(manifests), "--data", str(data)],
                POLARIS_METRICS_PORT="0",
                POLARIS_RESYNC_SECONDS=str(resync_seconds),
            ),
            worker(folder, _secret(data, "polaris-worker")),
            program(
                "service",
                folder,
                ["serve"],
                POLARIS_PORT=str(port),
                # Nobody is asked who they are: what it costs to ask depends on the Kubernetes API.
                POLARIS_AUTH="none",
                POLARIS_DATABASE_SECRET=str(_secret(data, "polaris-query")),
            ),
        ]
        stack.enter_context(started(processes))
        wait_for("the service", lambda: alive(processes) and service.serves("/livez"))
        by_name = {process.name: process for process in processes}
        yield Local(database, server, service, folder, manifests, by_name)


@contextmanager
def started(processes: Sequence[Process]) -> Iterator[None]:
    """Programs that run as long as the context; an error is told what they complained about last."""
    try:
        for process in processes:
            process.start()
        yield
    except Exception as error:
        for process in processes:
            error.add_note(f"{process.name}: {process.last_words()}")
        raise
    finally:
        for process in reversed(processes):
            process.stop()


def alive(processes: Sequence[Process]) -> bool:
    """Return True; raise Unavailable where one of them has ended."""
    for process in processes:
        if process.poll() is not None:
            raise Unavailable(f"{process.name} ended: {process.last_words()}")
    return True


def _secret(data: Path, name: str) -> Path:
    """Return the folder of a Secret, as the operator over a folder keeps it."""
    return data / "secrets" / NAMESPACE / name


def _write_secret(data: Path, name: str, values: Mapping[str, str]) -> None:
    folder = _secret(data, name)
    folder.mkdir(parents=True, mode=0o700)
    for key, value in values.items():
        _write(folder / key, value)
        (folder / key).chmod(0o600)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all: the operator may look at any moment."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.rename(path)
