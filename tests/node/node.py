"""A real Kubernetes of one node or two on this machine, in namespaces and cgroups of their own.

The control plane is the one of `kube.cluster`; beside it run kube-scheduler and, on each node, containerd
with runc, kubelet and kube-proxy; CoreDNS is a Deployment. Only what enters its network (`Node.network`)
reaches it, and it reaches nobody. How that is done: `sandbox`.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kube import leash, tool
from kube.cluster import Cluster
from node import build, images, sandbox

HERE = Path(__file__).resolve().parent
DNS_ADDRESS = "10.96.0.10"
CNI_PLUGINS = Path("/usr/lib/cni")

PAUSE = "test.polaris.dev/pause:1"
COREDNS = "test.polaris.dev/coredns:1"
TOOLS = images.TOOLS

_SCRIPT = [sys.executable, "-I", "-S", str(HERE / "sandbox.py")]
_READY_SECONDS = 120.0


@dataclasses.dataclass
class _Worker:
    """A machine of the cluster, as its pods see it; the first has the control plane too."""

    number: int
    folder: Path
    """What is its own: what it calls /var/lib and /var/log, and its configuration."""
    sandbox: str
    """Its control groups' name."""
    pid: int = 0
    """Of its sandbox's first process."""

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        return sandbox.address_of(self.number)

    @property
    def user(self) -> str:
        return f"system:node:{self.name}"

    def named(self, program: str) -> str:
        """What the cluster calls a program that runs here, its log and its configuration too."""
        return program if self.number == 1 else f"{program}-{self.number}"


