"""The short way past FastAPI differs from the long one in nothing that anybody sees, but the time."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Request
from starlette.responses import Response
from structlog.testing import capture_logs

from polaris_service.app import create_app
from polaris_service.direct import Direct
from polaris_service.observed import Observed
from service.made import Index, Made
from service.processes import running
from service.rig import Rig

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

SEARCH = {"query": "where", "k": 3}
JSON = {"Content-Type": "application/json"}


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


# what, method, the path behind the index's, headers, content
CASES: list[tuple[str, str, str, dict[str, str], bytes]] = [
    ("a search", "POST", "/search", JSON, body(**SEARCH)),
    ("an answer", "POST", "/answer", JSON, body(question="where")),
    ("a streamed answer", "POST", "/answer", JSON, body(question="where", stream=True)),
    ("a query string", "POST", "/search?x=1", JSON, body(**SEARCH)),
    ("no body", "POST", "/search", JSON, b""),
    ("no JSON", "POST", "/search", JSON, b"{"),
    ("NUL", "POST", "/search", JSON, body(query="a\x00")),
    ("an unknown field", "POST", "/search", JSON, body(query="a", filters={})),
    ("an unknown attribute", "POST", "/search", JSON, body(query="a", filter={"eq": ["x", 1]})),
    ("k of 0", "POST", "/answer", JSON, body(question="a", k=0)),
    ("a wrong vector", "POST", "/search", JSON, body(vector=[1, 2])),
    ("too large", "POST", "/search", JSON, body(query="a" * 5000)),
    ("a wrong media type", "POST", "/search", {"Content-Type": "text/plain"}, body(**SEARCH)),
    ("a generation that is gone", "POST", "/search", JSON, body(vector=[1.0] * 64, generation=7)),
    ("another token", "POST", "/search", {"Authorization": "Bearer writer"}, body(**SEARCH)),
    ("a wrong token", "POST", "/search", {"Authorization": "Bearer x"}, body(**SEARCH)),
    ("no token but a name", "POST", "/answer", {"Authorization": "Basic x"}, body(question="a")),
    ("another index", "POST", "x/search", JSON, body(**SEARCH)),
    ("an encoded letter", "POST", "/%73earch", JSON, body(**SEARCH)),
    ("an encoded slash", "POST", "%2Fsearch", JSON, body(**SEARCH)),
    ("an encoded slash in the name", "POST", "%2Fx/search", JSON, body(**SEARCH)),
    ("NUL in the name", "POST", "%00/search", JSON, body(**SEARCH)),
    ("a line feed at the end", "POST", "/search%0A", JSON, body(**SEARCH)),
    ("a slash too many", "POST", "/search/", JSON, body(**SEARCH)),
    ("two slashes", "POST", "//search", JSON, body(**SEARCH)),
    ("capitals", "POST", "/Search", JSON, body(**SEARCH)),
    *((f"{method} of it", method, "/search", JSON, b"") for method in ("GET", "HEAD", "OPTIONS", "PUT")),
    ("a method of nobody's", "BREW", "/answer", JSON, b""),
    ("an id that every request has", "POST", "/search", JSON | {"X-Request-Id": "mine"}, body(**SEARCH)),
]
TOKENS = {"reader": ["query"], "writer": ["documents"]}


@pytest.fixture(scope="module")
async def ways(made: Made, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Any]]:
    """A client for each way, on the same parts."""
    file = tmp_path_factory.mktemp("tokens") / "tokens.yaml"
    entries = [
        {
            "name": name,
            "sha256": hashlib.sha256(name.encode()).hexdigest(),
            "verbs": verbs,
            "indexes": ["*/*"],
        }
        for name, verbs in TOKENS.items()
    ]
    file.write_text(json.dumps({"tokens": entries}))
    async with (
        AsyncExitStack() as stack,
        Rig(made, auth="tokens", tokens_file=str(file), max_body_bytes=4096) as rig,
    ):
        long = create_app(rig.parts)
        long.middleware_stack = Observed(long.build_middleware_stack(), rig.parts.metrics)
        clients = {}
        for way, app in (("short", rig.app), ("long", long)):
            transport = httpx.ASGITransport(app)
            client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
            clients[way] = await stack.enter_async_context(client)
        yield {**clients, "rig": rig}


def counted(rig: Rig) -> dict[tuple[str, ...], float]:
    """How often each method, route and status was counted, and each method and route timed."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in rig.parts.metrics.registry.collect()
        for sample in metric.samples
        if sample.name in ("polaris_http_requests_total", "polaris_http_request_seconds_count")
    }


async def seen(ways: dict[str, Any], way: str, *request: Any) -> dict[str, Any]:
    """All that can be seen of a request: its answer, what is logged and audited, what is counted."""
    method, path, headers, content = request
    headers = {"Authorization": "Bearer reader"} | headers
    before = counted(ways["rig"])
    with capture_logs() as logs:
        answer = await ways[way].request(method, path, headers=headers, content=content)
    after = counted(ways["rig"])
    shown = dict(answer.headers)
    told_id = shown.pop("x-request-id")
    assert told_id == headers.get("X-Request-Id", told_id)
    text = answer.text
    if shown.get("content-type") == "application/json":
        text = {**answer.json(), "timings_ms": None}
        del shown["content-length"]
    elif shown.get("content-type", "").startswith("text/event-stream"):
        text = text.partition("timings_ms")[0]
    return {
        "status": answer.status_code,
        "headers": shown,
        "body": text,
        "logs": [{**entry, "ms": None, "bytes": None} for entry in logs],
        "counted": {
            key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key)
        },
    }


