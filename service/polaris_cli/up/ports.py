"""Where a part listens: by default on the loopback, at a port that it keeps from one start to the next."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Listen:
    """Where a server listens. In a container: on all addresses, at the port that everybody expects."""

    host: str = LOOPBACK
    port: int | None = None
    """None: one that is free, and kept while it is."""

    def chosen(self, file: Path) -> int:
        """Return the port for a start now, which `file` names from then on."""
        if self.port is None:
            return remembered(file)
        file.write_text(f"{self.port}\n")
        return self.port

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host == LOOPBACK


LOCAL = Listen()


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this port now."""
    with socket.socket() as probe:
        # As servers do, or connections that ended a moment ago would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def any_free() -> int:
    """Return a port that is free now; somebody may take it before its server listens."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def listens(pid: int, port: int) -> bool:
    """Tell whether this process is the one that listens there: another may have come first."""
    with suppress(psutil.Error):
        for connection in psutil.Process(pid).net_connections("tcp4"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port:
                return True
    return False


def remembered(file: Path) -> int:
    """Return the port that `file` names while it is free, else a new one, written there."""
    with suppress(FileNotFoundError, ValueError):
        port = int(file.read_text())
        if is_free(port):
            return port
    port = any_free()
    file.write_text(f"{port}\n")
    return port
