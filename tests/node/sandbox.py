"""Namespaces and cgroups of their own for a node: what is run in them leaves the machine as it was.

Run as a program, by the leash (see `kube.leash`), it needs nothing but Python and Linux:

`sandbox.py hold NAME FOLDER NUMBER [FIRST]` makes control groups named NAME and network, mount, PID and
cgroup namespaces, in which FOLDER stands for /var/lib and /var/log, and stays as their first process until
it is killed; then Linux kills all others. Its PID is in FOLDER/pid once everything is there. NUMBER is the
node's, from 1 on: its addresses follow from it. FIRST is the PID of the first node's sandbox, for one of the
others: its network is tied to that one's, and to nothing else.
`sandbox.py enter PID COMMAND…` runs a command in the namespaces and control groups of that process.
`sandbox.py remove NAME` kills what is left in these control groups, and removes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PODS = "10.244.0.0/16"
"""The addresses of all pods."""

_NEWNS, _NEWCGROUP, _NEWPID, _NEWNET = 0x00020000, 0x02000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG = 1
_REMOVE_SECONDS = 30.0

# What the kubelet would set for the whole machine: in the sandbox it finds them set.
_KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


SERVICES = "10.96.0.0/16"
"""The addresses of all Services."""


def address_of(number: int) -> str:
    """A node's own address, in its own network: no other part of the machine reaches it."""
    return f"10.240.0.{number}"


def pods_of(number: int) -> str:
    """The addresses of the pods on a node."""
    return f"10.244.{number}.0/24"


