"""/livez, /readyz and /metrics, and what else is asked of the operator by HTTP, on threads of their own."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from polaris.telemetry import logger

log = logger(__name__)

_METRICS = make_wsgi_app()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  as its base calls it
        """Say in one line that a connection broke, or was never TLS: scanners and probes do that."""
        log.info("connection broke", error=type(sys.exception()).__name__)


class _Quiet(WSGIRequestHandler):
    # Seconds without a byte: whoever connects and says nothing holds a thread no longer than that.
    timeout = 30

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  as its base calls it
        """Say nothing: probes come every few seconds."""


Route = Callable[[dict[str, Any], Any], Iterable[bytes]]
"""A WSGI application."""


@contextlib.contextmanager
def serving(  # noqa: PLR0913  (what is served, and how)
    host: str,
    port: int,
    *,
    live: Callable[[], bool],
    ready: Callable[[], bool],
    routes: Mapping[str, Route] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """Serve while the context lasts; yields the port, which is a free one where 0 was asked for.

    With `tls` everything is served by HTTPS.
    """
    every: dict[str, Route] = {"/livez": _check(live), "/readyz": _check(ready), **(routes or {})}

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return every.get(environ["PATH_INFO"], _metrics)(environ, start_response)

    server = make_server(host, port, application, server_class=_Server, handler_class=_Quiet)
    if tls is not None:
        # The handshake is the connection's own thread's, so that a slow one keeps nobody waiting.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, name="probes", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def _metrics(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    found: Iterable[bytes] = _METRICS(environ, start_response)
    return found


def _check(check: Callable[[], bool]) -> Route:
    def answer(_environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        well = check()
        start_response(
            "200 OK" if well else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")]
        )
        return [b"ok\n" if well else b"not yet\n"]

    return answer
