"""A way to the API server that can be made to answer badly, and that forwards everything else as it is.

Whoever goes this way asks by HTTP on the loopback; the real API server is asked by HTTPS, with the
caller's token.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from kube.cluster import Cluster


class Fault(Enum):
    """What every request meets."""

    INTERNAL = "500 to every request"
    UNAVAILABLE = "503 to every request"
    BUSY = "429 to every request"
    WRITES_FAIL = "500 to every write of a status"
    GONE = "410 to every watch"
    EXPIRED = "watches that begin with an error 410"
    SILENCE = "watches that stay open and say nothing any more"


_STATUS = {
    Fault.INTERNAL: 500,
    Fault.UNAVAILABLE: 503,
    Fault.BUSY: 429,
    Fault.WRITES_FAIL: 500,
    Fault.GONE: 410,
    Fault.EXPIRED: 200,
}
_REASON = {500: "InternalError", 503: "ServiceUnavailable", 429: "TooManyRequests", 410: "Expired"}
# Hop by hop, or said anew here.
_NOT_FORWARDED = ("connection", "transfer-encoding", "content-length", "host", "keep-alive")


class FaultyApi:
    """The way there; `address` is where it begins."""

    def __init__(self, cluster: Cluster) -> None:
        self._upstream = urlsplit(cluster.url)
        self._trust = ssl.create_default_context(cafile=str(cluster.ca_file))
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._watches: dict[_Handler, bool] = {}
        """Of each: whether it has fallen silent, for good."""
        self.refused = 0
        """Requests that met a fault."""
        way = self

        class Handler(_Handler):
            api = way

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        ).start()

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """End it; connections that are open are cut."""
        self._server.shutdown()
        self._server.server_close()
        self._cut()

    @contextmanager
    def answering(self, fault: Fault) -> Iterator[None]:
        """Let requests meet the fault meanwhile, those that are being answered too."""
        with self._lock:
            self._fault = fault
            if fault == Fault.SILENCE:
                self._watches = dict.fromkeys(self._watches, True)
        if fault in (Fault.INTERNAL, Fault.UNAVAILABLE, Fault.BUSY, Fault.GONE, Fault.EXPIRED):
            self._cut()
        try:
            yield
        finally:
            with self._lock:
                self._fault = None

    def kubeconfig(self, original: Path) -> Path:
        """Write a kubeconfig that leads this way, with the token of another; return its path."""
        config = yaml.safe_load(original.read_text())
        config["clusters"][0]["cluster"] = {"server": self.address}
        made = original.with_name(f"{original.name}-faulty")
        made.write_text(json.dumps(config))
        return made

    # For the handlers

    def meets(self, method: str, path: str, *, watch: bool) -> int | None:
        """Return the status that a request is refused with; None: it is forwarded."""
        with self._lock:
            fault = self._fault
            if fault is None or fault == Fault.SILENCE:
                return None
            if fault in (Fault.GONE, Fault.EXPIRED) and not watch:
                return None
            if fault == Fault.WRITES_FAIL and (method == "GET" or not path.endswith("/status")):
                return None
            self.refused += 1
            return _STATUS[fault]

    def connect(self) -> HTTPSConnection:
        """Return a connection to the real API server."""
        return HTTPSConnection(
            str(self._upstream.hostname), self._upstream.port, context=self._trust, timeout=600
        )

    def watching(self, handler: _Handler) -> None:
        """Remember a watch that begins; one that begins during silence is silent from the first."""
        with self._lock:
            self._watches[handler] = self._fault == Fault.SILENCE

    def silent(self, handler: _Handler) -> bool:
        """Whether nothing more comes through this watch."""
        with self._lock:
            return self._watches.get(handler, False)

    def ended(self, handler: _Handler) -> None:
        """Forget a watch."""
        with self._lock:
            self._watches.pop(handler, None)

    def _cut(self) -> None:
        with self._lock:
            watches = list(self._watches)
        for handler in watches:
            with suppress(OSError):
                handler.connection.shutdown(2)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FaultyApi

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        where = urlsplit(self.path)
        watch = parse_qs(where.query).get("watch", [""])[0] in ("1", "true", "True")
        status = self.api.meets(self.command, where.path, watch=watch)
        if status is not None:
            self._refuse(status)
            return
        connection = self.api.connect()
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _NOT_FORWARDED}
            connection.request(self.command, self.path, body or None, headers)
            self._answer(connection.getresponse(), watch=watch)
        except (OSError, HTTPException):
            self.close_connection = True  # As the API server's own end would be seen.
        finally:
            self.api.ended(self)
            connection.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815  http.server's names

    def _refuse(self, status: int) -> None:
        said: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": _REASON[status if status != 200 else 410],
            "message": "made to fail",
            "code": status if status != 200 else 410,
        }
        if status == 200:
            said = {"type": "ERROR", "object": said}
        text = json.dumps(said).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _answer(self, answer: HTTPResponse, *, watch: bool) -> None:
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _NOT_FORWARDED:
                self.send_header(name, value)
        if not watch:
            text = answer.read()
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self.api.watching(self)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while data := answer.read1(65536):
            if not self.api.silent(self):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        if not self.api.silent(self):
            self.wfile.write(b"0\r\n\r\n")
            return
        # The other end was never told that it is over.
        self.rfile.read(1)
        self.close_connection = True
