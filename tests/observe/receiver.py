"""A receiver of traces: OTLP over HTTP, in this process, on a free port."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """What a program did, as it was received."""

    program: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: frozenset[str]


class Receiver:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.url = ""

    def of(self, trace: str) -> dict[str, Span]:
        """The spans of a trace, by name."""
        return {span.name: span for span in list(self.spans) if span.trace == trace}

    def take(self, content: bytes) -> None:
        """Take a request of an exporter."""
        for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
            about = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Span(
                            about["service.name"],
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            frozenset(str(one.value) for one in span.attributes),
                        )
                    )


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run one."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            zipped = self.headers.get("Content-Encoding") == "gzip"
            receiver.take(gzip.decompress(content) if zipped else content)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  as its base calls it
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
