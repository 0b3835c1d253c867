"""An installation of POLARIS without a cluster, as its programs run: operator over a folder, service, worker.

What a page of the documentation shows is run beside it by a shell, as it stands there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from cli.program import here
from docs.pages import ROOT, block
from embed.doubles import HashedProvider, serving
from kube import leash
from mission.system import answers, wait_for
from parts.servers import connect
from polaris_cli.up.ports import any_free
from polaris_cli.up.postgres import Installation, PostgresServer
from polaris_operator.bootstrap import ADMIN_LOGIN

PAGE = ROOT / "docs/operations.md"
NAMESPACE, DATABASE = "rag", "polaris"
MODEL = "multilingual-e5-small"
PASSWORD = "a-long-random-password"
RIGHTS = f"CREATE ROLE {ADMIN_LOGIN} LOGIN PASSWORD '{PASSWORD}' IN ROLE polaris_operator"


def embedder() -> HashedProvider:
    """What stands in for the model: it counts what it is asked for."""
    return HashedProvider(384, MODEL)


def uri(server: PostgresServer, database: str = DATABASE) -> str:
    """The superuser's way into a database."""
    return f"postgresql://{server.superuser}:{server.password}@{server.host}:{server.port}/{database}"


def database_manifest(port: int, **spec: Any) -> dict[str, Any]:
    """A PolarisDatabase on this machine, by an administrator's login."""
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisDatabase",
        "metadata": {"name": "main", "namespace": NAMESPACE},
        "spec": {
            "host": "127.0.0.1",
            "port": port,
            "database": DATABASE,
            "tls": {"mode": "disable"},
            "credentials": {"secretRef": {"name": "admin"}},
            **spec,
        },
    }


def index_manifest(name: str = "handbook", **spec: Any) -> dict[str, Any]:
    """A PolarisIndex in that database."""
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisIndex",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "databaseRef": {"name": "main"},
            "embedding": {"model": MODEL, "dimension": 384},
            **spec,
        },
    }


