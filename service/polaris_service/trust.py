"""Whose certificates we believe when we ask others over HTTPS: a file of authorities that is followed."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from polaris.errors import InvalidInput
from polaris.followed import LOOK_SECONDS, Followed, pem


def transport(ca_file: Path | None) -> httpx.AsyncBaseTransport | None:
    """Return a transport that believes the authorities of the file; None: httpx's own, the public ones."""
    return None if ca_file is None else Trusting(ca_file)


def authorities(paths: tuple[Path, ...]) -> ssl.SSLContext:
    """Return a client's context that believes the authorities of a PEM file, and nobody else.

    Raises OSError, and ValueError where the file holds no certificate.
    """
    try:
        return ssl.create_default_context(cadata=pem(paths[0].read_bytes()))
    except ssl.SSLError as error:
        raise ValueError(f"it holds no certificate in PEM: {error.reason or error}") from None


@dataclass(eq=False)
class _Connections:
    """Connections that were made with one version of the file."""

    pool: httpx.AsyncHTTPTransport
    users: int = 0
    """Requests whose answer is not read to its end."""
    retired: bool = False


class Trusting(httpx.AsyncBaseTransport):
    """Believes the authorities of a file, at most some seconds behind it. Belongs to one event loop.

    When the file changes, requests that come after have connections of their own; those that are under
    way go on, and their connections are closed behind the last of them. Raises httpx.ConnectError
    while the file was never right.
    """

    def __init__(self, ca_file: Path) -> None:
        self._followed = Followed(f"authorities {ca_file}", (ca_file,), authorities)
        self._looked = float("-inf")
        self._current: _Connections | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        connections = self._present()
        connections.users += 1
        try:
            answer = await connections.pool.handle_async_request(request)
        except BaseException:
            self._one_less(connections)
            raise
        assert isinstance(answer.stream, httpx.AsyncByteStream)  # noqa: S101  for the type checker
        answer.stream = _Watched(answer.stream, lambda: self._one_less(connections))
        return answer

    async def aclose(self) -> None:
        """Close all connections."""
        current, self._current = self._current, None
        if current is not None:
            await current.pool.aclose()
        await asyncio.gather(*self._closing)

    def _present(self) -> _Connections:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            if self._followed.look():
                self._swap(_Connections(httpx.AsyncHTTPTransport(verify=self._followed.present())))
        if self._current is None:
            self._looked = float("-inf")
            try:
                self._followed.present()
            except InvalidInput as error:
                raise httpx.ConnectError(str(error)) from None
            raise httpx.ConnectError("the connections are closed")
        return self._current

    def _swap(self, fresh: _Connections) -> None:
        before, self._current = self._current, fresh
        if before is not None:
            before.retired = True
            self._close_where_unused(before)

    def _one_less(self, connections: _Connections) -> None:
        connections.users -= 1
        self._close_where_unused(connections)

    def _close_where_unused(self, connections: _Connections) -> None:
        if connections.retired and not connections.users:
            closing = asyncio.get_running_loop().create_task(connections.pool.aclose())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


class _Watched(httpx.AsyncByteStream):
    """An answer's body that tells when nobody reads it any more."""

    def __init__(self, stream: httpx.AsyncByteStream, ended: Callable[[], None]) -> None:
        self._stream = stream
        self._ended: Callable[[], None] | None = ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece

    async def aclose(self) -> None:
        ended, self._ended = self._ended, None
        try:
            await self._stream.aclose()
        finally:
            if ended is not None:
                ended()
