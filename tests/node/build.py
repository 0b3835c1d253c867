"""Builds what a node runs: kubelet, kube-proxy, containerd, runc, CoreDNS and others; once, into the cache.

`python tests/node/build.py` builds what is missing, the control plane included, and says how long each took.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by its path: the packages of the tests are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from kube import build

HERE = Path(__file__).resolve().parent

RUNTIME = build.Module(
    HERE,
    {
        "containerd": "github.com/containerd/containerd/v2/cmd/containerd",
        "containerd-shim-runc-v2": "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        "ctr": "github.com/containerd/containerd/v2/cmd/ctr",
        "coredns": "polaris.dev/tests/node/coredns",
        "pause": "polaris.dev/tests/node/pause",
        "tools": "polaris.dev/tests/node/tools",
    },
    # Without them containerd looks for file systems that no machine of ours has.
    tags="no_btrfs no_devmapper no_zfs",
)
# runc enters namespaces in C, before Go's threads start, and filters system calls by libseccomp.
RUNC = build.Module(HERE, {"runc": "github.com/opencontainers/runc"}, tags="seccomp", cgo=True)


def binaries(tell: build.Say = build.say) -> dict[str, Path]:
    """The paths of all commands of a cluster with a node, built now where they are missing.

    Raises BuildError.
    """
    modules = (build.CONTROL_PLANE, build.NODE, RUNTIME, RUNC)
    return {
        name: path for module in modules for name, path in build.binaries(module=module, tell=tell).items()
    }


def main() -> int:
    """Build all of it; the exit code."""
    try:
        for path in binaries().values():
            build.say(str(path))
    except build.BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
