"""Servers that speak a generator's form over real HTTP, and do what they are told to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Form = Literal["openai", "gemini"]


@dataclass
class Behaviour:
    """What the server does with the next requests."""

    pieces: list[str] = field(default_factory=lambda: ["Debian is ", "free software ", "[1]."])
    status: int = 200
    error: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    finish: str | None = "stop"
    refused_parameters: tuple[str, ...] = ()
    raw: bytes | None = None
    """In place of the events."""
    hang: Literal["no", "before", "after"] = "no"
    """Send no head, or nothing after the pieces."""
    die: bool = False
    """Break the connection after the pieces."""


class Double:
    """A generator's server on a free port."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.behaviour = Behaviour()
        self.requests: list[dict[str, Any]] = []
        self.left = threading.Event()
        """Set when a client left while the server had more to say."""
        self.closing = threading.Event()
        self.url = ""


def event(form: Form, text: str, finish: str | None = None) -> dict[str, Any]:
    if form == "openai":
        delta = {"content": text} if text else {}
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}}
    if finish:
        candidate["finishReason"] = {"stop": "STOP", "length": "MAX_TOKENS"}.get(finish, finish)
    return {"candidates": [candidate]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: Double

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        double, behave = self.double, self.double.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        double.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
        if behave.hang == "before":
            double.closing.wait(30)
            return
        refused = next((name for name in behave.refused_parameters if name in body), None)
        if refused:
            self._json(400, {"error": {"message": f"no {refused}", "param": refused}})
        elif behave.status != 200:
            self._json(behave.status, {"error": behave.error})
        else:
            self._stream(behave)

    def _json(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, header in {"Content-Type": "application/json", **self.double.behaviour.headers}.items():
            self.send_header(name, header)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, behave: Behaviour) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", behave.headers.get("Content-Type", "text/event-stream"))
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            if behave.raw is not None:
                self._chunk(behave.raw)
            else:
                self._events(behave)
            if behave.die:
                return
            if behave.hang == "after":
                while not self.double.closing.wait(0.02):
                    self._chunk(b": still here\n\n")
            self._chunk(b"")
        except OSError:
            self.double.left.set()

    def _events(self, behave: Behaviour) -> None:
        form = self.double.form
        for piece in behave.pieces:
            self._data(json.dumps(event(form, piece)).encode())
        if behave.hang == "after" or behave.die:
            return
        if behave.finish:
            self._data(json.dumps(event(form, "", behave.finish)).encode())
        if form == "openai" and behave.finish:
            self._data(b"[DONE]")

    def _data(self, data: bytes) -> None:
        self._chunk(b"data: " + data + b"\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that left is part of the test."""


@contextmanager
def serving(form: Form) -> Iterator[Double]:
    """A double that answers while the context lasts."""
    double = Double(form)
    handler = type("Handler", (_Handler,), {"double": double})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        double.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield double
        finally:
            double.closing.set()
            server.shutdown()
            thread.join()


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    """Return when it is true; fail when it never is."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is waited for happens in a thread
            await asyncio.sleep(0.01)
