"""What may stand between a client and PostgreSQL, as a thread on the loopback interface."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

_SSL_REQUEST = 80877103
_GSS_REQUEST = 80877104
_CLEARTEXT = b"R" + struct.pack("!ii", 8, 3)


@contextmanager
def _listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def accept() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def pooler(port: int) -> Iterator[int]:
    """Yield the port of what a pooler is to a client: another pid than that of who serves it."""

    def serve(client: socket.socket) -> None:
        with closing(client), closing(socket.create_connection(("127.0.0.1", port))) as server:
            forth = threading.Thread(target=_copy, args=(client, server), daemon=True)
            forth.start()
            _copy(server, client, _other_pid)
            forth.join()

    with _listening(serve) as mine:
        yield mine


def _copy(
    source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes] = lambda data: data
) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(change(data))
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def _other_pid(data: bytes) -> bytes:
    """Return the bytes with another pid in BackendKeyData, which comes between two known messages."""
    place = data.find(b"K" + struct.pack("!i", 12))
    if place < 0 or data[place + 13 : place + 14] != b"Z":
        return data
    return data[: place + 5] + struct.pack("!i", 7) + data[place + 9 :]


@contextmanager
def thief(heard: list[bytes]) -> Iterator[int]:
    """Yield the port of a server that asks for the password itself, and collects what it is told."""

    def serve(client: socket.socket) -> None:
        with closing(client):
            while len(head := client.recv(8)) == 8:
                size, code = struct.unpack("!ii", head)
                client.recv(size - 8) if size > 8 else None
                if code in (_SSL_REQUEST, _GSS_REQUEST):
                    client.sendall(b"N")
                    continue
                client.sendall(_CLEARTEXT)
                if data := client.recv(65536):
                    heard.append(data)
                return

    with _listening(serve) as mine:
        yield mine


@contextmanager
def address(leads_to: list[int]) -> Iterator[int]:
    """Yield a port that leads to the port that stands in a list: a Service whose endpoint moves."""

    def serve(client: socket.socket) -> None:
        with closing(client):
            try:
                server = socket.create_connection(("127.0.0.1", leads_to[0]))
            except OSError:
                return
            with closing(server):
                forth = threading.Thread(target=_copy, args=(client, server), daemon=True)
                forth.start()
                _copy(server, client)
                # A server that was killed resets the connection: who asked shall hear of it.
                for end in (client, server):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                forth.join()

    with _listening(serve) as mine:
        yield mine
