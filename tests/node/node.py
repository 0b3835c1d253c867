"""A real Kubernetes of one node on this machine, in namespaces and cgroups of its own (see `sandbox`).

The control plane is the one of `kube.cluster`; beside it run kube-scheduler, containerd with runc, kubelet,
kube-proxy and CoreDNS. Only what enters its network (`Node.network`) reaches it, and it reaches nobody.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kube import leash, tool
from kube.cluster import Cluster
from node import build, images, sandbox

HERE = Path(__file__).resolve().parent
NAME = "node-1"
POD_NETWORK = "10.244.1.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
DNS_ADDRESS = "10.96.0.10"
CNI_PLUGINS = Path("/usr/lib/cni")

PAUSE = "test.polaris.dev/pause:1"
COREDNS = "test.polaris.dev/coredns:1"
TOOLS = "test.polaris.dev/tools:1"
"""One program, `tools/main.go`: an HTTP server, and clients for HTTP and DNS."""

_SCRIPT = [sys.executable, "-I", "-S", str(HERE / "sandbox.py")]
_READY_SECONDS = 120.0
_USERS = {
    f"system:node:{NAME}": "system:nodes",
    "system:kube-scheduler": "",
    "system:kube-proxy": "",
}


class Node(Cluster):
    """A cluster whose Deployments run: `with Node() as node:`. As root only; see `machine.why_not`."""

    address = sandbox.ADDRESS
    controllers = ("*",)

    start_seconds = 0.0

    def _find_binaries(self) -> Mapping[str, Path]:
        return build.binaries()

    def _start_parts(self) -> None:
        begun = time.monotonic()
        self._user_tokens = {user: secrets.token_urlsafe(16) for user in _USERS}
        (self.folder / "tokens.csv").write_text(self._tokens())
        self._start_sandbox()
        self._start_containerd()
        super()._start_parts()
        self._start_scheduler()
        self._import_own_images()
        self._start_kubelet()
        self._start_proxy()
        self.apply(_manifests("dns.yaml", address=DNS_ADDRESS, image=COREDNS))
        self._wait_for("kubelet", self._node_is_ready)
        self.kubectl("rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout=120s")
        self.start_seconds = time.monotonic() - begun

    def _start_sandbox(self) -> None:
        name = self.folder.name
        with self.log("sandbox").open("ab") as log:
            self._processes["sandbox"] = leash.start(
                [*_SCRIPT, "hold", name, self.folder],
                log,
                remove_if_orphaned=self.folder,
                afterwards=[*_SCRIPT, "remove", name],
            )
        ready = self.folder / "pid"
        self._wait_for("sandbox", ready.exists)
        self._pid = int(ready.read_text())

    def _start_containerd(self) -> None:
        plugins = "io.containerd.cri.v1"
        (self.folder / "cni").mkdir()
        (self.folder / "cni" / "10-bridge.conflist").write_text(json.dumps(_cni()))
        config = f"""
