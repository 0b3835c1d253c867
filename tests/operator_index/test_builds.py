from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest

from operator_index.place import Place, index_manifest, said_of
from operator_index.watch import builds, eventually, held_up, started, the_build, valid, vector_index
from parts import servers
from polaris.status import Reason
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.objects import Key
from polaris_operator.steps import BuildIndex
from polaris_operator.world.index import build_lock

pytestmark = pytest.mark.postgres

ROWS = 500
# A plain build of these takes a second or two: long enough to be met while it lives.
MANY_ROWS = 3000
OTHER = {"m": 8, "efConstruction": 64}


@contextmanager
def queries(place: Place, key: Key) -> Iterator[list[int]]:
    """Ask for the nearest ten, again and again, as the service does; collect how many were found."""
    found: list[int] = []
    stop = threading.Event()
    schema = place.schema(key)

    def ask() -> None:
        with closing(servers.connect(place.database.dsn)) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                try:
                    cursor.execute(
                        f"SELECT document_id FROM {schema}.g1_chunks"
                        " ORDER BY embedding <=> (SELECT embedding FROM"
                        f" {schema}.g1_chunks WHERE document_id = 7) LIMIT 10"
                    )
                    found.append(len(cursor.fetchall()))
                except psycopg2.Error:
                    found.append(-1)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def test_a_build_outlives_the_process_that_began_it_and_is_never_begun_twice(any_here: Place) -> None:
    place = any_here
    key = place.ready()
    place.fill(key, ROWS)
    place.put(index_manifest(index=OTHER))

    with held_up(place, key):
        with started(place) as process:
            first = the_build(place)
            process.kill()
            process.wait()
        for _ in range(3):
            status = place.go(key)
            assert said_of(status, "Ready")["reason"] == Reason.BUILDING_INDEX
            assert builds(place) == [first]
    status = place.go_until(key, "Ready")

    assert vector_index(place, key) == status["active"]["index"]
    assert valid(place, key)[status["active"]["index"]]
    assert place.errors == []


def test_a_build_is_watched_and_said_to_be_under_way_while_queries_go_on(here: Place) -> None:
    key = here.ready()
    here.fill(key, ROWS)
    old = vector_index(here, key)
    here.put(index_manifest(index=OTHER))

    with queries(here, key) as found:
        with held_up(here, key):
            status = here.until(key, lambda said: said.get("candidate", {}).get("blockedBy"))
            building = [said_of(status, kind) for kind in ("Ready", "Reconciling", "Serving")]
        done = here.go_until(key, "Ready")

    assert [condition["status"] for condition in building] == ["False", "True", "True"]
    assert {condition["reason"] for condition in building[:2]} == {Reason.BUILDING_INDEX}
    assert "idle in transaction" in status["candidate"]["blockedBy"]
    assert "waiting for" in building[0]["message"]
    assert done["active"]["index"] == vector_index(here, key) != old
    assert said_of(done, "Reconciling") == {}
    assert set(found) == {10}


def test_the_old_index_serves_until_the_switch_and_is_dropped_after_a_while(here: Place) -> None:
    key = here.ready()
    here.fill(key, ROWS)
    here.put(index_manifest(embedding={"model": "e5", "dimension": 8, "metric": "l2"}))

    here.go_until(key, "Ready")
    assert len(valid(here, key)) == 2
    here.sql("UPDATE polaris.indexes SET updated_at = now() - interval '1 minute'")
    here.go(key)

    assert valid(here, key) == {vector_index(here, key): True}
    assert here.one("SELECT embedding ->> 'metric' FROM polaris.generations") == "l2"


