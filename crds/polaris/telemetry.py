"""Logs, metrics and traces, set up once by each program.

Logs are JSON lines on stderr (structlog), each with the trace that it belongs to. Metrics are
Prometheus'. Traces go out by OTLP where `OTEL_EXPORTER_OTLP_ENDPOINT` is set, and nowhere otherwise.
Neither ever holds a document's text, a question, a password or a token.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import orjson
import structlog
from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import polaris

_tracer = trace.get_tracer("polaris", polaris.__version__)
_PROPAGATOR = TraceContextTextMapPropagator()
_NO_SPAN = contextlib.nullcontext(trace.INVALID_SPAN)
_REDACTED = ("password", "token", "secret", "authorization", "api_key")


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what is named like a secret: the net beneath the rule that nobody logs one."""
    for key in event:
        if _is_secret(key):
            event[key] = "[redacted]"
    return event


@functools.lru_cache(maxsize=1024)  # The same few names again and again.
def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in _REDACTED)


def _trace_context(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _trace_context,
    _redact,
]


def _json(event: Any, default: Callable[[Any], Any]) -> str:
    try:
        return orjson.dumps(event, default).decode()
    except TypeError:  # a lone surrogate, a number of more than 64 bits, a key that is no text
        return json.dumps(event, default=default)


class _Straight:
    """A logger that writes finished lines where the handler writes, in turn with it.

    As with the library's handlers, a line that cannot be written is lost and fails nobody.
    """

    def __init__(self, handler: logging.StreamHandler[Any], name: str = "") -> None:
        self._handler = handler
        self.name = name

    def msg(self, line: str) -> None:
        self._handler.acquire()
        try:
            with contextlib.suppress(OSError, ValueError):
                self._handler.stream.write(f"{line}\n")
                self._handler.flush()
        finally:
            self._handler.release()

    debug = info = warning = error = critical = msg


def configure_logging(level: str = "info", *, plain: bool = False, straight: bool = False) -> None:
    """Send every log of this process, those of libraries too, to stderr.

    `plain` is for a person at a terminal; otherwise one JSON object a line. `straight` is for programs that
    write a line for each request: ours do not become records of the library (half of what a line costs),
    so handlers that somebody adds to its loggers do not see them.
    """
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if plain else structlog.processors.JSONRenderer(_json)
    )
    handler = logging.StreamHandler(sys.stderr)
    if straight:
        structlog.configure(
            processors=[*_SHARED, structlog.processors.format_exc_info, renderer],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=functools.partial(_Straight, handler),
            cache_logger_on_first_use=True,
        )
    else:
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                *_SHARED,
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "kubernetes", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.root.level))


def configure_tracing(service: str) -> None:
    """Export spans by OTLP where an endpoint is configured; otherwise leave tracing off."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    # Imported here: the exporter costs 20 MB that a process without an endpoint need not carry.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )

    ratio = float(os.environ.get("OTEL_TRACES_SAMPLER_ARG", "0.01"))
    provider = TracerProvider(
        resource=Resource.create({"service.name": service, "service.version": polaris.__version__}),
        sampler=ParentBased(TraceIdRatioBased(ratio)),
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def tracing() -> bool:
    """Return whether spans go anywhere."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


def span(
    name: str, kind: SpanKind = SpanKind.INTERNAL, carried: Mapping[str, str] | None = None
) -> AbstractContextManager[trace.Span]:
    """Return a context in which a span of this name is the current one.

    `carried` are the headers of a request that hold a trace; the span belongs to it. Where spans go nowhere
    and no trace is carried, none is made: nobody could see it.
    """
    if not (carried or tracing()):
        return _NO_SPAN
    return _tracer.start_as_current_span(name, extract(carried) if carried else None, kind)


def started(name: str, kind: SpanKind) -> trace.Span:
    """Return a span that goes on with the current one, and is nobody's current one yet; who asked ends it."""
    return _tracer.start_span(name, kind=kind)


def past_span(name: str, kind: SpanKind, carried: Mapping[str, str], begun: int, ended: int) -> None:
    """Tell of something that is over, in the trace of some headers; times in nanoseconds since 1970."""
    _tracer.start_span(name, extract(carried), kind, start_time=begun).end(ended)


def trace_headers(*, sampled: bool = False) -> dict[str, str]:
    """Return the headers by which another program goes on with this trace; {} where there is none.

    Of the trace only, never of its baggage: the other program may be a stranger's. With `sampled`, only of a
    trace that is kept.
    """
    headers: dict[str, str] = {}
    if sampled and not trace.get_current_span().get_span_context().trace_flags.sampled:
        return headers
    _PROPAGATOR.inject(headers)
    return headers


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return bound
