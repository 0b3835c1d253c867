"""TLS before what speaks none here: PostgreSQL from a wheel, OpenBao on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator

from service.tls_end import tls_end
from tls.authority import Authority


class Front:
    """A TLS end in a thread. `show` changes its certificate for connections that come after."""

    def __init__(self, authority: Authority, name: str) -> None:
        self._context = self._listening = authority.serving(name)
        self._listening.sni_callback = self._hand_over
        self.port = 0
        self.taken = 0
        """Connections whose handshake began."""

    def show(self, authority: Authority, name: str = "localhost") -> None:
        self._context = authority.serving(name)

    def _hand_over(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        self.taken += 1
        connection.context = self._context

    async def serve(self, host: str, port: int, negotiated: bool, ready: threading.Event) -> None:
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        async with tls_end(host, port, self._listening, negotiated=negotiated) as self.port:
            ready.set()
            await self._ended.wait()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)


@contextlib.contextmanager
def fronted(
    host: str, port: int, authority: Authority, *, name: str = "localhost", negotiated: bool = True
) -> Iterator[Front]:
    """Serve before `port`; `negotiated`: TLS is asked for first, as PostgreSQL has it."""
    front, ready = Front(authority, name), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(front.serve(host, port, negotiated, ready)))
    thread.start()
    try:
        assert ready.wait(60)
        yield front
    finally:
        front.end()
        thread.join()
