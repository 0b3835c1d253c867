"""A node of our own: it comes up, and goes without a trace."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kube.cluster import ClusterError
from node import build, sandbox
from node.node import Node
from parts import processes

pytestmark = pytest.mark.node

START = """
import signal
from node.node import Node
# It may be ignored, where a script runs the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
node = Node(workers=2)
node.start()
print(node.folder, flush=True)
signal.pause()
"""


def traces(folder: Path) -> list[str]:
    """What is there of a node: processes, control groups, mounts, files and network interfaces."""
    found = psutil.process_iter(["cmdline"])
    commands = [" ".join(process.info["cmdline"] or []) for process in found]
    groups = [str(group) for group in groups_of(folder)]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    interfaces = [i for i in os.listdir("/sys/class/net") if i.startswith(("node", "cni", "veth"))]  # noqa: PTH208
    programs = [command for command in commands if str(folder) in command]
    return [*programs, *groups, *mounts, *interfaces, *([str(folder)] if folder.exists() else [])]


def groups_of(folder: Path) -> list[Path]:
    """The control groups of each of its machines."""
    return [group for hierarchy in sandbox.hierarchies() for group in hierarchy.glob(f"{folder.name}*")]


def settings() -> list[str]:
    return [Path("/proc/sys", name).read_text() for name in sandbox._KERNEL_SETTINGS]


def members(folder: Path) -> list[psutil.Process]:
    """All processes in the control groups of a node: those of its pods too."""
    files = [file for group in groups_of(folder) for file in group.rglob("cgroup.procs")]
    found = []
    for pid in {int(pid) for file in files for pid in file.read_text().split()}:
        with contextlib.suppress(psutil.NoSuchProcess):  # some live for a moment only
            found.append(psutil.Process(pid))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_after_stop_nothing_is_left(workers: int, report: Callable[[str], None]) -> None:
    before = settings()
    with Node(workers) as own:
        report(f"a cluster of {workers} started in {own.start_seconds:.1f} s")
        assert own.start_seconds < 60  # what issue and documentation promise; it takes a fifth of that
        folder = own.folder
        held = members(folder)
        assert len(held) >= 10
        assert len(traces(folder)) >= 10
    assert traces(folder) == []
    processes.wait(held)
    assert settings() == before


def test_a_start_that_fails_tells_the_end_of_the_log_and_leaves_nothing() -> None:
    class Broken(Node):
        def _find_binaries(self) -> dict[str, Path]:
            return build.binaries() | {"kubelet": Path("/bin/false")}

    own = Broken()
    with pytest.raises(ClusterError, match="kubelet ended with 1"):
        own.start()
    assert traces(own.folder) == []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_after_its_parent_was_ended_nothing_is_left(end: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen(
        [sys.executable, "-c", START],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    with parent:
        try:
            assert parent.stdout is not None
            folder = Path(parent.stdout.readline().strip())
            held = members(folder)
            leashes = [p for p in psutil.process_iter(["cmdline"]) if is_leash(p, folder)]
            assert len(held) >= 10
            assert leashes
        finally:
            parent.send_signal(end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                parent.wait(timeout=60)
            parent.kill()
    processes.wait([*held, *leashes])
    assert traces(folder) == []


def is_leash(process: psutil.Process, folder: Path) -> bool:
    command = " ".join(process.info["cmdline"] or [])
    return "leash.py" in command and str(folder) in command
