"""One way to serve an application over HTTP, for the service, the worker's probes and the embedder."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

import uvicorn

from polaris.telemetry import logger
from polaris_service.certificate import Certificate

# Below the 60 s that a pod is given to end.
_GRACE_SECONDS = 25

Application: TypeAlias = Callable[..., Awaitable[Any]]

_log = logger(__name__)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes any free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(1024)
    except OSError:
        bound.close()
        raise
    return bound


def _made(context: ssl.SSLContext) -> Callable[..., ssl.SSLContext]:
    return lambda _config, _default: context


def serve(
    app: Application,
    host: str,
    port: int,
    *,
    certificate: Certificate | None = None,
    grace_seconds: int = _GRACE_SECONDS,
) -> None:
    """Serve until SIGTERM or SIGINT; what is in flight is finished first. HTTPS with a certificate.

    Raises InvalidInput where the certificate's files hold none.
    """
    with ExitStack() as stack:
        tls = stack.enter_context(certificate.followed()) if certificate else None
        bound = stack.enter_context(listening(host, port))
        _log.info("listening", host=host, port=bound.getsockname()[1], tls=tls is not None)
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            log_config=None,
            access_log=False,
            server_header=False,
            # Who stands before us speaks for nobody: no address of a caller is used or logged.
            proxy_headers=False,
            timeout_graceful_shutdown=grace_seconds,
            ssl_context_factory=None if tls is None else _made(tls),
        )
        uvicorn.Server(config).run(sockets=[bound])