def _libc(call: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


# Control groups


def hierarchies() -> dict[Path, str]:
    """Where each hierarchy of cgroup v1 is mounted, and the options (its controllers) that mount it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    general = {"rw", "ro", "relatime", "nosuid", "nodev", "noexec"}
    return {
        Path(where): ",".join(option for option in options.split(",") if option not in general)
        for _, where, kind, options, *_ in mounts
        if kind == "cgroup"
    }


def _make_cgroups(name: str) -> None:
    for hierarchy in hierarchies():
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):  # a new group has none, and then takes no process
            if (hierarchy / file).exists():
                (group / file).write_text((hierarchy / file).read_text())


def _join(names: dict[Path, str]) -> None:
    for hierarchy, name in names.items():
        (hierarchy / name.lstrip("/") / "cgroup.procs").write_text("0")


def _groups(name: str) -> Iterator[Path]:
    """The control groups of that name and all below, the deepest first."""
    for hierarchy in hierarchies():
        yield from sorted((hierarchy / name).glob("**/"), reverse=True)


def remove(name: str) -> None:
    """Kill what is in the control groups of that name, and remove them."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while groups := list(_groups(name)):
        for group in groups:
            with contextlib.suppress(OSError):
                for pid in (group / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                group.rmdir()
        if time.monotonic() > deadline:
            raise OSError(f"these control groups are still in use: {', '.join(map(str, groups))}")
        time.sleep(0.02)


# Holding the namespaces


def hold(name: str, folder: Path, number: int, first: int | None = None) -> int:
    """Make the sandbox and stay in it; returns only when it can't be made, or its first process ends."""
    mounts = hierarchies()
    _make_cgroups(name)
    _join(dict.fromkeys(mounts, name))
    with contextlib.ExitStack() as opened:
        # Opened here: in the new namespaces nobody else has a PID.
        network = opened.enter_context(network_of(first).open()).fileno() if first else None
        _libc("unshare", _NEWNS | _NEWCGROUP | _NEWPID | _NEWNET)
        return _fork_and_wait(lambda: _be_first(mounts, folder, number, network))


def _be_first(mounts: dict[Path, str], folder: Path, number: int, first_network: int | None) -> None:
    pid = str(Path("/proc/self").readlink())  # still the machine's /proc, with the PID that the machine knows
    _mount_own(mounts, folder)
    _make_network(number, first_network)
    (folder / "pid.part").write_text(pid)
    (folder / "pid.part").rename(folder / "pid")
    while True:  # whose parent has ended becomes a child of this one
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.2)


def _mount_own(hierarchies_outside: dict[Path, str], folder: Path) -> None:
    # Nothing that is mounted here reaches the machine; what kubelet and containerd mount reaches the pods.
    _run("mount", "--make-rprivate", "/")
    _run("mount", "--make-rshared", "/")
    _run("mount", "-t", "proc", "proc", "/proc")
    _run("mount", "-t", "sysfs", "sysfs", "/sys")
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/sys/fs/cgroup")
    for where, options in hierarchies_outside.items():
        where.mkdir()
        _run("mount", "-t", "cgroup", "-o", options, "cgroup", where)
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for place in ("lib", "log"):
        (folder / place).mkdir()
        _run("mount", "--bind", folder / place, f"/var/{place}")
    for setting, value in _KERNEL_SETTINGS.items():
        file = folder / "settings" / setting
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
        _run("mount", "--bind", file, f"/proc/sys/{setting}")


def _make_network(number: int, first_network: int | None) -> None:
    _run("ip", "link", "set", "lo", "up")
    if first_network is None:
        # Both ends stay here: an interface to carry the address.
        _run("ip", "link", "add", "node0", "type", "veth", "peer", "name", "node1")
        _run("ip", "link", "set", "node1", "up")
    else:
        peer = f"node{number}"
        there = Path(f"/proc/self/fd/{first_network}")
        pair = ("node0", "type", "veth", "peer", "name", peer, "netns", there)
        _run("ip", "link", "add", *pair, keep=[first_network])
        with in_network(there):
            # It has no address: the first node answers there for the one that it has.
            _run("ip", "link", "set", peer, "up")
            _run("ip", "route", "add", f"{address_of(number)}/32", "dev", peer, "src", address_of(1))
            _run("ip", "route", "add", pods_of(number), "via", address_of(number), "dev", peer)
    _run("ip", "address", "add", f"{address_of(number)}/24", "dev", "node0")
    _run("ip", "link", "set", "node0", "up")
    if first_network is not None:
        _run("ip", "route", "add", pods_of(1), "via", address_of(1))
    # What leaves for a Service is given a pod's address on the way; without any route it would not leave.
    _run("ip", "route", "add", SERVICES, "dev", "node0")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    # Or what a Service's pod answers to a pod on the same bridge would not pass the rules of kube-proxy.
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("1")


def _run(*command: str | Path, keep: Sequence[int] = ()) -> None:
    subprocess.run(command, check=True, pass_fds=keep)


# Entering them


def enter(pid: int, command: Sequence[str]) -> int:
    """Run a command in the sandbox of that process, to its end; its exit code."""
    inside = Path(f"/proc/{pid}/cgroup").read_text()
    # Lines like "4:memory:/name"; options of the mounts are the same names.
    paths: dict[str, str] = dict(re.findall(r"^\d+:([^:]*):(.*)$", inside, re.MULTILINE))
    _join({where: paths[options] for where, options in hierarchies().items() if options in paths})
    for kind in ("cgroup", "net", "pid", "mnt"):
        with Path(f"/proc/{pid}/ns/{kind}").open() as namespace:
            _libc("setns", namespace.fileno(), 0)
    return _fork_and_wait(lambda: os.execvp(command[0], list(command)))  # noqa: S606 - what it is for


def network_of(pid: int) -> Path:
    """The file that stands for the network namespace of a process."""
    return Path(f"/proc/{pid}/ns/net")


@contextlib.contextmanager
def in_network(namespace: Path) -> Iterator[None]:
    """This thread, and what it starts, use the network of that namespace meanwhile."""
    with Path("/proc/thread-self/ns/net").open() as before, namespace.open() as wanted:
        _libc("setns", wanted.fileno(), _NEWNET)
        try:
            yield
        finally:
            _libc("setns", before.fileno(), _NEWNET)


# Forking: a PID namespace begins with the children of who made or entered it.


def _fork_and_wait(run: Callable[[], None]) -> int:
    parent_gone, alive = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(alive)
        _child(run, parent_gone)
    os.close(parent_gone)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _child(run: Callable[[], None], parent_gone: int) -> None:
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores, and exec would keep
        _libc("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent's PID can't be seen from here; that its end of the pipe was closed can.
        os.set_blocking(parent_gone, False)
        with contextlib.suppress(BlockingIOError):
            os.read(parent_gone, 1)
            os._exit(1)
        run()
    except (OSError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr, flush=True)
    os._exit(127)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code."""
    match arguments:
        case ["hold", name, folder, number, *first]:
            return hold(name, Path(folder), int(number), int(first[0]) if first else None)
        case ["enter", pid, *command] if command:
            return enter(int(pid), command)
        case ["remove", name]:
            remove(name)
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
