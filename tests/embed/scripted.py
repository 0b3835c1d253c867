"""A server that answers exactly what a test wants it to answer, rubbish too, and remembers what it got."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

HANG = None


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Reply = Callable[[Asked], bytes | None]


@dataclass
class Scripted:
    """`reply` is asked for the bytes of each answer; HANG is none at all. It may be changed at any time."""

    reply: Reply
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    port: int = 0
    """0: any free one."""
    _open: set[asyncio.Task[Any]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Scripted]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        try:
            while True:
                asked = await self._read(reader)
                answer = self.reply(asked)
                if answer is HANG:
                    await asyncio.Event().wait()
                writer.write(answer or b"")
                await writer.drain()
                if not (answer or b"").startswith(b"HTTP/1.1"):
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Asked:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Asked(method, path, headers, json.loads(body) if body else None)
        self.asked.append(request)
        return request


def http(status: int, body: bytes | str, kind: str = "application/json", **headers: str) -> bytes:
    """Return a whole HTTP answer."""
    content = body.encode() if isinstance(body, str) else body
    lines = [
        f"HTTP/1.1 {status} Said",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def ok(value: Any) -> bytes:
    """Return an answer of 200 with JSON, with NaN as Python writes it."""
    return http(200, json.dumps(value))
