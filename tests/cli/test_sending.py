"""Sending documents to a service that is busy, breaks off, or is not there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli.program import here
from polaris_cli.client import problem
from polaris_cli.load.document import Line
from polaris_cli.load.send import batches

Answer = Callable[[BaseHTTPRequestHandler, list[Any]], None]


@dataclass
class Faulty:
    """A service whose answers to batches are scripted; then it takes everything."""

    script: list[Answer] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    """Ids, in the order in which they were acknowledged."""
    address: str = ""
    info: dict[str, Any] = field(default_factory=lambda: {"pending": 0, "failed": 0, "sequence": 0})
    failed: list[dict[str, Any]] = field(default_factory=list)
    searched: list[Any] = field(default_factory=list)
    """Bodies of searches; the first `late` of them are answered with 504."""
    late: int = 0

    def search(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        self.searched.append(body)
        if len(self.searched) <= self.late:
            problem_ = {"status": 504, "detail": "5 documents up to sequence 5 cannot be found yet"}
            respond(handler, 504, json.dumps(problem_).encode())
        else:
            respond(handler, 200, b'{"hits": []}')

    def take(self, handler: BaseHTTPRequestHandler, lines: list[Any]) -> None:
        results = [self.result(line["id"]) for line in lines]
        respond(handler, 200, b"".join(results))

    def result(self, identifier: str) -> bytes:
        self.taken.append(identifier)
        written = {"id": identifier, "version": 1, "sequence": len(self.taken), "status": 202}
        return json.dumps(written).encode() + b"\n"


def respond(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def busy(status: int) -> Answer:
    """An answer that asks to come back in a moment."""

    def answer(handler: BaseHTTPRequestHandler, _: list[Any]) -> None:
        body = json.dumps({"title": "Busy", "status": status, "detail": "all connections are busy"}).encode()
        respond(handler, status, body, Retry_After="0.05")

    return answer


@contextmanager
def serving(faulty: Faulty) -> Iterator[Faulty]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = {"documents": faulty.failed, "after": None}
            respond(self, 200, json.dumps(page if "state=failed" in self.path else faulty.info).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            lines = [json.loads(line) for line in body.splitlines()]
            if faulty.info["pending"] and self.path.endswith("/search"):
                faulty.search(self, *lines)
                return
            (faulty.script.pop(0) if faulty.script else faulty.take)(self, lines)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        faulty.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield faulty
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    file = tmp_path / "documents.ndjson"
    file.write_text("".join(f'{{"id": "{number}", "text": "x"}}\n' for number in range(5)))
    return file


ALL = ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_tried_again_and_told_of_once(documents: Path, status: int) -> None:
    with serving(Faulty([busy(status), busy(status)])) as service:
        done = here("load", "notes", documents, "--server", service.address)
    assert done.code == 0, done.err
    assert service.taken == ALL
    assert done.err == "all connections are busy; trying again\n"


def test_what_was_not_answered_for_is_sent_again_and_nothing_else(documents: Path) -> None:
    service = Faulty()

    def breaks_off(handler: BaseHTTPRequestHandler, lines: list[Any]) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"".join(service.result(line["id"]) for line in lines[:2]))

    service.script = [breaks_off]
    with serving(service):
        done = here("load", "notes", documents, "--server", service.address, "-o", "json")
    assert done.code == 0, done.err
    assert service.taken == ALL
    assert json.loads(done.out)["new"] == 5
    assert "broke off with 3 documents to go" in done.err


def test_a_document_that_met_a_busy_moment_is_no_refusal(documents: Path) -> None:
    service = Faulty()

    def partly(handler: BaseHTTPRequestHandler, lines: list[Any]) -> None:
        busy_line = {"line": 2, "status": 503, "code": "database-unavailable", "detail": "PostgreSQL is away"}
        respond(handler, 200, service.result(lines[0]["id"]) + json.dumps(busy_line).encode() + b"\n")

    service.script = [partly]
    with serving(service):
        done = here("load", "notes", documents, "--server", service.address)
    assert done.code == 0, done.err
    assert service.taken == ALL


def test_patience_ends(documents: Path) -> None:
    with serving(Faulty([busy(503)] * 100)) as service:
        flags = ["--server", service.address, "--client-retry-seconds", "0.2"]
        done = here("load", "notes", documents, *flags)
    assert done.code == 1
    assert done.err.endswith("polaris: all connections are busy\n")


def test_a_refusal_of_the_whole_is_one_sentence(documents: Path) -> None:
    def forbids(handler: BaseHTTPRequestHandler, _: list[Any]) -> None:
        respond(handler, 403, b'{"status": 403, "detail": "needs create on polarisindexes/documents"}')

    with serving(Faulty([forbids])) as service:
        done = here("load", "notes", documents, "--server", service.address)
    assert done.code == 1
    assert done.err == "polaris: needs create on polarisindexes/documents\n"


def test_documents_that_cannot_be_embedded_are_told_at_the_end(documents: Path) -> None:
    service = Faulty(info={"pending": 0, "failed": 2, "sequence": 0})
    service.failed = [
        {"id": "3", "sequence": 4, "error": "the embedder refused it"},
        {"id": "another's", "sequence": 99, "error": "older"},
    ]
    with serving(service):
        done = here("load", "notes", documents, "--server", service.address)
    assert done.code == 1
    assert done.err == "3 can't be made searchable: the embedder refused it\n"


def test_a_load_waits_for_what_it_wrote_and_not_for_what_others_write(documents: Path) -> None:
    """The index of the service never has nothing left to do."""
    service = Faulty(info={"pending": 7, "failed": 0, "sequence": 99, "dimension": 3}, late=2)
    with serving(service):
        done = here("load", "notes", documents, "--server", service.address)
    assert done.code == 0, done.err
    assert [asked["after_sequence"] for asked in service.searched] == [5, 5, 5]
    assert [asked["timeout_ms"] for asked in service.searched] == [500, 1000, 2000]
    assert service.searched[0]["vector"] == [1, 0, 0]


def test_what_is_no_polaris_service_is_said() -> None:
    with serving(Faulty()) as service:
        service.script = [lambda handler, _: respond(handler, 200, b"<html>")]
        done = here("search", "notes", "x", "--server", service.address)
    assert done.code == 1
    assert "is no POLARIS service: its answer is not JSON" in done.err


def test_the_token_is_shown_and_read_anew_each_time(documents: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    shown: list[str] = []
    service = Faulty()

    def looks(handler: BaseHTTPRequestHandler, lines: list[Any]) -> None:
        shown.append(handler.headers["Authorization"])
        token.write_text("second\n")
        (busy(503) if len(shown) == 1 else service.take)(handler, lines)

    service.script = [looks, looks]
    with serving(service):
        flags = ["--server", service.address, "--token-file", str(token)]
        assert here("load", "notes", documents, *flags).code == 0
    assert shown == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"detail": "it is closed"}, "it is closed"),
        ({"title": "Closed"}, "Closed"),
        ({}, "the service answered 422"),
        (
            {"detail": "must be less", "errors": [{"pointer": "/k", "detail": "must be less"}]},
            "/k: must be less",
        ),
        (
            {
                "detail": "two faults",
                "errors": [{"pointer": "/k", "detail": "wrong"}, {"pointer": "", "detail": "missing"}],
            },
            "two faults (/k: wrong; the body: missing)",
        ),
        ("no problem document", "the service answered 422"),
    ],
)
def test_a_problem_becomes_one_sentence_with_its_pointers(body: object, sentence: str) -> None:
    assert str(problem(422, body)) == sentence


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1] * 2500, [1000, 1000, 500]),
        ([5 * 2**20] * 3, [1, 1, 1]),
        ([20 * 2**20, 1], [1, 1]),
        ([], []),
    ],
)
def test_a_batch_is_bounded_in_lines_and_bytes(sizes: list[int], expected: list[int]) -> None:
    lines = (Line("x", b"x" * size) for size in sizes)
    assert [len(batch) for batch in batches(lines)] == expected
