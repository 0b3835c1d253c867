"""What is written down of each request: a span, RED metrics, a line in the access log and the audit.

One plain ASGI middleware around all routes. No text of a document, no question and no token is in
any of it, and paths neither (a document's id may be a person's name): the route's template is.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polaris.telemetry import logger, span
from polaris_service.admission import SCOPE_KEY, Admission
from polaris_service.metrics import HttpMetrics

_access = logger("polaris_service.access")
_audit = logger("polaris_service.audit")

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._:/+=-]{1,128}$")
# Asked every few seconds by kubelets and Prometheus; they would bury the rest of the log.
_QUIET = ("/livez", "/readyz", "/metrics")
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})


_FLUSH_SECONDS = 2


async def flush_spans() -> None:
    """Send the spans that wait for their batch: a process that ends by a signal runs no exit handlers."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        await asyncio.to_thread(provider.force_flush, _FLUSH_SECONDS * 1000)


class Observed:
    """ASGI middleware; outermost, so that it sees what every other part answers."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and write down how it went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        scope["polaris.request_id"] = request_id
        outcome = _Outcome(send, request_id)
        begun = time.perf_counter()
        self._metrics.requests_in_flight.inc()
        with span(scope["method"], SpanKind.SERVER, _trace_headers(scope)) as current:
            try:
                await self._app(scope, receive, outcome)
            finally:
                self._metrics.requests_in_flight.dec()
                self._write_down(scope, outcome, time.perf_counter() - begun, _exemplar(current))
                if current.is_recording():
                    _finish(current, scope["method"], _route(scope), outcome.status)
                structlog.contextvars.unbind_contextvars("request_id")

    def _write_down(
        self, scope: Scope, outcome: _Outcome, seconds: float, exemplar: dict[str, str] | None
    ) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = _route(scope)
        self._metrics.requests.labels(method, route, str(outcome.status)).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds, exemplar)
        about = {
            "method": method,
            "route": route,
            "status": outcome.status,
            "ms": round(seconds * 1000, 1),
            "bytes": outcome.bytes,
            "complete": outcome.complete,
        }
        admission = scope.get(SCOPE_KEY)
        if isinstance(admission, Admission) and admission.access:
            # One line for both: 40 us that each request would pay twice.
            _audit.info("access", **_audited(admission, outcome.status), **about)
        else:
            log = _access.debug if route in _QUIET else _access.info
            log("request", **about)


def _exemplar(current: trace.Span) -> dict[str, str] | None:
    """Return by which trace a measurement is explained; None where the trace is not kept."""
    return {"trace_id": f"{current.get_span_context().trace_id:032x}"} if current.is_recording() else None


def _finish(current: trace.Span, method: str, route: str, status: int) -> None:
    current.update_name(f"{method} {route}")
    current.set_attributes(
        {"http.request.method": method, "http.route": route, "http.response.status_code": status}
    )
    if status >= 500:
        current.set_status(StatusCode.ERROR)


def _audited(admission: Admission, status: int) -> dict[str, str | None]:
    """Return who did what to which index, and whether they were let."""
    assert admission.access is not None  # noqa: S101  for the type checker
    return {
        "caller": admission.caller or None,
        "verb": admission.access.verb,
        "resource": f"polarisindexes/{admission.access.subresource}",
        "index": f"{admission.namespace}/{admission.name}",
        "outcome": _OUTCOMES.get(status, "allowed" if status < 500 else "failed"),
    }


_OUTCOMES = {0: "aborted", 401: "unauthenticated", 403: "denied"}


class _Outcome:
    """Stands between the app and the server, and sees what is sent."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id.encode()
        self.status = 0
        self.bytes = 0
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message.setdefault("headers", [])
            message["headers"] = [*message["headers"], (b"x-request-id", self._request_id)]
        elif message["type"] == "http.response.body":
            self.bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        await self._send(message)


def _trace_headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """Return the headers that carry a trace."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate", b"baggage")
    }


def _request_id(scope: Scope) -> str:
    """Return the caller's own id where it is a decent one; otherwise a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            if _REQUEST_ID.match(given):
                return str(given)
    return uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """Return the template of the route that answered; "unmatched" keeps strangers' paths out of labels."""
    return str(getattr(scope.get("route"), "path", None) or "unmatched")
