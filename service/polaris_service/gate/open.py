"""Everybody may all: for a service that only this machine reaches (the settings see to that).

Only this machine: but a browser on it runs the pages of strangers. A page may send requests to the
loopback, and with a name of its own that it lets point there (DNS rebinding) it may read the answers too.
So with this policy the service answers only what was asked of it by a name of the loopback, and by no
page from elsewhere. Probes and metrics are no exception: who asks them is on this machine as well, and
one rule without exceptions is easier to be sure of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from polaris.errors import Forbidden
from polaris_service.gate.access import Access, Caller
from polaris_service.problems import from_error

ANONYMOUS = Caller("anonymous")

_LOOPBACK = rb"(?i:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?"
_HOST = re.compile(_LOOPBACK)
_ORIGIN = re.compile(rb"https?://" + _LOOPBACK)
_OTHER_NAME = (
    "without authentication this service answers only where it is asked as localhost, 127.0.0.1 or [::1];"
    " for any other name set POLARIS_AUTH"
)
_OTHER_PAGE = (
    "without authentication this service answers no web page of another machine; for those set POLARIS_AUTH"
)


class OpenPolicy:
    """Asks nobody anything."""

    async def who(self, token: str | None) -> Caller:  # noqa: ARG002
        """Return the one caller that there is."""
        return ANONYMOUS

    async def may(self, caller: Caller, access: Access, namespace: str, name: str) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""


class LoopbackOnly:
    """ASGI middleware: refuses what was not asked of the loopback by its name, or by a foreign page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        refusal = refused(scope["headers"]) if scope["type"] == "http" else None
        await (from_error(refusal) if refusal else self._app)(scope, receive, send)


def refused(headers: Iterable[tuple[bytes, bytes]]) -> Forbidden | None:
    """Return why these headers are not those of a request from this machine's own; None where they are."""
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                return Forbidden(_OTHER_NAME)
        elif name == b"origin" and not _ORIGIN.fullmatch(value):
            return Forbidden(_OTHER_PAGE)
    return None if hosts == 1 else Forbidden(_OTHER_NAME)
