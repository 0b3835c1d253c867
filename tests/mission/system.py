"""POLARIS as it runs in a cluster: its programs as processes, each with the rights that the chart gives.

A kubelet would mount the Secrets that the operator makes; here a thread does, the way a kubelet does
it (a new folder, and a link that is swapped).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from kube.cluster import Cluster
from kube.helm import helm
from polaris import crd

ROOT = Path(__file__).parents[2]


def wait_for(what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until `ready`; AssertionError that names what was waited for."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


class MountedSecret:
    """A Secret as files in a folder, followed when it changes, as a kubelet does it."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, folder: Path) -> None:
        self._cluster, self._path = cluster, f"/api/v1/namespaces/{namespace}/secrets/{name}"
        self.folder = folder
        self._version = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        folder.mkdir(parents=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._end.wait(0.5):
            try:
                answer = self._cluster.api("GET", self._path)
            except httpx.HTTPError:
                continue  # The API server is down: a kubelet keeps what is mounted.
            if answer.is_success and answer.json()["metadata"]["resourceVersion"] != self._version:
                self._mount(answer.json())

    def _mount(self, secret: Mapping[str, Any]) -> None:
        self._version = secret["metadata"]["resourceVersion"]
        new = self.folder / f"..{self._version}"
        new.mkdir()
        for key, value in secret["data"].items():
            (new / key).write_bytes(base64.b64decode(value))
            link = self.folder / key
            if not link.is_symlink():
                link.symlink_to(Path("..data") / key)
        swapped = self.folder / "..data_tmp"
        swapped.symlink_to(new.name)
        current = self.folder / "..data"
        before = current.resolve() if current.is_symlink() else None
        swapped.rename(current)
        if before and before != new:
            shutil.rmtree(before, ignore_errors=True)


class Program:
    """One of POLARIS' programs as a process, with its log in a file."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name, self._arguments = name, arguments
        self.log = folder / f"{name}.log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("POLARIS_", "KUBE"))}
        keep = {k: v for k, v in os.environ.items() if k == "POLARIS_CACHE"}
        self._environment = {**clean, **keep, **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output is added to its log."""
        program = Path(sys.executable).with_name("polaris")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [program, *self._arguments],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, to it and all its children."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not end it in 20 s."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)

    def show_log(self) -> None:
        """Print the end of its log; pytest shows it where a test failed."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        print(f"--- {self.name}", *lines[-30:], sep="\n")

    def _signal(self, number: int) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, number)
            self.process.wait()


@contextmanager
def installed_chart(cluster: Cluster, namespace: str) -> Iterator[None]:
    """What the chart gives to a cluster, less the pods: CRDs, ServiceAccounts, roles."""
    cluster.install_crds("---\n".join(crd.render(kind) for kind in crd.PLURALS))
    rendered = helm("template", "polaris", str(ROOT / "charts/polaris"), "--namespace", namespace).stdout
    kinds = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
    objects = [o for o in yaml.safe_load_all(rendered) if o and o["kind"] in kinds]
    text = yaml.safe_dump_all(objects)
    cluster.kubectl("apply", "--server-side", "-f", "-", input=text)
    yield
    cluster.kubectl("delete", "--ignore-not-found", "-f", "-", input=text)


def get(cluster: Cluster, kind: str, namespace: str, name: str) -> dict[str, Any]:
    """Return an object as the API server has it."""
    found: dict[str, Any] = json.loads(
        cluster.kubectl("get", kind, name, "-n", namespace, "-o", "json").stdout
    )
    return found


def condition(resource: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition of an object's status; {} where there is none."""
    found = [c for c in resource.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {}


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return httpx.get(url, timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