version = 3
[plugins."{plugins}.images".pinned_images]
sandbox = "{PAUSE}"
[plugins."{plugins}.runtime"]
restrict_oom_score_adj = true  # to lower it takes a right that root may not have here
[plugins."{plugins}.runtime".cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{self.folder / "cni"}"
[plugins."{plugins}.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."{plugins}.runtime".containerd.runtimes.runc.options]
BinaryName = "{self.binaries["runc"]}"
SystemdCgroup = false
"""
        (self.folder / "containerd.toml").write_text(config)
        self._run("containerd", f"--config={self.folder / 'containerd.toml'}")

    def _start_scheduler(self) -> None:
        self._run(
            "kube-scheduler",
            f"--kubeconfig={self._kubeconfig_of('system:kube-scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
        )

    def _start_kubelet(self) -> None:
        (self.folder / "resolv.conf").write_text("")  # there is nobody outside to ask
        self._run(
            "kubelet",
            f"--config={self._configuration('kubelet', _kubelet(self.folder))}",
            f"--kubeconfig={self._kubeconfig_of(f'system:node:{NAME}')}",
            f"--hostname-override={NAME}",
            f"--node-ip={self.address}",
        )

    def _start_proxy(self) -> None:
        config = _proxy(self._kubeconfig_of("system:kube-proxy"))
        self._run("kube-proxy", f"--config={self._configuration('kube-proxy', config)}")

    def _import_own_images(self) -> None:
        self._wait_for("containerd", lambda: self._ctr("version", check=False).returncode == 0)
        for image, program in {PAUSE: "pause", COREDNS: "coredns", TOOLS: "tools"}.items():
            archive = self.folder / f"{program}.tar"
            files = {f"/bin/{program}": self.binaries[program]}
            self.load(images.by_hand(image, files, [f"/bin/{program}"], archive))
            archive.unlink()

    def _node_is_ready(self) -> bool:
        answer = self.api("GET", f"/api/v1/nodes/{NAME}")
        conditions = answer.json()["status"].get("conditions", []) if answer.is_success else []
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    # Ways in

    def network(self) -> AbstractContextManager[None]:
        """The node's network, in which it, its pods and its Services have their addresses."""
        return sandbox.in_network(sandbox.network_of(self._pid))

    def load(self, image: images.Image) -> None:
        """Give an image to the node; pods name it with `imagePullPolicy: Never` or `IfNotPresent`."""
        self._ctr("--namespace=k8s.io", "images", "import", "--local", str(image.archive))

    def inside(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the node, as root; raises ToolError."""
        return tool.run([*_SCRIPT, "enter", str(self._pid), *command], os.environ, check=check)

    def _ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.inside(self.binaries["ctr"], *arguments, check=check)

    # How its parts are told

    def _command(self, name: str, *flags: str) -> list[str | Path]:
        # containerd looks for its shim on PATH, kube-proxy for nft.
        folders = [*{str(path.parent) for path in self.binaries.values()}, "/usr/sbin", "/sbin"]
        path = os.pathsep.join([*folders, os.environ.get("PATH", "/usr/bin:/bin")])
        told = [f"PATH={path}", *super()._command(name, *flags)]
        return [*_SCRIPT, "enter", str(self._pid), "env", "-u", "NOTIFY_SOCKET", *told]

    def _keep_port(self) -> int:
        return 6443  # in a network of its own nobody else takes it

    def _tokens(self) -> str:
        users = getattr(self, "_user_tokens", {})
        lines = [f'{token},{user},{user},"{_USERS[user]}"\n' for user, token in users.items()]
        return super()._tokens() + "".join(lines)

    def _api_server_flags(self) -> tuple[str, ...]:
        return (
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--kubelet-preferred-address-types=InternalIP",
        )

    def _kubeconfig_of(self, user: str) -> Path:
        path = self.folder / f"kubeconfig-{user.replace(':', '-')}"
        path.write_text(self._kubeconfig_text(self._user_tokens[user]))
        return path

    def _configuration(self, name: str, value: Mapping[str, Any]) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(value))
        return path


class Given(Cluster):
    """A cluster that runs already, and has the images that `images.py` builds, for instance kind's."""

    def __init__(self, kubeconfig: Path) -> None:
        super().__init__({})
        self._given = kubeconfig

    @property
    def kubeconfig(self) -> Path:
        return self._given

    def _start_parts(self) -> None:
        self.kubectl("get", "--raw", "/readyz")

    def load(self, image: images.Image) -> None:
        """Do nothing: whoever gave the cluster has loaded it."""


def _manifests(name: str, **values: str) -> str:
    text = (HERE / name).read_text()
    for key, value in values.items():
        text = text.replace(f"${key}", value)
    return text


def _cni() -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,  # a pod may be answered by itself through its Service
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": POD_NETWORK}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


def _kubelet(folder: Path) -> dict[str, Any]:
    # What is full or lacking outside is not this node's affair: it lives for some minutes.
    none = dict.fromkeys(("nodefs.available", "nodefs.inodesFree", "imagefs.available"), "0%")
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": sandbox.ADDRESS,
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
        "resolvConf": str(folder / "resolv.conf"),
        "syncFrequency": "10s",  # so long, at most, until a changed Secret is in its pods' files
        "evictionHard": {"memory.available": "50Mi", **none},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }


def _proxy(kubeconfig: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "nftables": {"minSyncPeriod": "100ms"},  # a Service that just got its pods answers sooner
        "hostnameOverride": NAME,
        "clusterCIDR": POD_NETWORK,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "conntrack": {"maxPerCore": 0},  # a setting of the whole machine
    }
