"""A caller's trace goes on in the service, its SQL and the embedder, and holds nobody's words."""

from __future__ import annotations

import re
import secrets

import pytest

from mission.system import wait_for
from observe.receiver import Receiver
from observe.running import Running

pytestmark = pytest.mark.postgres

QUESTION = "Whoever asks for leave 13?"


def test_a_trace_goes_from_the_request_to_sql_and_the_embedder(system: Running) -> None:
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    answer = system.site.http.post(
        f"{system.site.path()}/search",
        json={"query": QUESTION},
        headers={"traceparent": f"00-{trace}-{caller}-01", "baggage": "whose=private"},
    )
    assert answer.is_success
    request = "POST /v1/indexes/{namespace}/{name}/search"
    received: Receiver = system.receiver
    wait_for("the spans to arrive", lambda: {request, "embed", "sql search"} <= set(received.of(trace)))
    spans = received.of(trace)
    assert spans[request].parent == caller
    assert spans["embed"].parent == spans[request].id
    assert spans["sql search"].parent == spans[request].id
    assert {span.program for span in spans.values()} == {"polaris-service"}
    # The embedder goes on with it: what it is asked belongs to the call, and it is not told of the baggage.
    assert (trace, spans["embed"].id) in system.embedder.traces
    assert system.embedder.baggage == {}


def test_a_measured_request_names_the_trace_that_explains_it(system: Running) -> None:
    trace = secrets.token_hex(16)
    answer = system.site.http.post(
        f"{system.site.path()}/search",
        json={"query": QUESTION},
        headers={"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"},
    )
    assert answer.is_success
    told = system.site.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert told.headers["content-type"].startswith("application/openmetrics-text")
    buckets = re.findall(r"^polaris_http_request_seconds_bucket.* # {(.*)} ", told.text, re.MULTILINE)
    assert f'trace_id="{trace}"' in buckets
    assert told.text.endswith("# EOF\n")


def test_a_trace_goes_on_to_the_generator(system: Running) -> None:
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    answer = system.site.http.post(
        f"{system.site.path()}/answer",
        json={"question": QUESTION},
        headers={"traceparent": f"00-{trace}-{caller}-01"},
    )
    assert answer.is_success
    request = "POST /v1/indexes/{namespace}/{name}/answer"
    wait_for("the spans to arrive", lambda: {request, "generate"} <= set(system.receiver.of(trace)))
    spans = system.receiver.of(trace)
    assert spans["generate"].parent == spans[request].id


def test_a_document_s_trace_goes_on_in_the_worker_that_applies_it(system: Running) -> None:
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    answer = system.site.http.put(
        f"{system.site.path()}/documents/traced",
        json={"text": "Whoever asks for leave 21 gets 21 days."},
        headers={"traceparent": f"00-{trace}-{caller}-01"},
    )
    assert answer.is_success
    request, applied = "PUT /v1/indexes/{namespace}/{name}/documents/{id:path}", "apply document"
    # Two programs send them, each in its own time.
    wait_for("the spans to arrive", lambda: {request, applied} <= set(system.receiver.of(trace)))
    spans = system.receiver.of(trace)
    assert spans[request].parent == caller
    assert spans[applied].parent == spans[request].id
    assert (spans[request].program, spans[applied].program) == ("polaris-service", "polaris-worker")


def test_no_span_holds_a_question_a_document_or_a_path(system: Running) -> None:
    wait_for(
        "spans of service and worker", lambda: len({span.program for span in system.receiver.spans}) >= 2
    )
    for span in system.receiver.spans:
        said = " ".join([span.name, *span.attributes])
        for secret in ("leave", "handbook", "private", "password"):
            assert secret not in said
