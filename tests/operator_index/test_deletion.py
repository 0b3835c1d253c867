from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from operator_index.place import MAIN, Place, catalog_of, index_manifest, place_in, said_of
from operator_index.worlds import CATALOG, NOW, resource, row, spec
from polaris.status import Reason
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.collector import is_orphan
from polaris_operator.objects import Key
from polaris_operator.steps import SetFinalizer, Step

AT_ONCE: dict[str, Any] = {"deletionPolicy": "Delete", "undeleteSeconds": 0}
ACCESS: dict[str, Any] = {"access": [{"name": "reporting", "secretName": "handbook-reporting"}]}


def left_of(place: Place, key: Key, catalog: str, schema: str) -> dict[str, Any]:
    """Return what there still is of an index."""
    like = f"polaris_{catalog}_i%"
    return {
        "schema": place.one("SELECT count(*) FROM pg_namespace WHERE nspname = %s", schema),
        "roles": place.one("SELECT count(*) FROM pg_roles WHERE rolname LIKE %s", like),
        "logins": place.one(
            "SELECT count(*) FROM pg_roles WHERE rolname LIKE %s AND rolname NOT IN"
            " (SELECT username FROM polaris.credentials WHERE owner LIKE 'database/%%')",
            f"polaris_{catalog}_login_%",
        ),
        "rows": place.one("SELECT count(*) FROM polaris.indexes"),
        "generations": place.one("SELECT count(*) FROM polaris.generations"),
        "ledger": place.one("SELECT count(*) FROM polaris.credentials WHERE owner LIKE 'index/%%'"),
        "object": place.objects.get(key),
        "secret": place.objects.secret("team", "handbook-reporting"),
    }


NOTHING: dict[str, Any] = {
    **dict.fromkeys(("schema", "roles", "logins", "rows", "generations", "ledger"), 0),
    **dict.fromkeys(("object", "secret")),
}


@pytest.mark.postgres
def test_with_delete_nothing_is_left(any_here: Place) -> None:
    place = any_here
    key = place.ready(**AT_ONCE, **ACCESS, attributes=[{"name": "at", "type": "datetime"}])
    place.fill(key, 40)
    catalog, schema = place.one("SELECT id FROM polaris.catalog"), place.schema(key)
    assert left_of(place, key, catalog, schema) != NOTHING

    place.remove(key)
    place.go()

    assert place.errors == []
    assert left_of(place, key, catalog, schema) == NOTHING


@pytest.mark.postgres
def test_with_delete_a_crash_between_any_two_steps_is_mended(here: Place) -> None:
    catalog = here.one("SELECT id FROM polaris.catalog")
    key = Key("PolarisIndex", "team", "handbook")
    done = 0
    while True:
        here.ready(**AT_ONCE, **ACCESS)
        schema = here.schema(key)
        here.remove(key)
        here.objects.look()
        steps = here.decide(key).steps
        if done == len(steps):
            break
        here.act(key, steps[:done])
        here.restart()
        here.go()
        here.go()
        assert left_of(here, key, catalog, schema) == NOTHING, steps[done].sentence
        done += 1

    assert done > 4


@pytest.mark.postgres
def test_a_database_that_is_deleted_too_waits_for_an_object_that_a_crash_left_on_its_way_out(
    here: Place,
) -> None:
    key = here.ready(**AT_ONCE)
    here.remove(key)
    here.remove(MAIN)
    here.objects.look()
    *steps, last = here.decide(key).steps
    assert isinstance(last.action, SetFinalizer)
    here.act(key, steps)
    here.restart()
    here.go()
    here.go()
    assert here.objects.get(key) is None
    assert here.objects.get(MAIN) is None


@pytest.mark.postgres
def test_with_delete_a_live_build_does_not_stand_in_the_way(here: Place) -> None:
    key = here.ready(**AT_ONCE)
    here.fill(key, 4000)
    here.put(index_manifest(**AT_ONCE, index={"m": 8, "efConstruction": 200}))
    here.go(key)

    here.remove(key)
    here.until(key, lambda _: here.objects.get(key) is None)

    assert here.one("SELECT count(*) FROM polaris.indexes") == 0


