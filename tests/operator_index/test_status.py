from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from operator_index.worlds import (
    CATALOG,
    MODEL,
    NOW,
    OTHERS,
    embedding,
    hnsw,
    live,
    made,
    nothing,
    resource,
    row,
    spec,
    vector_name,
    with_generation,
    with_index,
    without,
)
from polaris.spec import PolarisIndexSpec
from polaris.status import IndexStatus, Reason
from polaris_operator.conditions.index import index_status
from polaris_operator.plan.approval import plan_hash
from polaris_operator.plan.index import plan_index
from polaris_operator.world.credentials import CredentialsWorld
from polaris_operator.world.index import Build, IndexAndLogins, IndexWorld

pytestmark = pytest.mark.unit

SPEC = spec()
VECTOR = vector_name(SPEC)
OTHER_MODEL = spec(embedding=embedding(model="other"))
OFFERED = frozenset({MODEL, replace(MODEL, model="other")})
READERS = spec(access=[{"name": "reporting", "secretName": "r"}])


def status(world: IndexWorld, of: PolarisIndexSpec = SPEC, **changes: Any) -> IndexStatus:
    asked = resource(of, **changes)
    credentials = CredentialsWorld("index/7", "uid-1", CATALOG) if of.access else None
    return index_status(asked, of, IndexAndLogins(world, credentials), plan_index(asked, of, world, NOW), NOW)


def said(found: IndexStatus) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in found.conditions}


def health(found: IndexStatus, generation: int = 1) -> str:
    """What kstatus makes of it, and so Flux and `kubectl wait`."""
    conditions = {condition.type: condition.status for condition in found.conditions}
    if found.observed_generation != generation or conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "Current" if conditions["Ready"] == "True" else "InProgress"


BUILDING = with_generation(without(made(SPEC, rows=5, **live(VECTOR)), indexes=(VECTOR,)), vector_index=None)


@pytest.mark.parametrize(
    ("world", "of", "ready", "serving", "healthy"),
    [
        (made(SPEC), SPEC, Reason.READY, "True", "Current"),
        (nothing(), SPEC, Reason.PROVISIONING, "False", "InProgress"),
        (nothing(models=frozenset()), SPEC, Reason.MODEL_UNAVAILABLE, "False", "Failed"),
        (nothing(roles={}), SPEC, Reason.DATABASE_NOT_READY, "False", "InProgress"),
        (made(SPEC, row=row(SPEC, installation=OTHERS)), SPEC, Reason.NOT_OWNER, "False", "Failed"),
        (made(SPEC, row=row(SPEC, state="deleting")), SPEC, Reason.DELETING, "False", "InProgress"),
        (made(SPEC), OTHER_MODEL, Reason.MODEL_UNAVAILABLE, "True", "Failed"),
        (made(SPEC, rows=5, models=OFFERED), OTHER_MODEL, Reason.FILLING, "True", "InProgress"),
        (BUILDING, SPEC, Reason.BUILDING_INDEX, "True", "InProgress"),
        (
            with_generation(without(made(SPEC), indexes=(VECTOR,)), state="loading", load_requested_at=NOW),
            SPEC,
            Reason.LOADING,
            "True",
            "InProgress",
        ),
        (without(made(SPEC), relations=("chunks",)), SPEC, Reason.VIEW_MISSING, "True", "InProgress"),
        (without(made(SPEC), relations=("stored_versions",)), SPEC, Reason.DRIFTED, "False", "Failed"),
        (
            without(made(SPEC), relations=("chunks",)),
            spec(drift="Report"),
            Reason.DRIFTED,
            "True",
            "Failed",
        ),
        (without(made(SPEC), relations=("chunks",)), spec(suspend=True), Reason.SUSPENDED, "True", "Failed"),
        (made(READERS), READERS, Reason.ROTATING, "True", "InProgress"),
    ],
    ids=[
        "as it should be",
        "nothing there yet",
        "nobody embeds with the model",
        "the database is not ready",
        "another installation's",
        "a predecessor is being removed",
        "nobody embeds with the model of another generation",
        "another generation is filled",
        "an index is being built",
        "a bulk load",
        "a view is gone",
        "the documents are gone",
        "drift that is reported",
        "suspended",
        "a login is not there yet",
    ],
)
def test_what_is_said_at_each_moment(
    world: IndexWorld, of: PolarisIndexSpec, ready: Reason, serving: str, healthy: str
) -> None:
    found = status(world, of)

    assert said(found)["Ready"] == ("True" if ready == Reason.READY else "False", ready)
    assert said(found)["Serving"][0] == serving
    assert health(found) == healthy


def test_reconciling_and_stalled_are_there_only_while_they_are_true() -> None:
    assert list(said(status(made(SPEC)))) == ["Ready", "Serving", "CredentialsFresh", "RecallMet"]


