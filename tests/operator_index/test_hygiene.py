from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from operator_index.place import Place, index_manifest, said_of
from operator_index.watch import builds, eventually, held_up, started, the_build, valid, vector_index
from operator_index.worlds import (
    NOW,
    PLACE,
    hnsw,
    live,
    made,
    resource,
    spec,
    vector_name,
    with_index,
    with_relation,
)
from parts import servers
from polaris.spec import PolarisIndexSpec
from polaris.status import Reason
from polaris_operator.objects import Key
from polaris_operator.plan.index import plan_index
from polaris_operator.plan.preflight import index_bytes
from polaris_operator.steps import BuildIndex, ExecuteAlone, Plan, Step
from polaris_operator.world.index import BuildFailure, IndexWorld, build_lock
from soak import times

SPEC = spec()
VECTOR = vector_name(SPEC)
FRESH = index_bytes(1000, SPEC.embedding, SPEC.index)


def world(*, live: int = 1000, dead: int = 9000, size: int = 10 * FRESH, **changes: Any) -> IndexWorld:
    """An index that is as its spec says, and most of whose rows were deleted."""
    found = with_index(made(SPEC, rows=live), VECTOR, hnsw(SPEC, bytes=size))
    return replace(with_relation(found, "g1_chunks", live=live, dead=dead), **changes)


def plan(seen: IndexWorld, of: PolarisIndexSpec = SPEC) -> Plan:
    return plan_index(resource(of), of, seen, NOW)


def tended(seen: IndexWorld, of: PolarisIndexSpec = SPEC) -> list[Step]:
    return [step for step in plan(seen, of).aside if step.reason == Reason.INDEX_DECAYED]


def statements(steps: list[Step]) -> list[str]:
    return [step.action.statement for step in steps if isinstance(step.action, BuildIndex)]


@pytest.mark.unit
class TestWhatIsDecided:
    def test_after_a_mass_delete_the_index_is_built_anew_before_rows_are_vacuumed(self) -> None:
        (step,) = tended(world())

        assert statements([step]) == [f'REINDEX INDEX CONCURRENTLY "{PLACE}"."{VECTOR}"']
        assert "9000 of 10000 rows are deleted" in step.sentence
        assert isinstance(step.action, BuildIndex)
        assert step.action.afterwards == f'VACUUM (ANALYZE) "{PLACE}"."g1_chunks"'

    def test_where_a_session_ended_in_between_only_the_table_is_vacuumed(self) -> None:
        assert statements(tended(world(size=FRESH))) == [f'VACUUM (ANALYZE) "{PLACE}"."g1_chunks"']

    def test_nothing_waits_for_it(self) -> None:
        found = plan(world())

        assert (found.steps, found.blocked) == ((), None)
        assert found.look_again_seconds is not None

    @pytest.mark.parametrize(
        ("seen", "of"),
        [
            (world(dead=900, live=10), SPEC),
            (world(dead=2000, live=10_000), SPEC),
            (world(), spec(suspend=True)),
            (with_relation(world(), "g1_chunks", vacuumed_at=NOW - timedelta(minutes=2)), SPEC),
            (world(locks=frozenset({build_lock(PLACE, VECTOR)})), SPEC),
            (world(locks=frozenset({build_lock(PLACE, "g1_chunks")})), SPEC),
            (world(**live("another")), SPEC),
            (world(failures={VECTOR: BuildFailure("disk full", NOW, 1)}), SPEC),
        ],
        ids=[
            "few rows",
            "a small share",
            "suspended",
            "just vacuumed: somebody still sees them",
            "it is being built anew",
            "it is being vacuumed",
            "another index of the table is being built",
            "it failed a moment ago",
        ],
    )
    def test_when_nothing_is_done(self, seen: IndexWorld, of: PolarisIndexSpec) -> None:
        assert tended(seen, of) == []

    def test_rows_deleted_since_a_vacuum_of_a_moment_ago_count(self) -> None:
        just = {"vacuumed_at": NOW - timedelta(minutes=2), "changed": 9000}

        assert tended(with_relation(world(), "g1_chunks", **just))

    def test_it_is_not_done_over_again_by_a_plan_that_comes_late(self) -> None:
        for one, condition in ((world(), "pg_relation_size"), (world(size=FRESH), "pg_stat_get_dead_tuples")):
            (step,) = tended(one)
            assert isinstance(step.action, BuildIndex)
            assert any(condition in guard for guard in step.action.guards)

    def test_what_a_killed_one_left_is_dropped_under_its_lock_and_never_while_it_lives(self) -> None:
        left = with_index(made(SPEC, rows=5), f"{VECTOR}_ccnew1", hnsw(SPEC, valid=False))

        (drop,) = plan(left).aside
        assert isinstance(drop.action, ExecuteAlone)
        assert drop.action.lock == build_lock(PLACE, VECTOR)
        assert plan(replace(left, locks=frozenset({build_lock(PLACE, VECTOR)}))).aside == ()

    def test_another_index_waits_until_it_is_done(self) -> None:
        of = spec(index={"m": 8, "efConstruction": 64})
        found = plan_index(
            resource(of, generation=2), of, world(locks=frozenset({build_lock(PLACE, VECTOR)})), NOW
        )

        assert not any(isinstance(step.action, BuildIndex) for step in found.steps)
        assert found.blocked is not None
        assert VECTOR in found.blocked.message


# --- on real servers

