"""Whether this machine can run a node, and what has to be installed for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from kube import build
from node import images, sandbox

GIVEN = "POLARIS_TEST_KUBECONFIG"
"""The environment variable that names a cluster to use instead."""

# A program or file, and the Debian package that has it.
_PACKAGES: Mapping[str, str] = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    # By which the archive's signature is checked, in a Debian of any age.
    str(images.KEYRING): "debian-archive-keyring",
    "nft": "nftables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    # runc is built from C too.
    "gcc": "gcc",
    "pkg-config": "pkg-config",
    "/usr/include/seccomp.h": "libseccomp-dev",
    "/usr/include/stdio.h": "libc6-dev",
}
_CONTROLLERS = {"cpu", "cpuset", "memory", "pids"}
# What a node does to its network and mounts, tried once.
_TRIAL = """
set -e
ip link add trial0 type veth peer name trial1
ip link add trial2 type bridge
nft add table inet trial
test -e /proc/sys/net/bridge/bridge-nf-call-iptables || { echo "no bridge netfilter" >&2; exit 1; }
mount -t tmpfs tmpfs /mnt
mkdir /mnt/lower /mnt/upper /mnt/work /mnt/merged
mount -t overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/merged
"""


def why_not(tell: build.Say = build.say) -> str | None:
    """Why this machine can't run a node, in one sentence; None where it can.

    What is missing of Debian's packages is installed first, by root, where apt-get is.
    """
    return _who() or _install_missing(tell) or _kernel()


def _who() -> str | None:
    if sys.platform != "linux":
        return f"a node needs Linux, and this is {sys.platform}"
    if os.geteuid() != 0:
        return f"a node needs root for its namespaces (or {GIVEN} for a cluster that runs already)"
    return None


def missing_packages() -> list[str]:
    """The Debian packages that a node needs, and that are not installed."""
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return sorted(
        {package for what, package in _PACKAGES.items() if not shutil.which(what) and not _is_file(what)}
    )


def _is_file(what: str) -> bool:
    return what.startswith("/") and Path(what).is_file()


def _install_missing(tell: build.Say) -> str | None:
    missing = missing_packages()
    if not missing:
        return None
    if not shutil.which("apt-get"):
        return f"a node needs {', '.join(missing)} (Debian's names), and there is no apt-get to install them"
    tell(f"installing {', '.join(missing)} by apt-get")
    options = ["install", "--yes", "--no-install-recommends", "--quiet=2"]
    for command in (["update", "--quiet=2"], [*options, *missing]):
        try:
            build.run(
                ["apt-get", *command],
                "apt-get failed",
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            )
        except build.BuildError as error:
            return f"a node needs {', '.join(missing)}, and {' '.join(str(error).split())[-500:]}"
    return None


def _kernel() -> str | None:
    there = {controller for options in sandbox.hierarchies().values() for controller in options.split(",")}
    if lacking := _CONTROLLERS - there:
        return f"a node of the tests needs cgroup v1 with {', '.join(sorted(lacking))} (or {GIVEN})"
    own = ["unshare", "--mount", "--net", "--pid", "--cgroup", "--fork", "--kill-child"]
    tried = subprocess.run([*own, "sh", "-c", _TRIAL], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"a node needs what this kernel does not allow: {' '.join(tried.stderr.split())}"
    return None
