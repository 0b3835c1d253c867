"""A load generator for machines without wrk: `python -m bench.http_loop < JSON`, in its own process.

Requests are made before the clock starts, sockets are raw, and of an answer only the status and the
length are read: some 20 µs a request, where the service takes more than 500.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.timing import LoadError, Timing


@dataclass
class _Connection:
    socket: socket.socket
    begun: float = 0.0
    received: bytes = b""


def prepared(host: str, path: str, bodies: Path) -> list[bytes]:
    """Return the requests of a file of bodies, ready to be sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return [
        f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        for body in bodies.read_text("ascii").splitlines()
    ]


def _complete(received: bytes) -> bool:
    """Whether a whole answer is there; raises LoadError where it is none that counts."""
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return False
    if not head.startswith(b"HTTP/1.1 200 "):
        raise LoadError(f"the service answered {received[:300].decode(errors='replace')}")
    length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
    return len(body) >= int(length)


def run(host: str, port: int, requests: list[bytes], connections: int, seconds: float) -> Timing:
    """Ask in a closed loop on each connection, and return how it went."""
    latencies: list[float] = []
    turn = 0
    with selectors.DefaultSelector() as selector:
        opened = [_Connection(socket.create_connection((host, port))) for _ in range(connections)]
        begun = time.perf_counter()
        try:
            for connection in opened:
                connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection.socket, selectors.EVENT_READ, connection)
                turn = _ask(connection, requests, turn)
            while (now := time.perf_counter()) - begun < seconds:
                for key, _ in selector.select(timeout=1):
                    connection = key.data
                    received = connection.socket.recv(262_144)
                    if not received:
                        raise LoadError("the service closed a connection")
                    connection.received += received
                    if _complete(connection.received):
                        latencies.append((time.perf_counter() - connection.begun) * 1000)
                        turn = _ask(connection, requests, turn)
        finally:
            for connection in opened:
                connection.socket.close()
    return Timing.of(latencies, now - begun)


def _ask(connection: _Connection, requests: list[bytes], turn: int) -> int:
    connection.received = b""
    connection.begun = time.perf_counter()
    connection.socket.sendall(requests[turn % len(requests)])
    return turn + 1


def main() -> None:
    """Run what stdin says; print the timing."""
    given = json.load(sys.stdin)
    host, port = given["host"], given["port"]
    requests = prepared(f"{host}:{port}", given["path"], Path(given["bodies"]))
    print(run(host, port, requests, given["connections"], given["seconds"]).text())


if __name__ == "__main__":
    main()
