"""/livez, /readyz and /metrics, on a thread of their own."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

_METRICS = make_wsgi_app()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  as its base calls it
        """Say nothing: probes come every few seconds."""


@contextlib.contextmanager
def serving(host: str, port: int, *, live: Callable[[], bool], ready: Callable[[], bool]) -> Iterator[int]:
    """Serve while the context lasts; yields the port, which is a free one where 0 was asked for."""
    checks = {"/livez": live, "/readyz": ready}

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        check = checks.get(environ["PATH_INFO"])
        if check is None:
            metrics: Iterable[bytes] = _METRICS(environ, start_response)
            return metrics
        well = check()
        start_response(
            "200 OK" if well else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")]
        )
        return [b"ok\n" if well else b"not yet\n"]

    server = make_server(host, port, application, server_class=_Server, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="probes", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