def test_a_time_of_transition_stays_while_the_status_does() -> None:
    before = status(made(SPEC))
    earlier = [
        {"type": c.type, "status": c.status, "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for c in before.conditions
    ]

    kept = status(made(SPEC), status={"conditions": earlier})
    changed = status(BUILDING, status={"conditions": earlier})

    assert {c.last_transition_time.year for c in kept.conditions} == {2026}
    assert {c.last_transition_time.month for c in kept.conditions} == {1}
    assert next(c for c in changed.conditions if c.type == "Ready").last_transition_time == NOW


def test_what_serves_is_told() -> None:
    found = status(made(SPEC, rows=5, query_url="http://polaris:8080/"))

    assert found.catalog == f"{CATALOG}/7"
    assert found.query_url == "http://polaris:8080/v1/indexes/team/handbook"
    assert found.active is not None
    assert (found.active.generation, found.active.rows, found.active.model) == (1, 5, "e5")
    assert (found.active.table, found.active.index) == ("polaris_i7_handbook.g1_chunks", VECTOR)
    assert found.candidate is None
    assert found.plan is None


def test_of_somebody_elses_index_nothing_is_told() -> None:
    found = status(made(SPEC, row=row(SPEC, installation=OTHERS), query_url="http://polaris:8080/"))

    assert (found.catalog, found.query_url, found.active, found.verification) == (None,) * 4


def test_a_build_tells_how_far_it_is_and_when_it_may_be_done() -> None:
    found = status(BUILDING).candidate

    assert found is not None
    assert (found.progress, found.done, found.total) == ("60%", 61, 100)
    assert found.phase == "building index: loading tuples"
    assert found.estimated_completion is not None
    assert NOW + timedelta(seconds=39) < found.estimated_completion < NOW + timedelta(seconds=50)


def test_a_build_tells_who_holds_it_up() -> None:
    build: Build = BUILDING.builds[0]
    held = replace(
        BUILDING, builds=(replace(build, blocked_by=("psql (pid 9, idle since 11:00)",), total=0),)
    )

    found = status(held)

    assert found.candidate is not None
    assert found.candidate.blocked_by == "psql (pid 9, idle since 11:00)"
    assert found.candidate.estimated_completion is None
    assert "waiting for psql" in next(c.message for c in found.conditions if c.type == "Ready")


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({"recall": 0.984, "recall_rows": 5000}, ("True", Reason.MEASURED)),
        ({"recall": 0.9799, "recall_rows": 5000}, ("False", Reason.BELOW_TARGET)),
        ({"recall": None, "recall_rows": None}, ("Unknown", Reason.NOT_MEASURED)),
        ({"recall": None, "vector_index": None}, ("True", Reason.MEASURED)),
    ],
    ids=["kept", "missed by a hair", "not measured", "exact"],
)
def test_the_promise_of_recall(changes: dict[str, Any], met: tuple[str, str]) -> None:
    assert said(status(with_generation(made(SPEC, rows=5000), **changes)))["RecallMet"] == met


def test_recall_is_rounded_down() -> None:
    found = status(with_generation(made(SPEC, rows=5000), recall=0.9996)).verification

    assert found is not None
    assert found.recall_percent == "99.9"


def test_the_index_is_used_where_the_planner_says_so() -> None:
    for canary, used in ((VECTOR, True), (None, False), ("other", False)):
        found = status(made(SPEC, rows=5000, canary=canary)).verification
        assert found is not None
        assert found.index_used == used


def test_a_plan_is_named_by_what_it_does_and_not_by_when_or_how_much() -> None:
    of = OTHER_MODEL
    few, many = made(SPEC, rows=5), made(SPEC, rows=50_000, now=NOW + timedelta(days=1))
    other = spec(embedding=embedding(model="third"))

    def named(world: IndexWorld, asked: PolarisIndexSpec) -> str:
        found = status(world, asked).plan
        assert found is not None
        return found.hash

    assert named(few, of) == named(many, of)
    assert named(few, of) != named(few, other)
    assert named(few, of).startswith("sha256:")
    assert plan_hash(of, few, ()) != plan_hash(of, nothing(), ())


def test_a_plan_shows_the_exact_statements() -> None:
    found = status(nothing(), spec(suspend=True)).plan

    assert found is not None
    assert not found.destructive
    assert found.steps[0].statement.startswith("INSERT INTO polaris.indexes")
    assert any("CREATE TABLE" in step.statement for step in found.steps)


def test_an_index_that_is_being_replaced_serves_and_is_not_ready() -> None:
    of = spec(index={"m": 8, "efConstruction": 64})
    world = with_index(made(SPEC, rows=5, **live(vector_name(of))), vector_name(of), hnsw(of, valid=False))

    found = status(world, of, generation=2)

    assert said(found)["Ready"] == ("False", Reason.BUILDING_INDEX)
    assert said(found)["Serving"] == ("True", Reason.SERVING)
    assert found.active is not None
    assert found.active.index == VECTOR
    assert health(found, generation=2) == "InProgress"
