"""Whatever was left half done or damaged, and whatever the spec says now: it ends where it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from operator_index.place import MAIN, Place, index_manifest, place_in, said_of
from operator_index.test_passes import DRIFT, damage
from operator_index.worlds import (
    NOW,
    OTHERS,
    OURS,
    attribute,
    embedding,
    generation,
    hnsw,
    live,
    made,
    nothing,
    resource,
    row,
    spec,
    vector_name,
    with_index,
    without,
)
from polaris.names import FINALIZER
from polaris.spec import PolarisIndexSpec
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.conditions.index import index_status
from polaris_operator.plan.index import plan_index
from polaris_operator.steps import BuildIndex, statements
from polaris_operator.world.index import (
    BuildFailure,
    GenerationRow,
    IndexAndLogins,
    IndexRow,
    IndexWorld,
    Model,
    build_lock,
)
from soak import times

LANG = {"name": "lang", "type": "keyword"}
YEAR = {"name": "year", "type": "integer"}


# --- every crash point


def crash_after_each_step(place: Place, name: str, begin: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Stop after 0, 1, 2, … steps, go on as another process; return what each came to."""
    found: list[dict[str, Any]] = []
    while True:
        key = begin(f"{name}{len(found)}")
        place.objects.look()
        steps = place.decide(key).steps
        place.act(key, steps[: len(found)])
        place.restart()
        place.go_until(key, "Ready")
        assert place.decide(key).steps == ()
        found.append(place.fingerprint(key))
        if len(found) > len(steps):
            return found


def same(found: list[dict[str, Any]]) -> bool:
    """Whether all came to the same, but for the names of the objects."""
    first = [{**one, "index": [values[1:] for values in one["index"]]} for one in found]
    return all(one == first[0] for one in first)


@pytest.mark.postgres
def test_a_crash_between_any_two_steps_of_making_it_is_mended(here: Place) -> None:
    def begin(name: str) -> Any:
        return here.put(index_manifest(name, attributes=[LANG]))

    found = crash_after_each_step(here, "made", begin)

    assert len(found) > 9
    assert same(found)


@pytest.mark.postgres
def test_a_crash_between_any_two_steps_of_changing_it_is_mended(here: Place) -> None:
    def begin(name: str) -> Any:
        key = here.ready(name, attributes=[LANG])
        changed = {"index": {"m": 8, "efConstruction": 32}, "embedding": embedding(metric="l2")}
        return here.put(index_manifest(name, attributes=[YEAR], **changed)) and key

    found = crash_after_each_step(here, "changed", begin)

    assert len(found) > 3
    assert same(found)


# --- whatever was damaged, whatever is asked for

EDITS: dict[str, Any] = {
    "attributes": st.lists(st.sampled_from([LANG, YEAR]), max_size=2, unique_by=lambda a: a["name"]),
    "index": st.sampled_from([{"type": "hnsw"}, {"type": "exact"}, {"m": 4, "efConstruction": 16}]),
    "embedding": st.sampled_from([embedding(), embedding(metric="l2"), embedding(metric="ip")]),
    "search": st.sampled_from([{"targetRecallPercent": 90}, {"targetRecallPercent": 98}]),
}


@pytest.fixture(scope="module")
def long_lived(postgres: LocalPostgres) -> Iterator[Place]:
    with place_in(postgres) as place:
        place.go(MAIN)
        place.offer()
        yield place


@pytest.fixture(scope="module")
def reference(postgres: LocalPostgres) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """What an index of this spec looks like when it is made at once."""
    with place_in(postgres) as place:
        place.go(MAIN)
        place.offer()
        known: dict[str, dict[str, Any]] = {}

        def look_up(changes: dict[str, Any]) -> dict[str, Any]:
            if (text := repr(sorted(changes.items()))) not in known:
                key = place.ready(f"like{len(known)}", **changes)
                known[text] = place.fingerprint(key)
            return known[text]

        yield look_up


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out the name, and the order in which an attribute's indexes came about."""
    return {**found, "index": [values[1:] for values in found["index"]]}


