"""POLARIS with a cluster, as processes: API server with an audit log, PostgreSQL, operator, worker.

The operator has the rights that the chart gives it, and no others.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from bench.local import (
    SERVER_SETTINGS,
    BenchError,
    alive,
    database_manifest,
    grant,
    program,
    started,
    wait_for,
    worker,
)
from kube.cluster import Cluster
from mission.system import MountedSecret, condition, get, installed_chart
from parts.servers import Database, make_database, open_folder, run
from polaris_cli.up import ports
from polaris_cli.up.postgres import LocalPostgres
from polaris_cli.up.process import Process

NAMESPACE = "rag"
INDEXES = f"/apis/polaris.dev/v1alpha1/namespaces/{NAMESPACE}/polarisindexes"
_OPERATOR = f"system:serviceaccount:{NAMESPACE}:polaris-operator"
_WRITES = ["create", "update", "patch", "delete", "deletecollection"]


class AuditedCluster(Cluster):
    """A cluster whose API server writes down what the operator writes."""

    def _run(self, name: str, *flags: str) -> None:
        if name == "kube-apiserver":
            policy = self.folder / "audit-policy.yaml"
            policy.write_text(json.dumps(_AUDIT_POLICY))
            flags = (*flags, f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}")
        super()._run(name, *flags)

    @property
    def audit_log(self) -> Path:
        """One JSON object for each write of the operator, written before it is answered."""
        return self.folder / "audit.log"

    def writes(self) -> Counter[str]:
        """Return how often the operator wrote what until now, such as `patch polarisindexes/status`."""
        lines = self.audit_log.read_text().splitlines() if self.audit_log.exists() else []
        return Counter(_what(json.loads(line)) for line in lines)


_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata", "users": [_OPERATOR], "verbs": _WRITES}, {"level": "None"}],
}


def _what(event: Mapping[str, Any]) -> str:
    thing = event.get("objectRef", {})
    path = "/".join(filter(None, (thing.get("resource"), thing.get("subresource"))))
    return f"{event['verb']} {path}"


class Memory:
    """The most memory that a process and its children had, in MiB: proportional set size."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            self._look()

    def _look(self) -> None:
        try:
            all_ = [self._process, *self._process.children(recursive=True)]
            self.most = max(self.most, sum(one.memory_full_info().pss for one in all_) / 2**20)
        except psutil.NoSuchProcess:
            return


class Processor:
    """Processor time of a process and all its children, those that have ended too, in seconds."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def seconds(self) -> float:
        """Return what was used until now."""
        own = self._process.cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for child in self._process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system
        return float(total)


@dataclass
class Clustered:
    """What runs, and the ways in."""

    cluster: AuditedCluster
    client: httpx.Client
    """Of the administrator."""
    database: Database
    server: LocalPostgres
    operator: Process
    metrics_port: int

    @contextmanager
    def applied(self, manifest: Mapping[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """Apply an index; yield the versions of the object that follow, for at most a minute."""
        name = manifest["metadata"]["name"]
        answer = self.client.patch(
            f"{INDEXES}/{name}",
            params={"fieldManager": "bench", "force": "true"},
            content=json.dumps(manifest),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        answer.raise_for_status()
        watch = {
            "watch": "1",
            "timeoutSeconds": "60",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": answer.json()["metadata"]["resourceVersion"],
        }
        with self.client.stream("GET", INDEXES, params=watch, timeout=90) as events:
            yield (json.loads(line)["object"] for line in events.iter_lines())

    def indexes(self) -> list[dict[str, Any]]:
        """Return all of them."""
        answer = self.client.get(INDEXES)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["items"]
        return found

    def edit(self, name: str, spec: Mapping[str, Any]) -> None:
        """Change fields of an index' spec."""
        self.client.patch(
            f"{INDEXES}/{name}",
            content=json.dumps({"spec": spec}),
            headers={"Content-Type": "application/merge-patch+json"},
        ).raise_for_status()

    def delete_indexes(self) -> None:
        """Delete all of them, and return when they are gone."""
        self.client.delete(INDEXES).raise_for_status()
        wait_for("all indexes to be gone", lambda: not self.indexes())

    def passes(self) -> float:
        """Return how many passes over indexes the operator has made since it started."""
        try:
            text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10).text
        except httpx.HTTPError:
            return 0
        counted = [
            line
            for line in text.splitlines()
            if line.startswith('polaris_operator_passes_total{kind="PolarisIndex"')
        ]
        return sum(float(line.rpartition(" ")[2]) for line in counted)

    def operator_pid(self) -> int:
        """Return the operator's pid; raise BenchError where it does not run."""
        pid = self.operator.pid
        if pid is None:
            raise BenchError(f"the operator does not run: {self.operator.last_words()}")
        return pid


@contextmanager
def running(resync_seconds: float) -> Iterator[Clustered]:
    """A cluster with a database that is Ready, and no index; all of it goes at the end."""
    with ExitStack() as stack:
        cluster = stack.enter_context(AuditedCluster())
        folder = stack.enter_context(open_folder("polaris-bench-"))
        server = LocalPostgres(folder / "postgres", settings=SERVER_SETTINGS)
        stack.callback(server.stop)
        server.start()
        database = make_database(server)
        cluster.kubectl("create", "namespace", NAMESPACE)
        stack.enter_context(installed_chart(cluster, NAMESPACE))
        literals = [f"--from-literal={key}={value}" for key, value in grant(database).items()]
        cluster.kubectl("create", "secret", "generic", "admin", "-n", NAMESPACE, *literals)
        mounted = stack.enter_context(
            MountedSecret(cluster, NAMESPACE, "polaris-worker", folder / "polaris-worker")
        )
        port = ports.any_free()
        operator = program(
            "operator",
            folder,
            ["operator"],
            KUBECONFIG=str(cluster.kubeconfig_for(NAMESPACE, "polaris-operator")),
            POLARIS_OPERATOR_NAMESPACE=NAMESPACE,
            POLARIS_METRICS_PORT=str(port),
            POLARIS_RESYNC_SECONDS=str(resync_seconds),
        )
        processes = (operator, worker(folder, mounted.folder))
        stack.enter_context(started(processes))
        manifest = database_manifest(database, NAMESPACE)
        cluster.apply(json.dumps(manifest))
        wait_for(
            "the database to be Ready",
            lambda: alive(processes) and is_ready(get(cluster, "pgdb", NAMESPACE, "main")),
        )
        wait_for("the worker to offer its model", lambda: alive(processes) and _models(database) > 0)
        client = stack.enter_context(
            httpx.Client(
                base_url=cluster.url,
                headers={"Authorization": f"Bearer {cluster.admin_token}"},
                verify=ssl.create_default_context(cafile=str(cluster.ca_file)),
                trust_env=False,
                timeout=60,
            )
        )
        yield Clustered(cluster, client, database, server, operator, port)


def is_ready(resource: Mapping[str, Any]) -> bool:
    """Whether an object says that it is Ready, of the generation that it has."""
    ready = condition(resource, "Ready")
    return bool(
        ready.get("status") == "True"
        and resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
    )


def _models(database: Database) -> int:
    return len(run(database.dsn, "SELECT model FROM polaris.models"))
