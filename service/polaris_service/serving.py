"""One way to serve an application over HTTP, for the service, the worker's probes and the embedder."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any, TypeAlias

import uvicorn

from polaris.certificate import Certificate
from polaris.telemetry import logger

# Together, and with the sleep before them, below the 30 or 60 s that a pod is given to end.
_GRACE_SECONDS = 20
# How long a connection is kept that nobody uses: longer than the clients and proxies that we know keep theirs
# (5 to 90 s). Who closes first is never surprised by a request on its way.
_KEEP_ALIVE_SECONDS = 120
# How long clients have to hear, with an answer, that this process ends.
_FAREWELL_SECONDS = 3.0

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
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=grace_seconds,
            ssl_context_factory=None if tls is None else _made(tls),
        )
        _Server(config).run(sockets=[bound])


class _Server(uvicorn.Server):
    """Told to end by SIGTERM, it says so in each answer, and closes what is then still open after a while.

    To close idle connections at once would lose the requests that are on their way on them just then: a
    client can't know whether they were begun. With `Connection: close` it turns to another process by itself.
    """

    _farewell = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take note of what told us; SIGINT comes from a person, who need not wait."""
        self._farewell = sig == signal.SIGTERM
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say farewell, then end as any server: requests in flight are finished."""
        state = self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        until = time.monotonic() + _FAREWELL_SECONDS
        # The set is uvicorn's, and tells nobody when it changes.
        while self._farewell and state.connections and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)
