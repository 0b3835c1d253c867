"""How a program that serves ends: no client is surprised."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from kube import leash

# `/slow` takes a second to answer.
PROGRAM = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from polaris.telemetry import configure_logging
from polaris_service.serving import serve

async def quick(request):
    return PlainTextResponse("here")

async def slow(request):
    await asyncio.sleep(1)
    return PlainTextResponse("late")

configure_logging("info")
serve(Starlette(routes=[Route("/", quick), Route("/slow", slow)]), "127.0.0.1", 0)
"""


class Serving:
    """The program, and connections to it."""

    def __init__(self, process: psutil.Process, port: int) -> None:
        self.process = process
        self._port = port
        self._opened: list[HTTPConnection] = []

    def connection(self) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=20)
        self._opened.append(connection)
        connection.connect()
        return connection

    def used(self, count: int) -> list[HTTPConnection]:
        """Connections that were used once, and are kept."""
        connections = [self.connection() for _ in range(count)]
        assert [ask(connection) for connection in connections] == [(200, "")] * count
        return connections

    def close(self) -> None:
        for connection in self._opened:
            connection.close()

    def told_to_end(self, by: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(by)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    log = tmp_path / "log"
    with log.open("wb") as output:
        popen = leash.start([sys.executable, "-c", PROGRAM], output)
    try:
        while '"listening"' not in log.read_text():
            assert popen.poll() is None, log.read_text()
            time.sleep(0.02)
        said = next(line for line in log.read_text().splitlines() if '"listening"' in line)
        serving = Serving(psutil.Process(popen.pid).children()[0], json.loads(said)["port"])
        yield serving
        serving.close()
    finally:
        leash.stop(popen)


def ask(connection: HTTPConnection, path: str = "/") -> tuple[int, str]:
    """The status, and what is said of the connection."""
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.getheader("Connection", "")


def until_it_says_so(serving: Serving) -> None:
    """Wait until the signal has arrived: a new connection's answer shows it."""
    while ask(serving.connection()) != (200, "close"):
        time.sleep(0.01)


def test_a_kept_connection_is_answered_once_more_and_told_to_close(serving: Serving) -> None:
    kept = serving.used(2)
    serving.told_to_end()
    until_it_says_so(serving)
    assert [ask(connection) for connection in kept] == [(200, "close")] * 2


def test_new_connections_are_answered_while_others_are_kept(serving: Serving) -> None:
    serving.used(1)
    serving.told_to_end()
    until_it_says_so(serving)
    assert ask(serving.connection()) == (200, "close")


def test_a_request_in_flight_is_answered(serving: Serving) -> None:
    (kept,) = serving.used(1)
    kept.request("GET", "/slow")
    serving.told_to_end()
    with kept.getresponse() as answer:
        assert answer.read() == b"late"
    serving.process.wait(20)


def test_it_ends_once_nobody_is_connected(serving: Serving) -> None:
    (kept,) = serving.used(1)
    serving.told_to_end()
    until_it_says_so(serving)
    assert ask(kept) == (200, "close")
    serving.process.wait(20)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_connections_that_nobody_uses_do_not_hold_it_up(serving: Serving, by: signal.Signals) -> None:
    (kept,) = serving.used(1)
    serving.told_to_end(by)
    serving.process.wait(20)
    assert kept.sock.recv(1) == b""  # it was closed, and not by an error