def test_a_dead_and_invalid_index_is_dropped_and_built(any_here: Place) -> None:
    place = any_here
    key = place.ready()
    place.fill(key, ROWS)
    place.put(index_manifest(index=OTHER))
    with held_up(place, key):
        place.go(key)
        pid = the_build(place)
        place.sql("SELECT pg_terminate_backend(%s, 10000)", pid)
    assert sorted(valid(place, key).values()) == [False, True]
    place.restart()
    status = place.go_until(key, "Ready")

    assert valid(place, key)[status["active"]["index"]]
    assert place.one("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


def test_a_build_that_keeps_failing_says_so_and_is_not_tried_at_once(here: Place) -> None:
    key = here.ready()
    here.fill(key, ROWS)
    here.put(index_manifest(index=OTHER))
    with held_up(here, key):
        here.go(key)
        pid = the_build(here)
        here.sql("SELECT pg_cancel_backend(%s)", pid)

    status = here.until(key, lambda said: said_of(said, "Ready")["reason"] == Reason.BUILD_FAILED)

    assert "canceling statement" in said_of(status, "Ready")["message"]
    assert said_of(status, "Serving")["status"] == "True"
    assert builds(here) == []


@pytest.mark.parametrize(
    ("state", "reason"), [("53100", Reason.DISK_FULL), ("53200", Reason.OUT_OF_MEMORY)], ids=str
)
def test_what_a_build_lacked_is_said(here: Place, state: str, reason: Reason) -> None:
    key = here.ready()
    here.fill(key, ROWS)
    here.sql(
        "CREATE FUNCTION public.lack() RETURNS event_trigger LANGUAGE plpgsql AS"
        f" $$BEGIN RAISE 'there is none left' USING ERRCODE = '{state}'; END$$;"
        "CREATE EVENT TRIGGER lack ON ddl_command_start WHEN TAG IN ('CREATE INDEX')"
        " EXECUTE FUNCTION public.lack()"
    )
    here.put(index_manifest(index=OTHER))

    status = here.until(key, lambda said: said_of(said, "Ready")["reason"] == reason)

    assert "there is none left" in said_of(status, "Ready")["message"]
    assert said_of(status, "Serving")["status"] == "True"


def test_where_shared_memory_is_too_small_it_is_built_at_once_without_workers(
    here: Place, postgres: LocalPostgres
) -> None:
    key = here.ready()
    here.fill(key, ROWS)
    # However small the table is; and no machine has so much memory for processes to share.
    here.sql(f"ALTER TABLE {here.schema(key)}.g1_chunks SET (parallel_workers = 1)")
    here.put(index_manifest(index=OTHER, build={"maintenanceWorkMem": "1900Gi"}))
    seen: set[str] = set()

    def holds(said: dict[str, Any]) -> bool:
        seen.add(said_of(said, "Ready")["reason"])
        return bool(said_of(said, "Ready")["status"] == "True")

    since = postgres.log_file.stat().st_size
    here.until(key, holds)

    assert postgres.log_file.read_bytes()[since:].count(b'segment "/PostgreSQL.') >= 1
    assert seen <= {Reason.BUILDING_INDEX, Reason.READY, Reason.INDEX_REPLACED}


def test_an_edit_that_makes_a_build_useless_ends_it(here: Place) -> None:
    key = here.ready()
    here.fill(key, ROWS)
    before = valid(here, key)
    here.put(index_manifest(index=OTHER))
    with held_up(here, key):
        here.go(key)
        the_build(here)
        here.put(index_manifest())
        here.objects.look()
        here.act(key, here.decide(key).steps)
        eventually(lambda: builds(here) == [])

    here.go_until(key, "Ready")

    assert valid(here, key) == before


# --- bulk loads


def test_a_bulk_load_is_indexed_after_it_was_loaded(any_here: Place) -> None:
    place = any_here
    key = place.ready(attributes=[{"name": "lang", "type": "keyword"}])
    place.sql("UPDATE polaris.generations SET load_requested_at = now()")

    status = place.go(key)

    assert said_of(status, "Ready")["reason"] == Reason.LOADING
    assert said_of(status, "Serving")["status"] == "True"
    assert status["candidate"]["phase"] == "loading"
    assert (vector_index(place, key), valid(place, key)) == (None, {})
    place.fill(key, MANY_ROWS)
    place.go(key)
    assert place.one("SELECT state FROM polaris.generations") == "loading"

    place.sql("UPDATE polaris.generations SET load_requested_at = NULL")
    place.go(key)
    assert place.one("SELECT state FROM polaris.generations") == "building"
    status = place.go_until(key, "Ready")

    assert valid(place, key) == {vector_index(place, key): True}
    assert place.one("SELECT state FROM polaris.generations") == "serving"
    assert status["active"]["rows"] == MANY_ROWS


def test_after_a_load_the_index_serves_also_where_its_operator_died(here: Place) -> None:
    key = here.ready()
    here.sql("UPDATE polaris.generations SET load_requested_at = now()")
    here.go(key)
    here.fill(key, MANY_ROWS)
    here.sql("UPDATE polaris.generations SET load_requested_at = NULL")

    with started(here) as process:
        the_build(here)
        process.kill()
        process.wait()
        eventually(lambda: here.one("SELECT state FROM polaris.generations") == "serving")

    assert valid(here, key) == {vector_index(here, key): True}
    assert said_of(here.go(key), "Ready")["status"] == "True"


def test_a_build_after_a_load_that_waits_for_a_writer_tells_for_whom(here: Place) -> None:
    key = here.ready()
    here.sql("UPDATE polaris.generations SET load_requested_at = now()")
    here.go(key)
    here.fill(key, ROWS)
    here.sql("UPDATE polaris.generations SET load_requested_at = NULL")

    with held_up(here, key):
        status = here.until(key, lambda said: "waiting for" in said_of(said, "Ready")["message"])
    assert "idle in transaction" in said_of(status, "Ready")["message"]
    assert said_of(status, "Stalled") == {}

    assert said_of(here.go_until(key, "Ready"), "Serving")["status"] == "True"
    assert here.errors == []


# --- the door


def test_whoever_finds_the_lock_held_begins_nothing(here: Place) -> None:
    key = here.ready()
    here.fill(key, 100)
    here.put(index_manifest(index=OTHER))
    here.objects.look()
    (step,) = here.decide(key).steps
    assert isinstance(step.action, BuildIndex)

    with closing(servers.connect(here.database.dsn)) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [step.action.lock])
        assert not here.doors.postgres.start_build(step.action, lambda: None)
        assert here.decide(key).steps == ()
    assert step.action.lock == build_lock(here.schema(key), step.action.index)


def test_a_plan_that_came_too_late_builds_nothing_twice_and_drops_nothing_valid(here: Place) -> None:
    key = here.ready()
    here.fill(key, 100)
    here.put(index_manifest(index=OTHER))
    here.objects.look()
    late = here.decide(key)
    here.go_until(key, "Ready")
    before = valid(here, key)

    here.act(key, late.steps)

    assert valid(here, key) == before
