"""A TLS end before PostgreSQL: the servers that come in wheels are built without OpenSSL."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator

_SSL_REQUEST = struct.pack(">II", 8, 80877103)


@contextlib.asynccontextmanager
async def tls_end(
    host: str, port: int, context: ssl.SSLContext, *, negotiated: bool = True
) -> AsyncIterator[int]:
    """Yield the port of a server that speaks TLS, and plainly to `port`.

    `negotiated`: it is asked for TLS first, as PostgreSQL is.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        async with contextlib.AsyncExitStack() as stack:
            # Cancelled by nobody but us, at the end; its stream would complain of it in the log.
            stack.enter_context(
                contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
            )
            stack.push_async_callback(_close, writer)
            if negotiated:
                if await reader.readexactly(8) != _SSL_REQUEST:
                    return
                writer.write(b"S")
                await writer.start_tls(context)
            inner, outer = await asyncio.open_connection(host, port)
            stack.push_async_callback(_close, outer)
            await asyncio.gather(_pipe(reader, outer), _pipe(inner, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=None if negotiated else context)
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


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            await writer.wait_closed()
