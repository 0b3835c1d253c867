"""An index that was deleted is put aside: out of everybody's reach, and had back by one annotation."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg2
import pytest

from operator_index.place import MAIN, Place, index_manifest, said_of
from operator_index.test_deletion import NOTHING, left_of
from operator_index.worlds import NOW, made, resource, row, spec, without
from parts import servers
from polaris.names import ADOPT_ANNOTATION, FINALIZER
from polaris.status import Reason
from polaris_operator.objects import Key
from polaris_operator.plan.deletion import TOMBSTONES_KEPT, needs_collecting, plan_collection
from polaris_operator.plan.index import plan_index
from polaris_operator.sides.index import Index
from polaris_operator.steps import Blocked, Plan, SetFinalizer, statements
from polaris_operator.world.index import IndexAndLogins
from scenes.folder import query

DELETE: dict[str, Any] = {"deletionPolicy": "Delete"}
ACCESS: dict[str, Any] = {"access": [{"name": "reporting", "secretName": "handbook-reporting"}]}
KEY = Key("PolarisIndex", "team", "handbook")


def filled(place: Place, **changes: Any) -> tuple[Key, str]:
    """An index with 40 documents, and the label by which it is had back."""
    key = place.ready(**DELETE, **changes)
    place.fill(key, 40)
    return key, place.resource(key).status["catalog"]


def deleted(place: Place, key: Key) -> list[dict[str, Any]]:
    """Delete it; return what the PolarisDatabase lists then."""
    place.remove(key)
    place.go()
    return listed(place)


def listed(place: Place) -> list[dict[str, Any]]:
    """What the PolarisDatabase says of indexes that were deleted."""
    return list(place.go(MAIN).get("deleted", ()))


def vectors(place: Place, key: Key) -> list[tuple[Any, ...]]:
    return place.sql(
        f"SELECT document_id, md5(embedding::text) FROM {place.schema(key)}.g1_chunks ORDER BY 1"
    )


def over(place: Place) -> None:
    """Let the time of every tombstone be over."""
    place.sql("UPDATE polaris.indexes SET drop_after = now() WHERE drop_after IS NOT NULL")


@pytest.mark.postgres
def test_a_deleted_index_is_put_aside_and_the_object_waits_for_no_more(here: Place) -> None:
    key, label = filled(here, **ACCESS)
    schema = here.schema(key)
    secret = here.objects.secret("team", "handbook-reporting")
    assert secret is not None
    assert query(secret.data, f"SELECT count(*) FROM {schema}.documents") == [(40,)]

    (found,) = deleted(here, key)

    assert here.objects.get(key) is None
    assert (found["index"], found["id"]) == ("team/handbook", label)
    assert here.sql(
        "SELECT state, extract(epoch FROM drop_after - released_at)::integer FROM polaris.indexes"
    ) == [("released", 3 * 24 * 3600)]
    assert here.sql("SELECT nspname FROM pg_namespace WHERE nspname ~ 'i1_handbook'") == [
        ("deleted_i1_handbook",)
    ]
    with pytest.raises(psycopg2.OperationalError):
        query(secret.data, "SELECT 1")
    assert here.objects.secret("team", "handbook-reporting") is None
    assert here.one("SELECT count(*) FROM deleted_i1_handbook.stored_documents") == 40
    assert here.errors == []


@pytest.mark.postgres
def test_the_annotation_has_it_back_with_all_that_was_in_it(any_here: Place) -> None:
    here = any_here
    key, label = filled(here, **ACCESS, attributes=[{"name": "lang", "type": "keyword"}])
    before, had = here.fingerprint(key), vectors(here, key)
    deleted(here, key)

    here.put(
        index_manifest(
            **DELETE,
            **ACCESS,
            attributes=[{"name": "lang", "type": "keyword"}],
            annotations={ADOPT_ANNOTATION: label},
        )
    )
    here.go()
    here.go_until(key, "Ready")

    assert here.fingerprint(key) == before
    assert vectors(here, key) == had
    assert here.resource(key).status["catalog"] == label
    assert listed(here) == []
    secret = here.objects.secret("team", "handbook-reporting")
    assert secret is not None
    assert query(secret.data, f"SELECT count(*) FROM {here.schema(key)}.documents") == [(40,)]


@pytest.mark.postgres
def test_applied_again_without_it_the_index_is_a_new_one_and_the_old_one_waits_for_its_end(
    here: Place,
) -> None:
    key, label = filled(here)
    deleted(here, key)

    here.ready(**DELETE)

    assert here.resource(key).status["catalog"] != label
    assert vectors(here, key) == []
    assert [found["id"] for found in listed(here)] == [label]
    over(here)
    here.go()
    assert here.sql("SELECT name, state FROM polaris.indexes") == [("handbook", "active")]
    assert here.one("SELECT count(*) FROM pg_namespace WHERE nspname ~ '^deleted_'") == 0
    assert here.one("SELECT count(*) FROM pg_roles WHERE rolname ~ %s", f"_{label[:8]}_i1_") == 0
    assert listed(here) == []


@pytest.mark.postgres
def test_what_has_taken_its_name_meanwhile_is_put_aside_in_its_turn_and_can_be_had_back_too(
    here: Place,
) -> None:
    key, old = filled(here, **ACCESS)
    had = vectors(here, key)
    deleted(here, key)
    here.ready(**DELETE, **ACCESS)
    here.fill(key, 3, seed=2)
    young, newer = here.resource(key).status["catalog"], vectors(here, key)

    for label, content, other in ((old, had, young), (young, newer, old)):
        here.put(index_manifest(**DELETE, **ACCESS, annotations={ADOPT_ANNOTATION: label}))
        here.go()
        here.go_until(key, "Ready")
        here.go()
        assert here.resource(key).status["catalog"] == label
        assert vectors(here, key) == content
        assert [found["id"] for found in listed(here)] == [other]
        secret = here.objects.secret("team", "handbook-reporting")
        assert secret is not None
        rows = query(secret.data, f"SELECT count(*) FROM {here.schema(key)}.documents")
        assert rows == [(len(content),)]
        live = "SELECT owner FROM polaris.credentials WHERE owner LIKE 'index/%' AND state <> 'revoked'"
        assert here.sql(live) == [(f"index/{label.partition('/')[2]}",)]


@pytest.mark.postgres
def test_after_its_time_nothing_is_left(here: Place) -> None:
    key, label = filled(here, **ACCESS)
    catalog = label.partition("/")[0]
    deleted(here, key)

    over(here)
    here.go()

    assert left_of(here, key, catalog, "deleted_i1_handbook") == NOTHING


@pytest.mark.postgres
def test_an_index_that_never_held_a_document_leaves_nothing_to_have_back(here: Place) -> None:
    key = here.ready(**DELETE)

    assert deleted(here, key) == []

    assert here.sql("SELECT 1 FROM polaris.indexes") == []


@pytest.mark.postgres
def test_put_aside_with_a_crash_between_any_two_steps_all_ends_as_without(here: Place) -> None:
    done = 0
    while True:
        key, label = filled(here, **ACCESS)
        here.remove(key)
        here.objects.look()
        steps = here.decide(key).steps
        here.act(key, steps[:done])
        here.restart()
        here.go()
        here.go()
        assert here.objects.get(key) is None
        assert here.objects.secret("team", "handbook-reporting") is None
        assert [found["id"] for found in listed(here)] == [label]
        number = label.partition("/")[2]
        assert here.one(f"SELECT count(*) FROM deleted_i{number}_handbook.g1_chunks") == 40
        assert (
            here.sql("SELECT 1 FROM polaris.credentials WHERE owner LIKE 'index/%' AND state <> 'revoked'")
            == []
        )
        over(here)
        here.go()
        assert here.sql("SELECT 1 FROM polaris.indexes") == []
        if done == len(steps):
            break
        done += 1

    assert done == 4  # The name, the schema, the login, the object.


@pytest.mark.postgres
def test_what_others_built_on_it_holds_up_no_object_and_no_other_tombstone(here: Place) -> None:
    key, _ = filled(here)
    other = here.ready("other", **DELETE)
    here.fill(other, 3)
    schema = here.schema(key)
    here.sql(f"CREATE SCHEMA theirs; CREATE VIEW theirs.report AS SELECT * FROM {schema}.documents")
    here.remove(other)
    deleted(here, key)
    assert here.objects.get(key) is None

    over(here)
    here.go()
    assert here.sql("SELECT name, state FROM polaris.indexes") == [("handbook@1", "deleting")]
    assert here.one("SELECT count(*) FROM theirs.report") == 40

    here.sql("DROP SCHEMA theirs CASCADE")
    here.go()
    assert here.sql("SELECT 1 FROM polaris.indexes") == []


@pytest.mark.postgres
def test_what_went_with_its_finalizer_taken_away_is_put_aside_as_well(here: Place) -> None:
    key, label = filled(here, undeleteSeconds=3600)
    here.stop()
    here.remove(key)
    (here.data / "objects" / "PolarisIndex" / "team" / "handbook.json").unlink()
    here.start()
    here.go()

    (found,) = listed(here)

    assert found["id"] == label
    assert (
        here.one("SELECT extract(epoch FROM drop_after - released_at)::integer FROM polaris.indexes") == 3600
    )


@pytest.mark.postgres
def test_a_label_of_another_namespace_has_nothing_back(here: Place) -> None:
    key, label = filled(here)
    deleted(here, key)
    manifest = index_manifest(**DELETE, annotations={ADOPT_ANNOTATION: label})
    manifest["metadata"]["namespace"] = "thieves"
    thief = here.put(manifest)

    status = here.go(thief)

    assert said_of(status, "Stalled")["reason"] == Reason.NOT_OWNER
    assert [found["id"] for found in listed(here)] == [label]


@pytest.mark.postgres
def test_suspended_nothing_changes_hands(here: Place) -> None:
    key, old = filled(here)
    deleted(here, key)
    here.ready(**DELETE)
    young = here.resource(key).status["catalog"]

    here.put(index_manifest(**DELETE, suspend=True, annotations={ADOPT_ANNOTATION: old}))
    status = here.go(key)

    assert said_of(status, "Stalled")["reason"] == Reason.SUSPENDED
    assert old in said_of(status, "Stalled")["message"]
    assert here.sql("SELECT name, state FROM polaris.indexes ORDER BY id") == [
        ("handbook@1", "released"),
        ("handbook", "active"),
    ]
    assert young.endswith("/2")


@pytest.mark.postgres
def test_an_open_session_of_a_reader_sees_nothing_from_the_moment_on(here: Place) -> None:
    key, _ = filled(here, **ACCESS)
    secret = here.objects.secret("team", "handbook-reporting")
    assert secret is not None
    here.remove(key)
    here.objects.look()
    steps = here.decide(key).steps

    session = servers.connect(secret.data["uri"])
    try:
        with session.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {here.schema(key)}.documents")
            here.act(key, steps[:2])  # Its login lives: Vault may be sealed.
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute("SELECT count(*) FROM deleted_i1_handbook.documents")
    finally:
        session.close()


# --- without I/O

OF = spec(deletionPolicy="Delete")
WORLD = replace(made(OF, rows=5), clock=5)


def gone(seconds_ago: int = 1) -> dict[str, Any]:
    return {"deleted_at": NOW - timedelta(seconds=seconds_ago), "finalizers": (FINALIZER,)}


@pytest.mark.unit
def test_a_vault_that_is_sealed_does_not_hold_the_object() -> None:
    side, asked = Index(), resource(OF, **gone())
    sealed = Plan(blocked=Blocked(Reason.VAULT_UNAVAILABLE, "sealed", stalled=False))

    decided = side._plan_deletion(asked, OF, IndexAndLogins(WORLD), sealed, NOW)
    at_once = spec(deletionPolicy="Delete", undeleteSeconds=0)
    waits = side._plan_deletion(asked, at_once, IndexAndLogins(WORLD), sealed, NOW)

    assert decided.steps[-1].action == SetFinalizer(present=False)
    assert waits.steps == ()


@pytest.mark.unit
def test_after_its_deadline_only_the_catalog_is_written_before_the_object_goes() -> None:
    decided = plan_index(resource(OF, **gone(601)), OF, WORLD, NOW)

    assert len(decided.steps) == 2
    assert "ALTER SCHEMA" not in statements(decided.steps[0].action)
    assert decided.steps[-1].action == SetFinalizer(present=False)


@pytest.mark.unit
def test_the_event_says_how_it_is_had_back() -> None:
    first = plan_index(resource(OF, **gone()), OF, WORLD, NOW).steps[0]

    assert first.told
    assert f"{ADOPT_ANNOTATION}: {WORLD.catalog}/{WORLD.number}" in first.sentence


TOMB = row(
    OF,
    state="released",
    name="handbook@7",
    uid="",
    schema="deleted_i7_handbook",
    released_at=NOW,
    drop_after=NOW + timedelta(hours=1),
)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("tomb", "others", "expected"),
    [
        (TOMB, 0, (False, False)),
        (replace(TOMB, drop_after=NOW), 0, (True, True)),
        (replace(TOMB, logins=True), 0, (True, False)),
        (replace(TOMB, schema="polaris_i7_handbook"), 0, (True, False)),
        (replace(TOMB, drop_after=None), 0, (False, False)),
        (replace(TOMB, state="active"), 0, (False, False)),
        (TOMB, TOMBSTONES_KEPT - 1, (False, False)),
        (TOMB, TOMBSTONES_KEPT, (True, True)),
    ],
    ids=[
        "waits",
        "over",
        "has a login left",
        "can still be looked into",
        "was kept by Retain",
        "was had back",
        "the last that is kept",
        "one too many",
    ],
)
def test_a_tombstone_is_looked_at_when_there_is_something_to_do(
    tomb: Any, others: int, expected: tuple[bool, bool]
) -> None:
    later = [replace(TOMB, number=100 + n, drop_after=NOW + timedelta(hours=2)) for n in range(others)]
    assert needs_collecting(tomb, [tomb, *later], NOW) == expected


@pytest.mark.unit
def test_while_logins_cannot_be_ended_nothing_is_removed_and_what_is_open_is_shut() -> None:
    world = replace(WORLD, row=replace(TOMB, schema="polaris_i7_handbook"))

    assert world.row is not None
    shut = plan_collection(world, world.row, NOW, logins=None)
    due = plan_collection(world, world.row, NOW, logins=None, due=True)

    assert ["ALTER SCHEMA" in statements(step.action) for step in shut.steps] == [True]
    assert due.steps == ()


@pytest.mark.unit
def test_what_was_never_made_is_not_kept() -> None:
    world = without(WORLD, relations=tuple(WORLD.relations))

    assert "drop_after" not in "".join(
        statements(step.action) for step in plan_index(resource(OF, **gone()), OF, world, NOW).steps
    )
