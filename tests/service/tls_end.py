"""A TLS end before PostgreSQL: the servers that come in wheels are built without OpenSSL."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator

_SSL_REQUEST = struct.pack(">II", 8, 80877103)


@contextlib.asynccontextmanager
async def tls_end(host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Yield the port of a server that speaks PostgreSQL's TLS negotiation, and plainly to `port`."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if await reader.readexactly(8) != _SSL_REQUEST:
                writer.close()
                return
            writer.write(b"S")
            await writer.start_tls(context)
            inner, outer = await asyncio.open_connection(host, port)
            await asyncio.gather(_pipe(reader, outer), _pipe(inner, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