@pytest.mark.parametrize(
    ("method", "path", "headers", "content"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
async def test_both_ways_are_seen_alike(  # noqa: PLR0917
    ways: dict[str, Any], index: Index, method: str, path: str, headers: dict[str, str], content: bytes
) -> None:
    request = (method, index.path + path, headers, content)
    short, long = [await seen(ways, way, *request) for way in ("short", "long")]
    assert short == long
    assert len(short["logs"]) == 1
    assert len(short["counted"]) == 2


async def test_it_is_the_short_way_that_a_search_and_an_answer_take(
    ways: dict[str, Any], index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nowhere(*_: Any) -> None:
        raise AssertionError("the long way")

    direct = ways["rig"].app.middleware_stack._app
    assert isinstance(direct, Direct)
    monkeypatch.setattr(direct, "_app", nowhere)
    headers = {"Authorization": "Bearer reader"}
    for path, content in (("search", SEARCH), ("answer", {"question": "where"})):
        answer = await ways["short"].post(f"{index.path}/{path}", json=content, headers=headers)
        assert answer.status_code == 200
    with pytest.raises(AssertionError, match="the long way"):
        await ways["short"].get(index.path, headers=headers)


async def test_what_nobody_foresaw_is_seen_alike_too(
    ways: dict[str, Any], index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError("password=hunter2")

    monkeypatch.setattr(ways["rig"].parts.searcher, "search", fail)
    found = [
        await seen(ways, way, "POST", f"{index.path}/search", JSON, body(**SEARCH))
        for way in ("short", "long")
    ]
    for each in found:
        assert "hunter2" not in each["body"]
        assert [entry["event"] for entry in each["logs"]] == ["unforeseen error", "access"]
        assert isinstance(each["logs"][0].pop("exc_info"), ZeroDivisionError)
    assert found[0] == found[1]
    assert found[0]["status"] == 500


async def test_both_are_in_the_openapi_document(ways: dict[str, Any]) -> None:
    paths = (await ways["short"].get("/openapi.json")).json()["paths"]
    for path in ("search", "answer"):
        described = paths[f"/v1/indexes/{{namespace}}/{{name}}/{path}"]["post"]
        assert described["requestBody"]
        assert {"200", "401", "403", "422", "503"} <= described["responses"].keys()


def test_an_endpoint_that_wants_more_of_fastapi_is_not_taken() -> None:
    routes = APIRouter()

    @routes.post("/{a}")
    async def endpoint(request: Request, a: str, limit: int = 10) -> Response:
        return Response(f"{request.method} {a} {limit}")

    with pytest.raises(TypeError, match="must take request, a"):
        Direct(routes, routes.routes)


# --- on the wire ---


def told(wire: socket.socket, sent: bytes, answers: int) -> list[tuple[bytes, bytes]]:
    """Send bytes; return (status line, body) of so many answers, each with its length."""
    wire.sendall(sent)
    stream = wire.makefile("rb")
    found = []
    for _ in range(answers):
        status = stream.readline().strip()
        length = 0
        while line := stream.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        found.append((status, stream.read(length)))
    return found


def test_pieces_and_pipelines_of_requests_are_answered_one_after_the_other(
    made: Made, tmp_path: Path
) -> None:
    index = made.index("on-the-wire")
    line = (
        f"POST {index.path}/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    )

    def whole(content: bytes) -> bytes:
        return line + b"Content-Length: %d\r\n\r\n" % len(content) + content

    def pieces(*parts: bytes) -> bytes:
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))
        return line + b"Transfer-Encoding: chunked\r\n\r\n" + chunks

    vector = body(vector=[1.0] * 64)
    with running("service", made, tmp_path) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=30) as wire:
            [(status, answer)] = told(wire, pieces(vector[:10], vector[10:11], vector[11:]), 1)
            assert status == b"HTTP/1.1 200 OK"
            assert json.loads(answer)["hits"] == []
            # A connection is of use after each of these; what stands behind is answered in its turn.
            sent = whole(b"{") + whole(vector) + pieces(b"[]") + whole(body(vector=[1.0]))
            answers = told(wire, sent, 4)
            assert [int(status.split()[1]) for status, _ in answers] == [400, 200, 422, 422]
            assert json.loads(answers[3][1])["errors"][0]["pointer"] == "/vector"
        # The line of a request comes after its answer: all are there when the service has ended.
        service.terminate()
        service.wait()
        audited = [each for each in map(json.loads, service.log().splitlines()) if each["event"] == "access"]
    assert [each["status"] for each in audited] == [200, 400, 200, 422, 422]
    assert len({each["request_id"] for each in audited}) == 5
    assert {each["route"] for each in audited} == {"/v1/indexes/{namespace}/{name}/search"}
