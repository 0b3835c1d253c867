"""Which trace an applied document belongs to, whichever is heard of first."""

from __future__ import annotations

import orjson
import pytest
from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from polaris import telemetry
from polaris_service.documents import traces
from polaris_service.documents.traces import Traces, told

TRACE, CALLER = "ab" * 16, "cd" * 8
CARRIED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Spans of this process, kept in memory."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(traces, "tracing", lambda: True)
    return exporter


@pytest.mark.parametrize("first", ["told", "applied"])
def test_both_ways_round_there_is_one_span_in_the_document_s_trace(
    exported: InMemorySpanExporter, first: str
) -> None:
    kept = Traces()
    payload = orjson.dumps([7, [41], CARRIED]).decode()
    if first == "told":
        kept.heard(payload)
        kept.applied(7, [40, 41], 1_000, 2_000)
    else:
        kept.applied(7, [40, 41], 1_000, 2_000)
        kept.heard(payload)
    (span,) = exported.get_finished_spans()
    assert span.name == "apply document"
    assert (span.start_time, span.end_time) == (1_000, 2_000)
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, CALLER)


def test_what_nobody_asks_for_any_more_is_forgotten(exported: InMemorySpanExporter) -> None:
    kept = Traces()
    kept.applied(7, range(10_000), 1, 2)
    for sequence in range(10_000):
        kept.heard(orjson.dumps([8, [sequence], CARRIED]).decode())
    assert len(kept._told) == len(kept._applied) == 1000
    assert exported.get_finished_spans() == ()


@pytest.mark.parametrize(
    "payload", ["", "[]", "7", '[7, "x", {}]', '[7, [41], {"traceparent": 1}]', "[7, [41]"]
)
def test_what_makes_no_sense_is_passed_over(exported: InMemorySpanExporter, payload: str) -> None:
    kept = Traces()
    kept.applied(7, [41], 1, 2)
    kept.heard(payload)
    assert exported.get_finished_spans() == ()


def test_only_a_trace_that_is_kept_is_told() -> None:
    assert told(7, [41]) is None
    for flags, is_told in (("01", True), ("00", False)):
        carried = {"traceparent": f"00-{TRACE}-{CALLER}-{flags}"}
        with trace.use_span(trace.NonRecordingSpan(_context(carried))):
            payload = told(7, [41, 42])
            assert (payload is not None) is is_told
            assert payload is None or orjson.loads(payload) == [7, [41, 42], carried]
            assert told(7, []) is None


def _context(carried: dict[str, str]) -> trace.SpanContext:
    return trace.get_current_span(extract(carried)).get_span_context()
