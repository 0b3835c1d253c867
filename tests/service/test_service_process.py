"""The service as a process, over a real socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from polaris import CATALOG_LEVEL
from service.made import Index, Made
from service.processes import Program, running

pytestmark = pytest.mark.postgres

NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def service(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running("service", made, tmp_path_factory.mktemp("service")) as program:
        yield program


@pytest.fixture
def http(service: Program) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as client:
        yield client


def test_a_document_of_100_mb_is_refused_without_being_read_whole(
    service: Program, http: httpx.Client, index: Index
) -> None:
    before = service.process.memory_info().rss
    sent = 0

    def content() -> Iterator[bytes]:
        nonlocal sent
        yield b'{"text": "'
        for _ in range(100):
            sent += 1
            yield b"x" * 2**20
        yield b'"}'

    for headers in ({}, {"Content-Length": str(100 * 2**20 + 12)}):
        sent = 0
        try:
            response = http.put(f"{index.path}/documents/a", content=content(), headers=headers)
            assert (response.status_code, response.json()["code"]) == (413, "too-large")
        except httpx.WriteError:  # It was cut off amid sending, which is as good an answer.
            assert sent < 100
    assert service.process.memory_info().rss - before < 60 * 2**20
    assert http.get(f"{index.path}/documents/a").status_code == 404


def test_who_sends_everything_before_reading_an_answer_is_read_to_the_end(
    http: httpx.Client, index: Index
) -> None:
    """10 MB of results are more than sockets hold; a service that waited for its reader would hang."""
    count = 120_000
    response = http.post(
        f"{index.path}/documents", content=(b"{}\n" * 1000 for _ in range(count // 1000)), headers=NDJSON
    )
    assert len(response.content) > 8 * 2**20
    assert response.text.count("\n") == count


def test_results_come_while_lines_are_still_to_be_sent(http: httpx.Client, index: Index) -> None:
    answered = threading.Event()
    read: list[dict[str, Any]] = []

    def content() -> Iterator[bytes]:
        yield b'{"id": "first", "text": "text"}\n'
        # Only an answer to the first line lets the second one out.
        assert _until_there(http, f"{index.path}/documents/first")
        answered.set()
        yield b'{"id": "second", "text": "text"}\n'

    with http.stream("POST", f"{index.path}/documents", content=content(), headers=NDJSON) as response:
        read += [json.loads(line) for line in response.iter_lines()]
    assert answered.is_set()
    assert [result["id"] for result in read] == ["first", "second"]


def _until_there(http: httpx.Client, path: str) -> bool:
    with httpx.Client(base_url=http.base_url, trust_env=False) as other:
        return any(other.get(path).status_code == 200 for _ in range(1000))


def test_a_path_keeps_its_slashes_over_the_wire(http: httpx.Client, index: Index) -> None:
    for path, id_ in (("a/b", "a/b"), ("a%2Fc", "a/c"), ("%2Fd", "/d"), ("e%20f%2Fg", "e f/g")):
        assert http.put(f"{index.path}/documents/{path}", json={"text": "t"}).json()["id"] == id_
    invalid = http.put(f"{index.path}/documents/a%FF", json={"text": "t"})
    assert invalid.status_code == 422


def test_sigterm_lets_what_is_in_flight_finish(own: Made, tmp_path: Path) -> None:
    index = own.index("ending")
    with running("service", own, tmp_path) as service:

        def content() -> Iterator[bytes]:
            yield b'{"id": "a", "text": "text"}\n'
            with httpx.Client(base_url=service.url, trust_env=False) as other:
                assert any(other.get(f"{index.path}/documents/a").status_code == 200 for _ in range(1000))
            service.terminate()
            for number in range(50):
                yield json.dumps({"id": f"b{number}", "text": "text"}).encode() + b"\n"

        with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as http:
            response = http.post(f"{index.path}/documents", content=content(), headers=NDJSON)
        assert len(response.text.splitlines()) == 51
        service.wait()
    assert "Traceback" not in service.log()
    # It said good-bye in the catalog, which comes last.
    assert own.value("SELECT count(*) FROM polaris.consumers") == 0


class _Collector(BaseHTTPRequestHandler):
    """Takes what an exporter of OTLP sends."""

    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_spans_tell_routes_and_statements_and_nothing_of_documents(own: Made, tmp_path: Path) -> None:
    index = own.index("traced")
    collector = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_TRACES_SAMPLER_ARG": "1",
        }
        with running("service", own, tmp_path, environment) as service:
            with httpx.Client(base_url=service.url, trust_env=False) as http:
                parent = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
                path = f"{index.path}/documents/id-of-somebody"
                assert http.put(path, json={"text": "of-somebody"}, headers=parent).status_code == 202
            service.terminate()
            service.wait()
        assert f'"trace_id":"{"ab" * 16}"' in service.log()
    finally:
        collector.shutdown()
        collector.server_close()
        thread.join()
    sent = b"".join(_Collector.received)
    assert b"PUT /v1/indexes/{namespace}/{name}/documents/{id:path}" in sent
    assert b"sql write" in sent
    assert bytes.fromhex("ab" * 16) in sent
    assert b"of-somebody" not in sent


def test_a_service_newer_than_its_catalog_is_not_ready_and_says_why(own: Made, tmp_path: Path) -> None:
    """So a release whose migration has not come replaces no pod of the version before."""
    own.run("UPDATE polaris.catalog SET level = 1")
    with (
        running("service", own, tmp_path) as service,
        httpx.Client(base_url=service.url, trust_env=False) as http,
    ):
        while (ready := http.get("/readyz")).status_code == 200:
            time.sleep(0.05)
        assert "the catalog is at level 1: it waits to be migrated" in ready.text
        assert http.get("/livez").status_code == 200
        assert http.get("/v1/indexes/team/any").json()["code"] == "catalog-too-old"
        own.run(f"UPDATE polaris.catalog SET level = {CATALOG_LEVEL}")
        while http.get("/readyz").status_code == 503:
            time.sleep(0.05)


def test_a_service_before_its_secret_is_there_is_ready_and_says_why_not(made: Made, tmp_path: Path) -> None:
    with (
        running("service", made, tmp_path, database_secret=str(tmp_path / "nothing")) as service,
        httpx.Client(base_url=service.url, trust_env=False) as http,
    ):
        assert http.get("/readyz").status_code == 200
        response = http.get("/v1/indexes/team/any")
        assert (response.status_code, response.json()["code"]) == (503, "no-database-yet")
        assert int(response.headers["retry-after"]) > 0
        (tmp_path / "nothing").symlink_to(made.folder("query"))
        while (response := http.get("/v1/indexes/team/any")).status_code == 503:
            assert response.json()["code"] == "no-database-yet"
        assert response.json()["code"] == "no-such-index"
