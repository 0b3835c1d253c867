"""A caller's trace goes on in the service, its SQL and the embedder, and holds nobody's words."""

from __future__ import annotations

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


def test_no_span_holds_a_question_a_document_or_a_path(system: Running) -> None:
    wait_for(
        "spans of service and worker", lambda: len({span.program for span in system.receiver.spans}) >= 2
    )
    for span in system.receiver.spans:
        said = " ".join([span.name, *span.attributes])
        for secret in ("leave", "handbook", "private", "password"):
            assert secret not in said
