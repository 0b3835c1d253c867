"""The operator in a real cluster: as a process, by the rights that it needs and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

from kube import leash
from kube.cluster import Cluster
from polaris import crd
from polaris.crd import PLURALS
from polaris_operator.conditions.shared import condition
from polaris_operator.lease import lease_name
from polaris_operator.objects import Key

T = TypeVar("T")

OPERATOR_NAMESPACE = "polaris-system"
OPERATOR_ACCOUNT = "polaris-operator"
PATIENCE_SECONDS = 60.0

# All that the operator may do.
RULES: list[dict[str, Any]] = [
    {
        "apiGroups": ["polaris.dev"],
        "resources": ["polarisdatabases", "polarisindexes"],
        "verbs": ["list", "watch", "patch"],
    },
    {
        "apiGroups": ["polaris.dev"],
        "resources": ["polarisdatabases/status", "polarisindexes/status"],
        "verbs": ["update"],
    },
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "create", "update", "delete"]},
    {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {
        "apiGroups": [""],
        "resources": ["namespaces"],
        "resourceNames": ["kube-system"],
        "verbs": ["get"],
    },
]

# And what Kubernetes itself has a role for: to ask who a caller is, and may they.
DELEGATOR = "system:auth-delegator"

# And in its own namespace: it makes its Lease, and works with no other. (Who may create can't be told names.)
LEASE_RULES: list[dict[str, Any]] = [
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": ["polaris-operator"],
        "verbs": ["get", "update"],
    },
]
RBAC = "rbac.authorization.k8s.io"


def install(cluster: Cluster) -> None:
    """Install the CRDs, and the operator's ServiceAccount with its rights."""
    cluster.install_crds("---\n".join(crd.render(kind) for kind in PLURALS))
    role = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "polaris-operator"}
    account = {"kind": "ServiceAccount", "name": OPERATOR_ACCOUNT, "namespace": OPERATOR_NAMESPACE}
    cluster.apply(
        yaml.safe_dump_all(
            [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE}},
                {
                    "apiVersion": "v1",
                    "kind": "ServiceAccount",
                    "metadata": {"name": OPERATOR_ACCOUNT, "namespace": OPERATOR_NAMESPACE},
                },
                {
                    "apiVersion": f"{RBAC}/v1",
                    "kind": "Role",
                    "metadata": {"name": "polaris-operator", "namespace": OPERATOR_NAMESPACE},
                    "rules": LEASE_RULES,
                },
                {
                    "apiVersion": f"{RBAC}/v1",
                    "kind": "RoleBinding",
                    "metadata": {"name": "polaris-operator", "namespace": OPERATOR_NAMESPACE},
                    "roleRef": {**role, "kind": "Role"},
                    "subjects": [account],
                },
                {
                    "apiVersion": f"{RBAC}/v1",
                    "kind": "ClusterRole",
                    "metadata": {"name": "polaris-operator"},
                    "rules": RULES,
                },
                {
                    "apiVersion": f"{RBAC}/v1",
                    "kind": "ClusterRoleBinding",
                    "metadata": {"name": "polaris-operator"},
                    "roleRef": role,
                    "subjects": [account],
                },
                {
                    "apiVersion": f"{RBAC}/v1",
                    "kind": "ClusterRoleBinding",
                    "metadata": {"name": "polaris-operator-delegator"},
                    "roleRef": {**role, "name": DELEGATOR},
                    "subjects": [account],
                },
            ]
        )
    )


def eventually(what: str, probe: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Ask until the answer is true in Python's sense; AssertionError with the last answer otherwise."""
    deadline = time.monotonic() + seconds
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}; last seen: {answer!r}"
        time.sleep(0.1)
    return answer


class OperatorProcess:
    """`python -m polaris_operator.main`, on a leash."""

    def __init__(self, cluster: Cluster, folder: Path, **environment: str) -> None:
        """Prepare one whose log stands in a folder of its own; variables are added to what it needs."""
        self._cluster = cluster
        self._log = folder / "operator.log"
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("POLARIS_", "KUBE"))},
            "KUBECONFIG": str(cluster.kubeconfig_for(OPERATOR_NAMESPACE, OPERATOR_ACCOUNT)),
            "POLARIS_METRICS_PORT": "0",
            "POLARIS_OPERATOR_NAMESPACE": OPERATOR_NAMESPACE,
            "POLARIS_RESYNC_SECONDS": "2",
            **environment,
        }
        self._leash: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._leash = leash.start(
                [sys.executable, "-m", "polaris_operator.main"], log, env=self._environment
            )

    def kill(self) -> None:
        """SIGKILL it, and remove its Lease, so that the next one need not wait for it to run out."""
        self.kill_alone()
        self.remove_lease()

    def kill_alone(self) -> None:
        """SIGKILL it."""
        if self._leash is not None:
            leash.stop(self._leash)
            self._leash = None

    def remove_lease(self) -> None:
        """Let the next one lead at once; only where this one is dead."""
        self._cluster.api("DELETE", lease_path(self._environment.get("POLARIS_INSTALLATION", "")))

    def stop(self) -> int:
        """SIGTERM it; return its exit code."""
        assert self._leash is not None
        os.kill(self.pid, signal.SIGTERM)
        code = self._leash.wait(30)
        self._leash = None
        return code

    @property
    def running(self) -> bool:
        """Whether it was started and did not end."""
        return self._leash is not None and self._leash.poll() is None

    @property
    def pid(self) -> int:
        """Of the operator itself, which the leash holds."""
        assert self._leash is not None
        return eventually("the operator's process", lambda: _child(self._leash.pid if self._leash else 0))

    def log(self) -> str:
        """All that it wrote."""
        return self._log.read_text()


def lease_path(installation: str = "") -> str:
    """Where the API server has the Lease of an installation."""
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases"
    return f"{leases}/{lease_name(installation)}"


def leader(cluster: Cluster) -> str:
    """Who holds the Lease; empty: nobody."""
    answer = cluster.api("GET", lease_path())
    if answer.status_code == httpx.codes.NOT_FOUND:
        return ""
    return str(answer.raise_for_status().json()["spec"].get("holderIdentity") or "")


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process in the middle of whatever it does; it goes on afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def api_server_pid(cluster: Cluster) -> int:
    """The API server's process."""
    port = f"--secure-port={cluster.url.rpartition(':')[2]}"
    return next(
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if port in (process.info["cmdline"] or ()) and "kube-apiserver" in process.name()
    )


def _child(parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(children[0]) if children else 0


def path(key: Key) -> str:
    """Where the API server has an object."""
    return f"/apis/polaris.dev/v1alpha1/namespaces/{key.namespace}/{PLURALS[key.kind]}/{key.name}"


def get(cluster: Cluster, key: Key) -> dict[str, Any] | None:
    """Return an object; None where there is none."""
    answer = cluster.api("GET", path(key))
    if answer.status_code == httpx.codes.NOT_FOUND:
        return None
    return dict(answer.raise_for_status().json())


def says(cluster: Cluster, key: Key, kind: str) -> tuple[str, str, str]:
    """Status, reason and message of a condition; empty strings where it is not there."""
    found = condition((get(cluster, key) or {}).get("status", {}), kind)
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


def apply(cluster: Cluster, manifest: Mapping[str, Any]) -> Key:
    """`kubectl apply` of one manifest."""
    cluster.apply(json.dumps(manifest))
    metadata = manifest["metadata"]
    return Key(manifest["kind"], metadata["namespace"], metadata["name"])
