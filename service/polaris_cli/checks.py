"""What `polaris doctor` looks at: each check is one sentence, and where something is missing, what to do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from polaris.settings import ClientSettings, UpSettings, WorkerSettings

_DISTRIBUTION = "polaris-rag"
_DISK_NEEDED = 2 * 2**30
_MEMORY_NEEDED = 1.2 * 2**30
_OLDEST_PYTHON = (3, 11)
_SECRET_KEYS = {"username", "password", "host", "port", "dbname", "sslmode"}
_CONNECT_SECONDS = 2.0


class Verdict(StrEnum):
    """What a check came to."""

    OK = "ok"
    NOTE = "note"
    """Not there, and only some need it."""
    MISSING = "missing"
    """`polaris up` will not work so."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    about: str
    verdict: Verdict
    sentence: str
    remedy: str = ""


def all_checks(up: UpSettings, worker: WorkerSettings, client: ClientSettings) -> Iterator[Finding]:
    """Yield what each check finds, quick ones first."""
    yield python()
    yield from packages()
    yield _if_it_can(memory)
    runs = running(up.data)
    yield data(up.data, runs)
    yield _if_it_can(lambda: port(up.host, up.port, runs))
    yield _if_it_can(lambda: service(client.server))
    yield kubeconfig()
    yield database_secret(worker.database_secret)


def _if_it_can(check: Callable[[], Finding]) -> Finding:
    """Run a check that needs a package; where that is missing, the rest is looked at all the same."""
    try:
        return check()
    except ModuleNotFoundError as error:
        return Finding("packages", Verdict.NOTE, f"without {error.name} not everything was looked at")


def python() -> Finding:
    """Whether this Python is new enough, and on a system that the wheels are made for."""
    version = platform.python_version()
    on = f"{platform.system()} {platform.machine()}"
    if sys.version_info < _OLDEST_PYTHON:
        remedy = "install Python 3.11 or newer, and make the environment anew with it"
        return Finding("python", Verdict.MISSING, f"Python {version} is too old", remedy)
    return Finding("python", Verdict.OK, f"Python {version} on {on}")


def packages() -> Iterator[Finding]:
    """Whether the packages of each extra are installed."""
    try:
        required = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        sentence = f"the distribution {_DISTRIBUTION} is not installed, only its files are here"
        yield Finding("packages", Verdict.MISSING, sentence, f"pip install '{_DISTRIBUTION}[local]'")
        return
    extras: dict[str, list[str]] = {}
    for requirement in required:
        if named := re.search(r"extra == ['\"]([-\w]+)", requirement):
            extras.setdefault(named[1], []).append(re.split(r"[^-\w.]", requirement)[0])
    for extra, names in sorted(extras.items()):
        yield _extra(extra, names)


def _extra(extra: str, names: list[str]) -> Finding:
    missing = [name for name in names if name != _DISTRIBUTION and not _installed(name)]
    if missing:
        remedy = f"pip install '{_DISTRIBUTION}[{extra}]'"
        return Finding(f"packages: {extra}", Verdict.MISSING, f"not installed: {', '.join(missing)}", remedy)
    return Finding(f"packages: {extra}", Verdict.OK, "all installed")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def memory() -> Finding:
    """Whether there is memory for all parts."""
    import psutil

    available = psutil.virtual_memory().available
    shown = f"{available / 2**30:.1f} GiB of memory are free"
    if available < _MEMORY_NEEDED:
        return Finding(
            "memory", Verdict.NOTE, f"{shown}; 'polaris up' takes up to 1.2 GiB", "close something"
        )
    return Finding("memory", Verdict.OK, shown)