ROWS = times(4000, 40_000)
DIMENSION = 32


def filled(place: Place, rows: int = ROWS) -> Key:
    """An index that holds so many chunks, built after they were loaded."""
    place.offer("wide", DIMENSION)
    key = place.ready(embedding={"model": "wide", "dimension": DIMENSION})
    place.sql("UPDATE polaris.generations SET load_requested_at = now()")
    place.go(key)
    place.fill(key, rows, dimension=DIMENSION)
    place.sql("UPDATE polaris.generations SET load_requested_at = NULL")
    place.go_until(key, "Ready")
    return key


def delete_most(place: Place, key: Key) -> None:
    place.sql(f"DELETE FROM {place.schema(key)}.g1_chunks WHERE document_id % 10 <> 0")
    eventually(lambda: dead(place, key) >= 0.9 * ROWS)


def dead(place: Place, key: Key) -> int:
    found: int = place.one(
        "SELECT pg_stat_get_dead_tuples(to_regclass(%s))", f"{place.schema(key)}.g1_chunks"
    )
    return found


def found(place: Place, key: Key, queries: int = 100) -> tuple[int, float]:
    """Return the fewest hits of a query for ten, and the share of the exact ten that queries find."""
    table, least, hits = f"{place.schema(key)}.g1_chunks", 10, 0
    with closing(servers.connect(place.database.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(f"SET enable_seqscan = off; SET hnsw.ef_search = {ef_search(place)}")
        cursor.execute(f"SELECT document_id FROM {table} ORDER BY document_id LIMIT {queries}")
        for (document,) in cursor.fetchall():
            vector = f"(SELECT embedding FROM {table} WHERE document_id = {document})"
            both = []
            for how in ("", " + 0"):  # By the index, and by comparing every row.
                cursor.execute(
                    f"SELECT document_id FROM {table} ORDER BY (embedding <=> {vector}){how} LIMIT 10"
                )
                both.append({row[0] for row in cursor.fetchall()})
            least, hits = min(least, len(both[0])), hits + len(both[0] & both[1])
    return least, hits / (10 * queries)


def ef_search(place: Place) -> int:
    return int(place.one("SELECT ef_search FROM polaris.generations"))


def identity(place: Place, key: Key) -> int:
    """The vector index itself: another one where it was built anew."""
    found: int = place.one("SELECT to_regclass(%s)::oid", f"{place.schema(key)}.{vector_index(place, key)}")
    return found


def settled(place: Place, key: Key) -> None:
    """Make passes until rows are vacuumed, as the queue does."""
    place.until(key, lambda said: dead(place, key) < 0.1 * ROWS and not said.get("candidate"))


@pytest.mark.postgres
@pytest.mark.soak
def test_with_most_rows_deleted_queries_find_what_there_is_within_one_reconcile(any_here: Place) -> None:
    place = any_here
    key = filled(place)
    before = identity(place, key)
    delete_most(place, key)
    hits_before = found(place, key)

    status = place.go(key)
    eventually(lambda: identity(place, key) != before and not builds(place))
    hits, recall = found(place, key)

    print(f"{ROWS} rows, 90% deleted: fewest hits and recall {hits_before} before, {(hits, recall)} after")
    assert hits_before < (10, 0.97)
    assert hits == 10
    assert recall >= 0.97
    assert said_of(status, "Ready")["status"] == "True"
    once = identity(place, key)
    settled(place, key)
    place.go(key)
    assert identity(place, key) == once
    assert valid(place, key) == {vector_index(place, key): True}


@pytest.mark.postgres
def test_one_that_is_under_way_is_adopted_and_done_once(here: Place) -> None:
    key = filled(here)
    before = identity(here, key)
    delete_most(here, key)

    with held_up(here, key, document=10):
        with started(here) as process:
            first = the_build(here)
            process.kill()
            process.wait()
        for _ in range(3):
            status = here.go(key)
            assert builds(here) == [first]
            assert said_of(status, "Ready")["status"] == "True"
            assert "idle in transaction" in status["candidate"]["blockedBy"]
    settled(here, key)

    assert identity(here, key) != before
    assert valid(here, key) == {vector_index(here, key): True}


@pytest.mark.postgres
def test_what_a_killed_one_left_behind_goes_and_it_is_done_again(here: Place) -> None:
    key = filled(here)
    before = identity(here, key)
    delete_most(here, key)
    with held_up(here, key, document=10):
        here.go(key)
        pid = the_build(here)
        here.sql("SELECT pg_terminate_backend(%s, 10000)", pid)
    assert any(name.endswith("_ccnew") for name in valid(here, key))

    here.restart()
    here.go()
    settled(here, key)

    assert identity(here, key) != before
    assert valid(here, key) == {vector_index(here, key): True}


@pytest.mark.postgres
def test_an_edit_waits_for_it_and_then_holds(here: Place) -> None:
    key = filled(here)
    delete_most(here, key)
    with held_up(here, key, document=10):
        here.go(key)
        the_build(here)
        here.put(
            index_manifest(
                embedding={"model": "wide", "dimension": DIMENSION}, index={"m": 8, "efConstruction": 64}
            )
        )
        status = here.go(key)
        assert len(builds(here)) == 1
        assert said_of(status, "Ready")["reason"] == Reason.BUILDING_INDEX
    status = here.go_until(key, "Ready")

    assert valid(here, key)[status["active"]["index"]]
    assert here.errors == []