class Node(Cluster):
    """A cluster whose Deployments run: `with Node() as node:`. As root only; see `machine.why_not`.

    `Node(workers=2)` has two, so that one can be drained: `node-1`, and `node-2` in a network of its own.
    """

    address = sandbox.address_of(1)
    controllers = ("*",)

    start_seconds = 0.0

    def __init__(self, workers: int = 1) -> None:
        super().__init__()
        self._count = workers
        self._workers: list[_Worker] = []
        self._users: dict[str, tuple[str, str]] = {}  # to their token and group

    def _find_binaries(self) -> Mapping[str, Path]:
        return build.binaries()

    def _start_parts(self) -> None:
        begun = time.monotonic()
        self._workers = [self._worker(number) for number in range(1, self._count + 1)]
        users = {worker.user: "system:nodes" for worker in self._workers}
        users |= dict.fromkeys(("system:kube-scheduler", "system:kube-proxy"), "")
        self._users = {user: (secrets.token_urlsafe(16), group) for user, group in users.items()}
        (self.folder / "tokens.csv").write_text(self._tokens())
        for worker in self._workers:
            self._start_sandbox(worker)
            self._start_containerd(worker)
        super()._start_parts()
        self._start_scheduler()
        self._import_own_images()
        for worker in self._workers:
            self._start_kubelet(worker)
            self._start_proxy(worker)
        self._wait_for("kubelet", self._nodes_are_ready)
        self.apply(_manifests("dns.yaml", address=DNS_ADDRESS, image=COREDNS, replicas=str(self._count)))
        self.kubectl("rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout=120s")
        self.start_seconds = time.monotonic() - begun

    def _worker(self, number: int) -> _Worker:
        if number == 1:
            return _Worker(1, self.folder, self.folder.name)
        folder = self.folder / f"node-{number}"
        folder.mkdir()
        return _Worker(number, folder, f"{self.folder.name}-{number}")

    def _start_sandbox(self, worker: _Worker) -> None:
        first = [str(self._workers[0].pid)] if worker.number > 1 else []
        process = worker.named("sandbox")
        with self.log(process).open("ab") as log:
            self._processes[process] = leash.start(
                [*_SCRIPT, "hold", worker.sandbox, worker.folder, str(worker.number), *first],
                log,
                remove_if_orphaned=self.folder,
                afterwards=[*_SCRIPT, "remove", worker.sandbox],
            )
        ready = worker.folder / "pid"
        self._wait_for(process, ready.exists)
        worker.pid = int(ready.read_text())

    def _start_containerd(self, worker: _Worker) -> None:
        plugins = "io.containerd.cri.v1"
        networks = worker.folder / "cni"
        networks.mkdir()
        (networks / "10-bridge.conflist").write_text(json.dumps(_cni(sandbox.pods_of(worker.number))))
        config = f"""
version = 3
[plugins."{plugins}.images".pinned_images]
sandbox = "{PAUSE}"
[plugins."{plugins}.runtime"]
restrict_oom_score_adj = true  # to lower it takes a right that root may not have here
[plugins."{plugins}.runtime".cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{networks}"
[plugins."{plugins}.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."{plugins}.runtime".containerd.runtimes.runc.options]
BinaryName = "{self.binaries["runc"]}"
SystemdCgroup = false
"""
        (worker.folder / "containerd.toml").write_text(config)
        self._run_on(worker, "containerd", f"--config={worker.folder / 'containerd.toml'}")

    def _start_scheduler(self) -> None:
        self._run(
            "kube-scheduler",
            f"--kubeconfig={self._kubeconfig_of('system:kube-scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
        )

    def _start_kubelet(self, worker: _Worker) -> None:
        (worker.folder / "resolv.conf").write_text("")  # there is nobody outside to ask
        self._run_on(
            worker,
            "kubelet",
            f"--config={self._configuration(worker, 'kubelet', _kubelet(worker))}",
            f"--kubeconfig={self._kubeconfig_of(worker.user)}",
            f"--hostname-override={worker.name}",
            f"--node-ip={worker.address}",
        )

    def _start_proxy(self, worker: _Worker) -> None:
        config = _proxy(worker, self._kubeconfig_of("system:kube-proxy"))
        self._run_on(worker, "kube-proxy", f"--config={self._configuration(worker, 'kube-proxy', config)}")

    def _import_own_images(self) -> None:
        self._wait_for("containerd", self._containerds_answer)
        for image, program in {PAUSE: "pause", COREDNS: "coredns", TOOLS: "tools"}.items():
            archive = self.folder / f"{program}.tar"
            files = {f"/bin/{program}": self.binaries[program]}
            self.load(images.by_hand(image, files, [f"/bin/{program}"], archive))
            archive.unlink()

    def _containerds_answer(self) -> bool:
        return not any(self._ctr(each, "version", check=False).returncode for each in self._workers)

    def _nodes_are_ready(self) -> bool:
        answer = self.api("GET", "/api/v1/nodes")
        nodes = answer.json()["items"] if answer.is_success else []
        conditions = [each for node in nodes for each in node["status"].get("conditions", [])]
        ready = [each for each in conditions if each["type"] == "Ready" and each["status"] == "True"]
        return len(ready) == self._count

    # Ways in

    def network(self) -> AbstractContextManager[None]:
        """The node's network, in which it, its pods and its Services have their addresses."""
        return sandbox.in_network(sandbox.network_of(self._workers[0].pid))

    def load(self, image: images.Image) -> None:
        """Give an image to each node; pods name it with `imagePullPolicy: Never` or `IfNotPresent`."""

        def give(worker: _Worker) -> None:
            self._ctr(worker, "--namespace=k8s.io", "images", "import", "--local", str(image.archive))

        with ThreadPoolExecutor(len(self._workers)) as pool:
            list(pool.map(give, self._workers))

    def inside(
        self, *command: str | Path, on: int = 1, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node, as root; raises ToolError."""
        return tool.run(self._entering(self._workers[on - 1], *command), os.environ, check=check)

    def _ctr(self, worker: _Worker, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.inside(self.binaries["ctr"], *arguments, on=worker.number, check=check)

    # How its parts are told

    def _command(self, name: str, *flags: str) -> list[str | Path]:
        return self._command_on(self._workers[0], name, *flags)

    def _command_on(self, worker: _Worker, name: str, *flags: str) -> list[str | Path]:
        # containerd looks for its shim on PATH, kube-proxy for nft.
        folders = [*{str(path.parent) for path in self.binaries.values()}, "/usr/sbin", "/sbin"]
        path = os.pathsep.join([*folders, os.environ.get("PATH", "/usr/bin:/bin")])
        told = [f"PATH={path}", *super()._command(name, *flags)]
        return self._entering(worker, "env", "-u", "NOTIFY_SOCKET", *told)

    def _run_on(self, worker: _Worker, name: str, *flags: str) -> None:
        self._start(worker.named(name), self._command_on(worker, name, *flags))

    @staticmethod
    def _entering(worker: _Worker, *command: str | Path) -> list[str | Path]:
        return [*_SCRIPT, "enter", str(worker.pid), *command]

    def _keep_port(self) -> int:
        return 6443  # in a network of its own nobody else takes it

    def _tokens(self) -> str:
        lines = [f'{token},{user},{user},"{group}"\n' for user, (token, group) in self._users.items()]
        return super()._tokens() + "".join(lines)

    def _api_server_flags(self) -> tuple[str, ...]:
        return (
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={sandbox.SERVICES}",
            "--kubelet-preferred-address-types=InternalIP",
        )

    def _kubeconfig_of(self, user: str) -> Path:
        path = self.folder / f"kubeconfig-{user.replace(':', '-')}"
        path.write_text(self._kubeconfig_text(self._users[user][0]))
        return path

    @staticmethod
    def _configuration(worker: _Worker, name: str, value: Mapping[str, Any]) -> Path:
        path = worker.folder / f"{name}.json"
        path.write_text(json.dumps(value))
        return path


class Given(Cluster):
    """A cluster that runs already, and has the images that `images.py` builds, for instance kind's."""

    def __init__(self, kubeconfig: Path) -> None:
        super().__init__({})
        self._given = kubeconfig
        self._url = ""

    @property
    def kubeconfig(self) -> Path:
        return self._given

    @property
    def url(self) -> str:
        return self._url

    def _start_parts(self) -> None:
        """Read where it is and how to get in: by a token or a client certificate, as kind's."""
        shown = self.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json").stdout
        view = json.loads(shown)
        cluster, user = view["clusters"][0]["cluster"], view["users"][0]["user"]
        self._url = cluster["server"]
        self._certificates.mkdir()
        self.ca_file.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        self.admin_token = user.get("token", "")
        if "client-certificate-data" in user:
            pair = base64.b64decode(user["client-certificate-data"])
            pair += base64.b64decode(user["client-key-data"])
            identity = self._certificates / "client.pem"
            identity.touch(mode=0o600)
            identity.write_bytes(pair)
            self._trusted().load_cert_chain(identity)
        self.kubectl("get", "--raw", "/readyz")

    def load(self, image: images.Image) -> None:
        """Do nothing: whoever gave the cluster has loaded it."""


def _manifests(name: str, **values: str) -> str:
    text = (HERE / name).read_text()
    for key, value in values.items():
        text = text.replace(f"${key}", value)
    return text


def _cni(pods: str) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,  # a pod may be answered by itself through its Service
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


def _kubelet(worker: _Worker) -> dict[str, Any]:
    # What is full or lacking outside is not this node's affair: it lives for some minutes.
    none = dict.fromkeys(("nodefs.available", "nodefs.inodesFree", "imagefs.available"), "0%")
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": worker.address,
        # Only its own pods reach it; so kubectl logs and exec need no certificates.
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "protectKernelDefaults": True,  # so it changes no setting of the machine
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(worker.folder / "resolv.conf"),
        "syncFrequency": "10s",  # so long, at most, until a changed Secret is in its pods' files
        "evictionHard": {"memory.available": "50Mi", **none},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }


def _proxy(worker: _Worker, kubeconfig: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "nftables": {"minSyncPeriod": "100ms"},  # a Service that just got its pods answers sooner
        "hostnameOverride": worker.name,
        "clusterCIDR": sandbox.PODS,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "conntrack": {"maxPerCore": 0},  # a setting of the whole machine
    }