def running(folder: Path) -> int | None:
    """Return the pid of the `polaris up` that runs on this data folder; None: none does."""
    import fcntl

    with suppress(OSError), (folder / "up.lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            said = lock.read(32).strip()
            return int(said) if said.isdigit() else -1
    return None


def data(folder: Path, runs: int | None) -> Finding:
    """Whether the data folder, or its first parent that exists, can be written, and has space."""
    if runs is not None:
        return Finding("data", Verdict.OK, f"{folder} is in use by 'polaris up' (process {runs})")
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        remedy = "choose another folder with POLARIS_DATA or --data"
        return Finding("data", Verdict.MISSING, f"{place} can't be written by this user", remedy)
    free = shutil.disk_usage(place).free
    shown = f"{folder} can be written, {free / 2**30:.0f} GiB are free"
    if free < _DISK_NEEDED:
        return Finding("data", Verdict.MISSING, shown, "make space: 2 GiB are needed to begin with")
    return Finding("data", Verdict.OK, shown)


def port(host: str, number: int, runs: int | None) -> Finding:
    """Whether the service's port is free, or ours already."""
    if runs is not None:
        return Finding("port", Verdict.OK, f"port {number} is for the 'polaris up' that runs")
    if (problem := port_problem(host, number)) is not None:
        remedy = "stop what listens there, or choose another port with POLARIS_PORT or --port"
        return Finding("port", Verdict.MISSING, problem, remedy)
    return Finding("port", Verdict.OK, f"port {number} of {host} is free")


def port_problem(host: str, number: int) -> str | None:
    """Return why nothing could listen there now; None where something could."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except PermissionError:
            return f"port {number} of {host} is for privileged users only"
        except OSError as error:
            by = _listener(number)
            return f"port {number} of {host} is in use{by}" if by else f"{host}:{number}: {error.strerror}"
    return None


def _listener(number: int) -> str:
    """Return ` by NAME (process PID)` for who listens on a port, as far as we may know."""
    import psutil

    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and list(connection.laddr)[1:2] == [number]:
                if connection.pid is None:
                    return " by another user's process"
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""


def service(address: str) -> Finding:
    """Whether a service answers where client commands look for one."""
    import httpx

    try:
        answer = httpx.get(f"{address.rstrip('/')}/readyz", timeout=_CONNECT_SECONDS)
    except httpx.HTTPError:
        sentence = f"no service answers at {address}"
        return Finding("service", Verdict.NOTE, sentence, "polaris up, or POLARIS_SERVER for another address")
    if not answer.is_success:
        sentence = f"{address}/readyz answers {answer.status_code}"
        return Finding("service", Verdict.NOTE, sentence, "look at the service's log")
    return Finding("service", Verdict.OK, f"{address} is ready")


def kubeconfig() -> Finding:
    """Whether a cluster is configured, and its API server reachable; `polaris up` needs none."""
    path = Path((os.environ.get("KUBECONFIG") or "~/.kube/config").split(os.pathsep)[0]).expanduser()
    if not path.exists():
        remedy = "only for life in a cluster: set KUBECONFIG"
        return Finding("cluster", Verdict.NOTE, f"there is no kubeconfig at {path}", remedy)
    server = _api_server(path)
    if server is None:
        return Finding(
            "cluster", Verdict.NOTE, f"{path} names no current cluster", "kubectl config use-context"
        )
    if not _answers(server):
        return Finding(
            "cluster", Verdict.NOTE, f"{server}, of {path}, does not answer", "kubectl cluster-info"
        )
    return Finding("cluster", Verdict.OK, f"{server}, of {path}, answers")


def _api_server(path: Path) -> str | None:
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
        contexts = {item["name"]: item["context"] for item in config["contexts"]}
        clusters = {item["name"]: item["cluster"] for item in config["clusters"]}
        return str(clusters[contexts[config["current-context"]]["cluster"]]["server"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None


def _answers(address: str) -> bool:
    parts = urlsplit(address)
    default = 443 if parts.scheme == "https" else 80
    try:
        with socket.create_connection((parts.hostname or "", parts.port or default), _CONNECT_SECONDS):
            return True
    except OSError:
        return False


def database_secret(folder: str) -> Finding:
    """Whether the login of service and worker is there, and its server answers."""
    about = "database login"
    if not folder:
        remedy = "only for 'polaris serve' and 'polaris worker' on their own"
        return Finding(about, Verdict.NOTE, "POLARIS_DATABASE_SECRET is not set", remedy)
    try:
        present = {key: (Path(folder) / key).read_text("utf-8").strip() for key in _SECRET_KEYS}
    except OSError as error:
        sentence = f"{folder}: {error.strerror} ({Path(str(error.filename)).name})"
        return Finding(about, Verdict.MISSING, sentence, "mount the Secret that the PolarisDatabase names")
    where = f"{present['host']}:{present['port']}"
    if not _answers(f"tcp://{where}"):
        remedy = "start it, or look at the network between"
        return Finding(about, Verdict.MISSING, f"PostgreSQL at {where} does not answer", remedy)
    return Finding(about, Verdict.OK, f"PostgreSQL at {where} answers")