class Site:
    """The three programs over a folder; `start` them, and `stop` what is to be stopped."""

    def __init__(self, folder: Path, embedder_url: str, **variables: str) -> None:
        self.folder = folder
        self._variables = variables
        self.manifests, self.data = folder / "manifests", folder / "data"
        self.manifests.mkdir(parents=True)
        secret = self.data / "secrets" / NAMESPACE / "admin"
        secret.mkdir(parents=True)
        (secret / "username").write_text(ADMIN_LOGIN)
        (secret / "password").write_text(PASSWORD)
        port = any_free()
        self.metrics_ports = {"operator": any_free(), "worker": any_free()}
        self.url = f"http://127.0.0.1:{port}"
        secrets = self.data / "secrets" / NAMESPACE
        self._environments = {
            "operator": {
                "POLARIS_RESYNC_SECONDS": "1",
                "POLARIS_METRICS_PORT": str(self.metrics_ports["operator"]),
            },
            "serve": {
                "POLARIS_PORT": str(port),
                "POLARIS_AUTH": "none",
                "POLARIS_EMBEDDER": embedder_url,
                "POLARIS_DATABASE_SECRET": str(secrets / "polaris-query"),
                "POLARIS_QUERY_URL": self.url,
            },
            "worker": {
                "POLARIS_METRICS_PORT": str(self.metrics_ports["worker"]),
                "POLARIS_EMBEDDER": embedder_url,
                "POLARIS_DATABASE_SECRET": str(secrets / "polaris-worker"),
                "POLARIS_POLL_SECONDS": "1",
            },
        }
        self._arguments = {
            "operator": ["operator", "--files", str(self.manifests), "--data", str(self.data)],
            "serve": ["serve"],
            "worker": ["worker"],
        }
        self._leashes: dict[str, subprocess.Popen[bytes]] = {}
        self.http = httpx.Client(base_url=self.url, timeout=30)

    # --- programs

    def start(self, *names: str) -> None:
        """Start programs, by default all three, and wait for the service's port."""
        for name in names or self._arguments:
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("POLARIS_", "KUBE"))}
            with (self.folder / f"{name}.log").open("ab") as log:
                self._leashes[name] = leash.start(
                    [sys.executable, "-m", "polaris_cli.main", *self._arguments[name]],
                    log,
                    env={**environment, **self._environments[name], **self._variables},
                )
        if "serve" in (names or self._arguments):
            wait_for("the service to answer", lambda: answers(f"{self.url}/livez"))

    def stop(self, *names: str) -> None:
        """Kill programs, by default all: nobody says good-bye."""
        leash.stop(*(self._leashes.pop(name) for name in names or tuple(self._leashes)))

    def close(self) -> None:
        """Kill what runs, and show the ends of the logs; pytest prints them where a test failed."""
        self.stop()
        self.http.close()
        for log in self.folder.glob("*.log"):
            print(f"--- {log.name}", *log.read_text("utf-8", "replace").splitlines()[-20:], sep="\n")

    def add_reader(self, port: int) -> httpx.Client:
        """Start another service, which reads from the standby at a port; return the way to it."""
        mine = any_free()
        self._environments["reader"] = {
            **self._environments["serve"],
            "POLARIS_PORT": str(mine),
            "POLARIS_READ_HOST": "127.0.0.1",
            "POLARIS_READ_PORT": str(port),
        }
        self._arguments["reader"] = ["serve"]
        self.start("reader")
        url = f"http://127.0.0.1:{mine}"
        wait_for("the reader to answer", lambda: answers(f"{url}{self.path()}"))
        return httpx.Client(base_url=url, timeout=30)

    # --- objects

    def put(self, manifest: Mapping[str, Any], *, wait: bool = True) -> None:
        """Write a manifest, and wait until its object is ready."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        (self.manifests / f"{kind}-{name}.yaml").write_text(yaml.safe_dump(dict(manifest)))
        if wait:
            self.wait(kind, name)

    def wait(self, kind: str, name: str, reason: str = "Ready") -> str:
        """Wait until `Ready` has this reason; return its message."""
        said: dict[str, str] = {}

        def holds() -> bool:
            said.update(self.condition(kind, name))
            return said.get("reason") == reason

        try:
            wait_for(f"{kind} {name} to say {reason}", holds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {said}") from None
        return said["message"]

    def condition(self, kind: str, name: str, condition: str = "Ready") -> dict[str, str]:
        """A condition of an object, by the status that its operator wrote last; {} where there is none."""
        return next((c for c in self.status(kind, name).get("conditions", ()) if c["type"] == condition), {})

    def status(self, kind: str, name: str) -> dict[str, Any]:
        """An object's status."""
        file = self.data / "status" / kind / NAMESPACE / f"{name}.yaml"
        try:
            return yaml.safe_load(file.read_text()) or {}
        except OSError:
            return {}

    # --- requests

    def path(self, name: str = "handbook") -> str:
        """Of an index."""
        return f"/v1/indexes/{NAMESPACE}/{name}"

    def load(self, lines: list[dict[str, Any]], name: str = "handbook") -> list[dict[str, Any]]:
        """Put documents by NDJSON; return what is said of each."""
        content = "\n".join(map(json.dumps, lines))
        headers = {"content-type": "application/x-ndjson"}
        answer = self.http.post(f"{self.path(name)}/documents", content=content, headers=headers)
        assert answer.status_code == httpx.codes.OK, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    def level(self, name: str = "handbook") -> dict[str, Any]:
        """Wait until everything that was put can be found; return what the index says of itself."""
        found: dict[str, Any] = {}

        def settled() -> bool:
            answer = self.http.get(self.path(name))
            found.update(answer.json())
            return answer.is_success and found["pending"] == 0

        wait_for(f"{name} to be level", settled)
        return found

    def search(self, name: str = "handbook", **body: Any) -> list[dict[str, Any]]:
        """The hits of a search."""
        answer = self.http.post(f"{self.path(name)}/search", json=body)
        assert answer.status_code == httpx.codes.OK, answer.text
        hits: list[dict[str, Any]] = answer.json()["hits"]
        return hits

    def answer(self, question: str, name: str = "handbook") -> dict[str, Any]:
        """An answer, without what differs from one to the next."""
        answer = self.http.post(f"{self.path(name)}/answer", json={"question": question})
        assert answer.status_code == httpx.codes.OK, answer.text
        found: dict[str, Any] = answer.json()
        found.pop("timings_ms")
        return found

    def answers_again(self, name: str = "handbook") -> None:
        """Wait until the index is served."""
        wait_for(f"{name} to be served", lambda: answers(f"{self.url}{self.path(name)}"))


@contextmanager
def site(folder: Path, embedder_url: str, **variables: str) -> Iterator[Site]:
    """An installation that ends with the context; its programs have these variables too."""
    made = Site(folder, embedder_url, **variables)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def embedding() -> Iterator[tuple[HashedProvider, str]]:
    """What embeds, with its count, and its address."""
    provider = embedder()
    with ExitStack() as stack:
        yield provider, stack.enter_context(serving(provider))


def grant(server: PostgresServer) -> None:
    """Make the database, and do what its administrators do once."""
    done = here(
        *("bootstrap", "--apply", "--no-vault", "--database", DATABASE, "--database-url"),
        uri(server, "postgres"),
    )
    assert done.code == 0, done.err
    execute(uri(server), RIGHTS)


def execute(dsn: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run a statement in a session of its own; return its rows."""
    connection = connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def shell(
    holding: str,
    *,
    installation: Installation | None,
    cwd: Path | None = None,
    user: int | None = None,
    change: Callable[[str], str] = str,
    **variables: str,
) -> str:
    """Run the block of the page that holds a text; return what it printed."""
    programs = [str(Path(sys.executable).parent), *([str(installation.binaries)] if installation else [])]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", change(block(PAGE, "sh", holding))],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("POLARIS_", "PG", "KUBE"))},
            "PATH": os.pathsep.join([*programs, os.environ["PATH"]]),
            "PYTHONWARNINGS": "",
            **variables,
        },
        cwd=cwd,
        user=user,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