@pytest.mark.postgres
def test_what_others_built_on_it_stops_the_removal_and_is_named(here: Place) -> None:
    key = here.ready(**AT_ONCE, deletionDeadlineSeconds=1)
    schema = here.schema(key)
    here.sql(f"CREATE SCHEMA theirs; CREATE VIEW theirs.report AS SELECT * FROM {schema}.documents")
    here.remove(key)

    status = here.until(key, lambda _: here.errors)

    assert said_of(status, "Ready")["status"] == "False"
    assert "theirs.report" in said_of(status, "Ready")["message"]

    here.until(key, lambda _: here.objects.get(key) is None)
    assert here.one("SELECT state FROM polaris.indexes") == "deleting"
    assert here.one("SELECT count(*) FROM theirs.report") == 0

    here.sql("DROP SCHEMA theirs CASCADE")
    here.go()
    assert here.one("SELECT count(*) FROM polaris.indexes") == 0


@pytest.mark.postgres
def test_with_retain_all_is_kept_and_the_same_object_takes_it_up_again(here: Place) -> None:
    key = here.ready(**ACCESS)
    here.fill(key, 40)
    before, label = here.fingerprint(key), here.resource(key).status["catalog"]

    here.remove(key)
    here.go()

    assert here.objects.get(key) is None
    assert here.one("SELECT state FROM polaris.indexes") == "released"
    assert here.one("SELECT state FROM polaris.credentials WHERE owner LIKE 'index/%'") == "revoked"
    assert here.objects.secret("team", "handbook-reporting") is None

    here.ready(**ACCESS)
    assert here.fingerprint(key) == before
    assert here.resource(key).status["catalog"] == label
    assert here.one(f"SELECT count(*) FROM {here.schema(key)}.g1_chunks") == 40


@pytest.mark.postgres
def test_an_object_that_went_while_the_operator_was_away_is_noticed(here: Place) -> None:
    key, other = here.ready(), here.ready("other")

    here.stop()
    here.remove(key)
    here.start()
    here.go()

    states = here.sql("SELECT name, state FROM polaris.indexes ORDER BY 1")
    assert states == [("handbook", "released"), ("other", "active")]
    assert said_of(dict(here.resource(other).status), "Ready")["status"] == "True"


@pytest.mark.postgres
def test_suspended_a_deleted_index_is_kept_whatever_its_policy(here: Place) -> None:
    key = here.ready(**AT_ONCE)
    here.put(index_manifest(**AT_ONCE, suspend=True))
    here.go(key)

    here.remove(key)
    here.go()

    assert here.objects.get(key) is None
    assert here.one("SELECT state FROM polaris.indexes") == "released"


@pytest.mark.postgres
def test_an_index_that_another_installation_owns_survives_the_deletion_of_its_namesake(here: Place) -> None:
    key = here.ready()
    there = here.neighbour("there")
    there.put(index_manifest(**AT_ONCE))
    there.go(key)

    there.remove(key)
    there.go()

    assert there.objects.get(key) is None
    assert here.one("SELECT state FROM polaris.indexes") == "active"
    assert said_of(here.go(key), "Ready")["status"] == "True"


@pytest.mark.postgres
def test_an_index_whose_database_led_to_another_server_for_a_while_keeps_its_data(
    here: Place, postgres16: LocalPostgres
) -> None:
    key = here.ready(**AT_ONCE)
    here.fill(key, 40)
    before, label = here.fingerprint(key), here.resource(key).status["catalog"]

    with here.elsewhere(postgres16):
        here.go_until(key, "Ready")
        assert here.resource(key).status["catalog"] != label
        assert here.one(f"SELECT count(*) FROM {here.schema(key)}.g1_chunks") == 0
    here.go()
    here.go_until(key, "Ready")

    assert here.fingerprint(key) == before
    assert here.resource(key).status["catalog"] == label
    assert here.one(f"SELECT count(*) FROM {here.schema(key)}.g1_chunks") == 40