@pytest.mark.postgres
@pytest.mark.soak
@example(harm=["a view dropped", "a view with a column more"], changes={}, rows=0)
@given(
    harm=st.lists(st.sampled_from(sorted(DRIFT)), max_size=3, unique=True),
    changes=st.fixed_dictionaries({}, optional=EDITS),
    rows=st.sampled_from([0, 30]),
)
@settings(
    max_examples=times(10, 200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_was_damaged_and_whatever_is_asked_for_it_comes_true(
    long_lived: Place,
    reference: Callable[[dict[str, Any]], dict[str, Any]],
    harm: list[str],
    changes: dict[str, Any],
    rows: int,
) -> None:
    place = long_lived
    key = place.ready("subject")
    try:
        if rows:
            place.fill(key, rows)
        for one in harm:
            with suppress(psycopg2.Error):  # What another harm took away can't be harmed.
                damage(place, key, one)
        place.put(index_manifest("subject", **changes))
        place.go_until(key, "Ready")
        # What was replaced may be dropped once no query can be using it.
        place.sql("UPDATE polaris.indexes SET updated_at = now() - interval '1 hour'")
        place.go_until(key, "Ready")

        decided = place.decide(key)
        assert (decided.steps, decided.aside, decided.withheld, decided.blocked) == ((), (), (), None)
        assert comparable(place.fingerprint(key)) == comparable(reference(changes))
    finally:
        place.put(index_manifest("subject", deletionPolicy="Delete", undeleteSeconds=0))
        place.go(key)
        place.remove(key)
        place.until(key, lambda _: place.objects.get(key) is None)


# --- whatever the world looks like, without any PostgreSQL

SPECS = st.builds(
    spec,
    embedding=st.builds(
        embedding,
        metric=st.sampled_from(["cosine", "l2", "ip"]),
        type=st.sampled_from(["halfvec", "vector"]),
        model=st.sampled_from(["e5", "e5", "other"]),
    ),
    index=st.sampled_from([{"type": "hnsw"}, {"type": "exact"}, {"m": 4, "efConstruction": 16}]),
    attributes=st.lists(st.sampled_from([LANG, YEAR]), max_size=2, unique_by=lambda a: a["name"]),
    drift=st.sampled_from(["Repair", "Report"]),
    deletionPolicy=st.sampled_from(["Retain", "Delete"]),
    suspend=st.booleans(),
)


_ODDS = st.booleans()


@st.composite
def worlds(draw: st.DrawFn) -> IndexWorld:
    """Anything between nothing and an index that was made for some spec, in any state of repair."""
    of = draw(SPECS)
    world = draw(st.sampled_from([nothing(), made(of), made(of, rows=20_000)]))
    relations = draw(st.lists(st.sampled_from(sorted(world.relations) or ["x"]), max_size=3))
    indexes = draw(st.lists(st.sampled_from(sorted(world.indexes) or ["x"]), max_size=3))
    world = without(without(world, relations=tuple(relations)), indexes=tuple(indexes))
    if draw(_ODDS):
        world = with_index(world, vector_name(spec()), hnsw(spec(), valid=draw(_ODDS)))
    if draw(_ODDS):
        world = with_index(world, "g1_by_lang_keyw", attribute("lang", valid=draw(_ODDS)))
    if draw(_ODDS):
        world = replace(world, **live(vector_name(spec()), concurrently=draw(_ODDS)))
    if bool(world.generations) and draw(_ODDS):
        drawn: GenerationRow = draw(generations(of))
        world = replace(world, generations=(drawn,))
    if draw(_ODDS):
        failure = BuildFailure("it failed", NOW, draw(st.integers(1, 20)))
        world = replace(world, failures={vector_name(spec()): failure})
    if world.row is not None:
        world = replace(world, row=draw(rows_of(of)))
    return replace(world, models=world.models | {Model("default", "other", "1", 8)})


@st.composite
def generations(draw: st.DrawFn, of: PolarisIndexSpec) -> GenerationRow:
    return generation(
        of,
        state=draw(st.sampled_from(["serving", "loading", "building"])),
        load_requested_at=draw(st.sampled_from([None, NOW, NOW - timedelta(days=1)])),
        vector_index=draw(st.sampled_from([None, vector_name(spec())])),
    )


@st.composite
def rows_of(draw: st.DrawFn, of: PolarisIndexSpec) -> IndexRow:
    found = row(
        of,
        installation=draw(st.sampled_from([OURS, OURS, OTHERS])),
        state=draw(st.sampled_from(["active", "active", "released", "deleting"])),
        serving=draw(st.sampled_from([1, 1, None])),
    )
    return found if found.serving else replace(found, spec=None)


@pytest.mark.unit
@pytest.mark.soak
@given(world=worlds(), of=SPECS, deleted=st.booleans())
@settings(max_examples=times(100, 10_000), deadline=None)
def test_of_any_world_something_sensible_is_decided(
    world: IndexWorld, of: PolarisIndexSpec, *, deleted: bool
) -> None:
    asked = resource(of, deleted_at=NOW if deleted else None, finalizers=(FINALIZER,))

    plan = plan_index(asked, of, world, NOW)

    every = (*plan.steps, *plan.withheld, *plan.aside)
    for step in every:
        text = statements(step.action)
        assert "IF NOT EXISTS" not in text
        assert "CASCADE" not in text
        assert step.sentence
        if "DROP TABLE" in text and world.row is not None and world.row.spec is not None:
            assert step.destructive
    begun = [step.action for step in plan.steps if isinstance(step.action, BuildIndex)]
    assert len(begun) <= 1
    assert not any(build_lock(build.schema, build.index) in world.locks for build in begun)
    if of.suspend and not deleted:
        assert not any("CREATE" in statements(step.action) for step in plan.steps)
    if world.row is not None and world.row.installation != OURS and world.row.state == "active":
        assert not any("UPDATE" in statements(s.action) or "DROP" in statements(s.action) for s in plan.steps)


@pytest.mark.unit
@pytest.mark.soak
@given(world=worlds(), of=SPECS)
@settings(max_examples=times(100, 10_000), deadline=None)
def test_of_any_world_the_conditions_agree_with_each_other(world: IndexWorld, of: PolarisIndexSpec) -> None:
    asked = resource(of, finalizers=(FINALIZER,) if of.deletion_policy == "Delete" else ())
    plan = plan_index(asked, of, world, NOW)

    status = index_status(asked, of, IndexAndLogins(world), plan, NOW)

    said = {condition.type: condition.status for condition in status.conditions}
    assert list(said)[:4] == ["Ready", "Serving", "CredentialsFresh", "RecallMet"]
    if said["Ready"] == "True":
        assert said["Serving"] == "True"
        assert not plan.steps
        assert not plan.withheld
        assert "Reconciling" not in said
        assert "Stalled" not in said
    elif plan.steps or plan.blocked:
        assert ("Reconciling" in said) != ("Stalled" in said)
    assert all(condition.observed_generation == 1 for condition in status.conditions)
    assert said_of(status.model_dump(mode="json", by_alias=True), "Ready")["message"]
