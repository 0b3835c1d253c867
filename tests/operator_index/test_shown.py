"""What a plan shows is what is executed, byte for byte."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from operator_index.place import DIMENSION, MAIN, PATIENCE_SECONDS, Place, index_manifest, place_in
from polaris_cli.up.ports import any_free
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator import manifests, preview
from polaris_operator.callers import OpenGate
from polaris_operator.planning import Planning
from soak import times

pytestmark = pytest.mark.postgres

CHANGES = frozenset(
    ["ALTER", "COMMENT", "CREATE", "DELETE", "DROP", "GRANT", "INSERT", "REVOKE", "TRUNCATE", "UPDATE"]
)
NUMBERS = count(1)
LANG = {"name": "lang", "type": "keyword"}
YEAR = {"name": "year", "type": "integer"}
SPECS: dict[str, Any] = {
    "attributes": st.lists(st.sampled_from([LANG, YEAR]), max_size=2, unique_by=lambda a: a["name"]),
    "index": st.sampled_from([{"type": "hnsw"}, {"type": "exact"}, {"m": 4, "efConstruction": 16}]),
    "embedding": st.sampled_from(
        [{"model": "e5", "dimension": DIMENSION, "metric": metric} for metric in ("cosine", "l2")]
    ),
    "search": st.sampled_from([{"targetRecallPercent": 90}, {"targetRecallPercent": 98}]),
    "change": st.sampled_from([{}, {"retainPreviousSeconds": 0}]),
}


@pytest.fixture(scope="module")
def long_lived(postgres: LocalPostgres) -> Iterator[Place]:
    with place_in(postgres) as place:
        place.go(MAIN)
        place.offer()
        yield place


class Said:
    """What was sent to PostgreSQL: by this thread in its order, and by builds in theirs."""

    def __init__(self) -> None:
        self.here: list[str] = []
        self.builds: dict[int, list[str]] = {}

    def take(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        mine = threading.current_thread() is threading.main_thread()
        (self.here if mine else self.builds.setdefault(threading.get_ident(), [])).append(statement)

    def without(self, shown: list[str]) -> list[str]:
        """Check that each text was sent as it stands, in this order; return what else changes something."""
        queues = [self.here, *self.builds.values()]
        for text in shown:
            at = next((n for n, queue in enumerate(queues) if after(queue, text) is not None), None)
            assert at is not None, f"shown and not executed:\n{text}\n\nexecuted:\n{self.here}"
            rest = after(queues[at], text)
            assert rest is not None
            queues[at] = rest
        left = [statement for queue in queues for statement in queue]
        return [statement for statement in left if statement.split(maxsplit=1)[0].upper() in CHANGES]


def after(queue: list[str], text: str) -> list[str] | None:
    """Return what came after a text, less what changes nothing before it; None where it was not sent next."""
    for start in range(len(queue)):
        for end in range(start + 1, len(queue) + 1):
            joined = ";\n".join(queue[start:end])
            if joined == text:
                return queue[end:]
            if len(joined) > len(text):
                break
        if queue[start].split(maxsplit=1)[0].upper() in CHANGES:
            return None
    return None


@contextmanager
def executed() -> Iterator[Said]:
    """Take down what is really sent to PostgreSQL, until builds have ended too."""
    said, before = Said(), set(threading.enumerate())
    event.listen(Engine, "before_cursor_execute", said.take)
    try:
        yield said
        for thread in set(threading.enumerate()) - before:
            thread.join(60)
    finally:
        event.remove(Engine, "before_cursor_execute", said.take)


def shown(place: Place, manifest: dict[str, Any]) -> dict[str, Any]:
    """What `POST /v1/plan` would answer, before the manifest is anywhere but here."""
    resource = preview.proposed(manifests.only(manifest, "here"), place.objects)
    return preview.document(preview.look(resource, place.doors, datetime.now(UTC)))


def texts(planned: dict[str, Any], kind: str, uid: str) -> list[str]:
    """The statements that were shown, with the uid that nobody knew before."""
    found = [step["statement"] for step in planned[kind] if step["statement"]]
    return [text.replace(preview.NO_UID, uid) for text in found]


def made_true(place: Place, manifest: dict[str, Any]) -> None:
    """Make a manifest true, and hold each round against what was shown before it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        planned = shown(place, manifest)
        key = place.put(manifest)
        place.objects.look()
        plan, uid = place.decide(key), place.resource(key).uid
        with executed() as said:
            place.act(key, plan.steps)
        assert said.without(texts(planned, "steps", uid)) == []
        with executed() as said:
            place.act(key, plan.aside)
        said.without(texts(planned, "aside", uid))  # And what was measured is written down.
        if not plan.steps and not plan.aside and plan.blocked is None:
            break
        assert time.monotonic() < end, plan
    assert (planned["steps"], planned["withheld"], planned["blocked"]) == ([], [], None)
    assert planned["hash"] is None


@pytest.mark.soak
@settings(
    max_examples=times(5, 100),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(series=st.lists(st.fixed_dictionaries(SPECS), min_size=1, max_size=3))
def test_what_is_executed_is_what_was_shown_and_then_nothing_is_left(
    long_lived: Place, series: list[dict[str, Any]]
) -> None:
    name = f"random{next(NUMBERS)}"
    for spec in series:
        made_true(long_lived, index_manifest(name, **spec))


def test_a_plan_of_what_is_not_there_yet_changes_nothing(long_lived: Place) -> None:
    with executed() as said:
        planned = shown(long_lived, index_manifest("never"))
    assert planned["steps"]
    assert said.without([]) == []
    assert preview.UID_IS_NOT_KNOWN in planned["notices"]
    assert long_lived.one("SELECT count(*) FROM polaris.indexes WHERE name = 'never'") == 0


def test_a_change_that_waits_is_shown_with_the_name_that_the_status_gives_it(long_lived: Place) -> None:
    """An edit that waits for an approval: before it is applied, as `status.plan` then says."""
    key = long_lived.ready("waits")
    changed = index_manifest("waits", change={"approval": "All"}, index={"m": 4, "efConstruction": 16})

    planned = shown(long_lived, changed)

    long_lived.put(changed)
    status = long_lived.go(key)["plan"]
    assert (planned["hash"], planned["withheld"]) == (status["hash"], status["steps"])
    assert planned["destructive"] == status["destructive"]


def asked(place: Place, manifest: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What the route answers over a folder, on the loopback."""
    said: list[str] = []
    raw = json.dumps(manifest).encode()
    environ = {
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(raw)),
        "HTTP_HOST": "127.0.0.1:9090",
        "wsgi.input": io.BytesIO(raw),
    }
    route = Planning(lambda: place, OpenGate(), loopback=True)
    content = b"".join(route(environ, lambda status, _headers: said.append(status)))
    return said[0], json.loads(content)


def test_the_route_answers_what_is_planned_and_says_so_while_postgresql_is_away(here: Place) -> None:
    manifest = index_manifest("asked")
    assert asked(here, manifest) == ("200 OK", shown(here, manifest))
    door = here.doors.postgres

    door.log_in(replace(door.server, port=any_free()), door.identity)

    status, problem = asked(here, manifest)
    assert (status, problem["code"]) == ("503 Service Unavailable", "database-unavailable")
    assert "secret" not in problem["detail"]