def shut_out(place: Place) -> None:
    """To a client this is a server that is starting, full or gone."""
    place.sql(f"ALTER ROLE {place.login} CONNECTION LIMIT 0")
    end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s"
    place.sql(end, place.login)


def let_in(place: Place) -> None:
    place.sql(f"ALTER ROLE {place.login} CONNECTION LIMIT -1")


@pytest.mark.postgres
@pytest.mark.parametrize(
    "kept",
    [{"deletionPolicy": "Retain"}, {**AT_ONCE, "suspend": True}],
    ids=["Retain", "Delete and suspended"],
)
def test_an_object_that_keeps_its_data_is_held_until_the_catalog_knows(
    here: Place, kept: dict[str, Any]
) -> None:
    key = here.ready(**AT_ONCE)
    here.fill(key, 40)
    schema = here.schema(key)
    shut_out(here)
    here.put(index_manifest(**kept))
    here.go(key)

    here.remove(key)
    here.objects.look()
    here.age_deletion(key)
    here.go()
    status = here.go(key)

    assert "held until the catalog knows that its data is kept" in said_of(status, "Ready")["message"]
    let_in(here)
    here.go()
    here.go()
    assert here.objects.get(key) is None
    assert here.one("SELECT state FROM polaris.indexes") == "released"
    assert here.one(f"SELECT count(*) FROM {schema}.g1_chunks") == 40


@pytest.mark.postgres
def test_with_delete_the_object_goes_after_its_deadline_and_its_data_when_the_database_is_back(
    here: Place,
) -> None:
    key = here.ready(**AT_ONCE)
    shut_out(here)
    here.remove(key)
    here.objects.look()
    here.go(key)
    assert here.objects.get(key) is not None

    here.age_deletion(key)
    here.go()

    assert here.objects.get(key) is None
    let_in(here)
    here.go()
    assert here.one("SELECT count(*) FROM polaris.indexes") == 0


@pytest.mark.postgres
def test_after_a_long_absence_the_database_is_asked_before_an_object_is_given_up(here: Place) -> None:
    key = here.ready(**AT_ONCE)
    here.remove(key)
    here.objects.look()
    here.age_deletion(key)

    here.reconciler.reconcile(key)

    assert here.objects.get(key) is not None


@pytest.mark.postgres
@pytest.mark.parametrize("done", range(4))
def test_from_delete_to_retain_a_crash_between_any_two_steps_costs_no_data(here: Place, done: int) -> None:
    key = here.ready(**AT_ONCE)
    here.fill(key, 40)
    here.put(index_manifest())
    here.objects.look()
    steps = here.decide(key).steps
    assert len(steps) == 3, [step.sentence for step in steps]

    lost_at(here, key, done, steps)


@pytest.mark.postgres
def test_taken_up_again_an_index_that_was_to_be_deleted_is_the_new_objects(here: Place) -> None:
    key = here.ready(**AT_ONCE)
    here.fill(key, 40)
    here.put(index_manifest(**AT_ONCE, suspend=True))
    here.go(key)
    here.remove(key)
    here.go()
    here.sql("UPDATE polaris.indexes SET deletion_policy = 'Delete'")

    here.put(index_manifest())
    here.objects.look()

    lost_at(here, key, 1, here.decide(key).steps)


def lost_at(place: Place, key: Key, done: int, steps: Sequence[Step]) -> None:
    """Crash after so many steps, lose the object meanwhile, and see that its data is kept."""
    schema = place.schema(key)
    place.act(key, steps[:done])
    place.stop()
    place.remove(key)
    place.start()
    place.go()
    place.go()
    assert place.objects.get(key) is None
    assert place.one("SELECT state FROM polaris.indexes") == "released", [s.sentence for s in steps[:done]]
    assert place.one(f"SELECT count(*) FROM {schema}.g1_chunks") == 40


