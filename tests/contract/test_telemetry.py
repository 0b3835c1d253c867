"""Both ways into the log write the same lines, and neither ever fails who logs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from polaris import telemetry

pytestmark = pytest.mark.unit


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The library's root, which is as it was afterwards; structlog too."""
    root, handlers, level = logging.root, logging.root.handlers[:], logging.root.level
    yield root
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def configured(stream: Any, *, straight: bool, level: str = "info") -> None:
    telemetry.configure_logging(level, straight=straight)
    handler = logging.root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) | {"timestamp": ""} for line in stream.getvalue().splitlines()]


def log_all() -> None:
    log = telemetry.logger("of.a.module")
    log.debug("not shown")
    log.info("hello", vault_token="s.123", text="ação", number=7, nothing=None, inner={"a": (1, 2)})
    log.warning("odd", large=2**70, surrogate="a\udc80b", keys={1: "one"}, what=object)
    error = ZeroDivisionError("why")
    log.error("handed on", exc_info=error)
    try:
        [].pop()
    except IndexError:
        log.exception("caught")
    logging.getLogger("library").warning("it %s", "said")


@pytest.mark.usefixtures("root")
def test_the_straight_way_writes_what_the_librarys_way_writes() -> None:
    written = []
    for way in (True, False):
        stream = io.StringIO()
        configured(stream, straight=way)
        log_all()
        written.append(lines(stream))
    straight, librarys = written
    assert straight == librarys
    assert [line["event"] for line in straight] == ["hello", "odd", "handed on", "caught", "it said"]
    assert straight[0]["vault_token"] == "[redacted]"
    assert straight[0]["logger"] == "of.a.module"
    assert "ZeroDivisionError: why" in straight[2]["exception"]
    assert "IndexError" in straight[3]["exception"]


class Broken(io.StringIO):
    """The reading end of a pipe is gone."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


@pytest.mark.usefixtures("root")
def test_a_line_that_cannot_be_written_is_lost_and_fails_nobody() -> None:
    configured(Broken(), straight=True)
    telemetry.logger("test").info("to nobody")
    closed = io.StringIO()
    closed.close()
    configured(closed, straight=True)
    telemetry.logger("test").info("to nobody")


@pytest.mark.usefixtures("root")
def test_where_spans_go_nowhere_a_trace_that_was_carried_is_in_the_log_still() -> None:
    stream = io.StringIO()
    configured(stream, straight=True)
    carried = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
    with telemetry.span("request", carried=carried):
        telemetry.logger("test").info("inside")
    with telemetry.span("request"):
        telemetry.logger("test").info("outside")
    inside, outside = lines(stream)
    assert inside["trace_id"] == "ab" * 16
    assert "trace_id" not in outside