@pytest.mark.postgres
def test_a_removal_that_has_begun_stops_where_the_object_keeps_its_data_after_all(here: Place) -> None:
    key = here.ready(**AT_ONCE)
    here.fill(key, 40)
    schema = here.schema(key)
    here.sql(f"CREATE SCHEMA theirs; CREATE VIEW theirs.report AS SELECT * FROM {schema}.documents")
    here.remove(key)
    here.until(key, lambda _: here.errors)
    assert here.one("SELECT state FROM polaris.indexes") == "deleting"

    here.edit_deleted(key, deletionPolicy="Retain")
    here.go()

    assert here.objects.get(key) is None
    assert here.one("SELECT state FROM polaris.indexes") == "released"
    assert here.one(f"SELECT count(*) FROM {schema}.g1_chunks") == 40


@pytest.mark.postgres
def test_an_object_that_was_never_made_true_goes_at_once(place: Place) -> None:
    key = place.put(index_manifest(**AT_ONCE))
    place.go()
    place.go()
    assert said_of(dict(place.resource(key).status), "Stalled")["reason"] == Reason.MODEL_UNAVAILABLE

    place.remove(key)
    place.go()

    assert place.objects.get(key) is None


OTHER = spec(databaseRef={"name": "other"})
ELSEWHERE: dict[str, Any] = {"status": {"catalog": "deadbeef/1"}}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("state", "found", "known", "orphan"),
    [
        ("active", None, True, True),
        ("active", None, False, False),
        ("active", resource(spec()), True, False),
        ("active", resource(spec(), status={"catalog": f"{CATALOG}/7"}), True, False),
        ("active", resource(spec(), **ELSEWHERE), True, False),
        ("active", resource(spec(), uid="uid-2", **ELSEWHERE), True, False),
        ("active", resource(OTHER, **ELSEWHERE), True, False),
        ("active", resource(OTHER, uid="uid-2", **ELSEWHERE), True, True),
        ("released", None, True, False),
        ("deleting", None, True, True),
        ("deleting", None, False, False),
        ("deleting", resource(spec()), True, True),
        ("deleting", resource(spec(), deleted_at=NOW), True, False),
    ],
    ids=[
        "gone",
        "not seen, in a listing that is not complete",
        "there",
        "there, and true here",
        "there, and true elsewhere while its database led elsewhere",
        "a new one, true elsewhere while its database led elsewhere",
        "there, and of another way into this database, which led elsewhere for a while",
        "a new one, of another database and true there",
        "released already",
        "gone in the middle of its removal",
        "in the middle of its removal, and the listing is not complete",
        "a new one, while the old one is removed",
        "being deleted: its own pass sees to it",
    ],
)
def test_only_what_nobody_wants_any_more_is_collected(
    *, state: Any, found: Any, known: bool, orphan: bool
) -> None:
    here = Key("PolarisDatabase", "team", "main")
    assert is_orphan(row(spec(), state=state), CATALOG, found, here, known=known) == orphan


def test_an_installation_in_another_database_of_the_server_is_left_alone(
    here: Place, postgres: LocalPostgres
) -> None:
    """Roles are the server's, and both have an index of the same name: nothing is taken for one's own."""
    with place_in(postgres) as there:
        there.go(MAIN)
        there.offer()
        keys = [place.ready(access=[{"name": "bi", "secretName": "bi"}]) for place in (here, there)]
        there.fill(keys[1], 20)
        before = there.fingerprint(keys[1]), there.sql("SELECT rolname FROM pg_roles ORDER BY 1")

        here.put(index_manifest(index={"m": 8}, access=[]))
        here.go_until(keys[0], "Ready")
        here.put(index_manifest(deletionPolicy="Delete", undeleteSeconds=0))
        here.go(keys[0])
        here.remove(keys[0])
        here.until(keys[0], lambda _: here.objects.get(keys[0]) is None)

        there.go()
        assert there.fingerprint(keys[1]) == before[0]
        gone = {row[0] for row in before[1]} - {row[0] for row in there.sql("SELECT rolname FROM pg_roles")}
        assert gone
        assert not any(role.startswith(f"polaris_{catalog_of(there.database)}_") for role in gone)
        assert said_of(there.go(keys[1]), "Ready")["status"] == "True"
