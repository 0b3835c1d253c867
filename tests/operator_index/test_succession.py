"""What is decided about generations beside the one that serves."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from operator_index.worlds import (
    NOW,
    embedding,
    generation,
    made,
    resource,
    row,
    spec,
    vector_name,
    with_another,
    with_relation,
    without,
)
from polaris import names
from polaris.spec import PolarisIndexSpec
from polaris.status import Reason
from polaris_operator.plan.index import plan_index
from polaris_operator.steps import BuildIndex, Execute, MeasureRecall, Plan, Step, Verify, statements
from polaris_operator.world.index import IndexWorld, Model, Verified

pytestmark = pytest.mark.unit

OLD = spec()
NEW = spec(embedding=embedding(model="other", dimension=16))
THIRD = spec(embedding=embedding(model="third", dimension=4))
OFFERED = frozenset({Model("default", "e5", "1", 8), Model("default", "other", "1", 16)})
RIGHT = Verified(
    settled=500, documents=500, missing=0, surplus=0, chunks=900, claimed=900, sampled=200, differing=0
)
MINUTE = timedelta(minutes=1)


def plan(world: IndexWorld, of: PolarisIndexSpec = NEW, **changes: Any) -> Plan:
    return plan_index(resource(of, generation=2, **changes), of, world, NOW)


def serving(**changes: Any) -> IndexWorld:
    """An index that serves the old model, while somebody embeds with the new one."""
    return made(OLD, rows=500, models=OFFERED, **changes)


def filled(**changes: Any) -> IndexWorld:
    """The same, with a generation of the new model that is level, indexed and as good as the first."""
    found = {"recall_rows": 500, "verified_at": NOW - MINUTE / 10, "verified": RIGHT, "valid_since": None}
    return with_another(serving(), NEW, rows=500, **{**found, **changes})


def switched(**changes: Any) -> IndexWorld:
    """The world after the switch; `changes` are of the generation that served before."""
    world = with_another(serving(), NEW, rows=500, recall_rows=500)
    before = generation(OLD, rows=500, superseded_at=NOW - MINUTE, **changes)
    world = replace(
        world,
        row=row(NEW, serving=2, object_generation=2),
        generations=(before, world.generations[1]),
    )
    reads = frozenset({names.DOCUMENTS, names.VERSIONS, "g2_chunks"})
    return with_relation(world, names.CHUNKS_VIEW, depends_on=reads)


def superseded_at(world: IndexWorld, when: Any) -> IndexWorld:
    before, after = world.generations
    return replace(world, generations=(replace(before, superseded_at=when), after))


def text(steps: tuple[Step, ...]) -> str:
    return "\n".join(statements(step.action) for step in steps)


def only(steps: tuple[Step, ...]) -> Step:
    (step,) = steps
    return step


# --- it is made and filled


@pytest.mark.parametrize(
    "of",
    [
        NEW,
        spec(embedding=embedding(type="vector")),
        spec(chunking={"maxTokens": 100, "overlapTokens": 10}),
        spec(embedding=embedding(revision="2")),
    ],
    ids=["model", "type", "chunking", "revision"],
)
def test_what_changes_the_content_makes_tables_beside_those_that_serve(of: PolarisIndexSpec) -> None:
    models = OFFERED | {Model("default", "e5", "2", 8)}
    decided = plan(replace(serving(), models=models), of)

    made_ = only(decided.steps)
    assert 'CREATE TABLE "polaris_i7_handbook"."g2_chunks"' in text(decided.steps)
    assert "INDEX" not in text(decided.steps)  # Rows go in faster without.
    assert "'loading'" in text(decided.steps)
    assert made_.destructive is False
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.FILLING, False)


def test_no_number_is_given_twice_since_callers_name_generations_by_it() -> None:
    decided = plan(serving(row=row(OLD, last_generation=4)))
    assert '"g5_chunks"' in text(decided.steps)
    assert "last_generation = 5" in text(decided.steps)


def test_where_there_is_nothing_to_fill_it_with_it_is_made_with_its_indexes() -> None:
    decided = plan(made(OLD, models=OFFERED))

    assert f'CREATE INDEX "{vector_name(NEW, 2)}"' in text(decided.steps)
    assert "'serving'" in text(decided.steps)


def test_a_model_that_nobody_embeds_with_is_said_before_anything_is_made() -> None:
    decided = plan(replace(serving(), models=frozenset({Model("default", "e5", "1", 8)})))

    assert decided.steps == ()
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.MODEL_UNAVAILABLE, True)
    assert '"g2_chunks"' in text(decided.withheld)
    assert "embed the stored documents" in "".join(step.sentence for step in decided.withheld)


def test_suspended_it_is_shown_and_not_made() -> None:
    of = spec(embedding=embedding(model="other", dimension=16), suspend=True)
    decided = plan(serving(), of)

    assert decided.steps == decided.aside == ()
    assert decided.blocked is not None
    assert decided.blocked.reason == Reason.SUSPENDED
    assert '"g2_chunks"' in text(decided.withheld)


def test_while_it_is_filled_its_progress_is_told_and_the_one_that_serves_is_looked_after() -> None:
    world = filled(state="loading", vector_index=None, behind=1000, verified_at=None, verified=None)
    world = with_relation(without(world, indexes=(vector_name(NEW, 2),)), "g2_applied", rows=200)

    decided = plan(world)
    assert decided.steps == ()
    assert decided.blocked is not None
    assert ": 40%" in decided.blocked.message

    repaired = plan(without(world, relations=("documents",)))
    assert "Make the view documents" in repaired.steps[0].sentence


def test_documents_that_fail_are_waited_for_until_they_are_given_up() -> None:
    decided = plan(filled(behind=1, failing=1))
    assert decided.steps == ()
    assert decided.blocked is not None
    assert "1 documents that failed are tried again" in decided.blocked.message


def test_filled_it_is_indexed_in_one_scan_while_workers_leave_it_alone() -> None:
    world = filled(state="loading", vector_index=None, behind=3, verified_at=None, verified=None)
    decided = plan(without(world, indexes=(vector_name(NEW, 2),)))

    stand_still, build = decided.steps
    assert "number = 2" in statements(stand_still.action)
    assert "state = 'building'" in statements(stand_still.action)
    assert isinstance(build.action, BuildIndex)
    assert "CONCURRENTLY" not in build.action.statement
    assert "number = 2" in build.action.statement


def test_a_candidate_that_lost_its_tables_is_given_up_and_made_anew() -> None:
    decided = plan(without(filled(), relations=("g2_applied",)))

    assert "DELETE FROM polaris.generations" in text(decided.steps)
    assert "number = 2" in text(decided.steps)


# --- gates


def test_it_is_compared_with_the_stored_documents_before_it_serves() -> None:
    decided = plan(filled(verified_at=None, verified=None))
    assert only(decided.steps).action == Verify(7, 2, 1, "polaris_i7_handbook")


def test_what_was_compared_long_ago_is_compared_again() -> None:
    decided = plan(filled(verified_at=NOW - MINUTE))
    assert isinstance(only(decided.steps).action, Verify)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"missing": 3}, "of 500 documents 3 are missing"),
        ({"surplus": 2}, "2 deleted ones are left"),
        ({"chunks": 899}, "there are 899 chunks, and 900 were written down"),
        ({"differing": 1}, "1 of 200 chunks are not of the stored text"),
    ],
)
def test_a_gate_that_fails_is_told_with_its_figures_and_nothing_changes(
    found: dict[str, int], said: str
) -> None:
    decided = plan(filled(verified=replace(RIGHT, **found)))

    assert decided.steps == ()
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.GATE_FAILED, True)
    assert said in decided.blocked.message


def test_recall_below_the_promise_is_a_gate_too() -> None:
    decided = plan(filled(recall=0.91))

    assert decided.steps == ()
    assert decided.blocked is not None
    assert decided.blocked.reason == Reason.GATE_FAILED
    assert "finds 91.0% of the exact top 10 by its own rows; promised: 98%" in decided.blocked.message


def test_recall_is_measured_before_the_switch() -> None:
    action = only(plan(filled(recall=None, recall_at=None, recall_rows=None)).steps).action
    assert isinstance(action, MeasureRecall)
    assert action.generation == 2


# --- the switch, and the way back


def test_one_transaction_moves_the_pointer_and_the_view() -> None:
    switch = only(plan(filled()).steps)

    assert isinstance(switch.action, Execute)
    ran = statements(switch.action)
    assert "serving = 2" in ran
    assert '"model": "other"' in ran
    assert "superseded_at = now()" in ran
    assert 'FROM "polaris_i7_handbook"."g2_chunks"' in ran
    assert 'GRANT SELECT ON "polaris_i7_handbook"."chunks"' in ran
    lock, shows = switch.action.guards[1:]
    assert "pg_advisory_xact_lock" in lock
    assert '"g1_applied"' in shows
    assert '"g2_applied"' in shows
    assert switch.destructive is False


def test_after_the_switch_nothing_is_left_to_be_done_until_the_way_back_is_over() -> None:
    decided = plan(switched())
    assert (decided.steps, decided.aside, decided.blocked) == ((), (), None)
    assert decided.look_again_seconds == 3600 - 60


def test_the_old_spec_again_is_a_switch_and_nothing_else() -> None:
    verified = {"verified_at": NOW, "verified": RIGHT}
    decided = plan(switched(**verified), OLD)

    switch = only(decided.steps)
    assert switch.sentence == "Switch back from generation 2 to 1"
    assert "serving = 1" in statements(switch.action)


@pytest.mark.parametrize("recall", [0.5, None], ids=["below the promise", "not measured"])
def test_a_way_back_waits_for_no_recall(recall: float | None) -> None:
    verified = {"verified_at": NOW, "verified": RIGHT}
    decided = plan(switched(recall=recall, recall_at=None, **verified), OLD)

    assert "Switch back from generation 2 to 1" in only(decided.steps).sentence


def test_a_previous_generation_goes_when_its_time_is_over_and_its_tables_after_it() -> None:
    over = plan(superseded_at(switched(), NOW - 61 * MINUTE))
    assert over.steps == ()
    given_up = only(over.aside)
    assert "DELETE FROM polaris.generations" in statements(given_up.action)
    assert "number = 1" in statements(given_up.action)

    world = switched()
    gone = plan(replace(world, generations=world.generations[1:]))
    assert statements(only(gone.aside).action) == (
        'DROP TABLE "polaris_i7_handbook"."g1_applied", "polaris_i7_handbook"."g1_chunks"'
    )


def test_where_no_way_back_is_asked_for_it_stays_as_long_as_queries_may_use_it() -> None:
    of = spec(embedding=embedding(model="other", dimension=16), change={"retainPreviousSeconds": 0})
    world = replace(switched(), row=row(of, serving=2, object_generation=2))

    assert plan(superseded_at(world, NOW - timedelta(seconds=20)), of).aside == ()
    assert len(plan(superseded_at(world, NOW - timedelta(seconds=40)), of).aside) == 1


def test_the_index_of_the_previous_generation_is_kept_too() -> None:
    decided = plan(without(switched(), indexes=(vector_name(OLD, 1),)))
    assert any(vector_name(OLD, 1) in step.sentence for step in decided.steps)


# --- changes of mind


def test_a_candidate_that_nobody_wants_any_more_is_given_up() -> None:
    decided = plan(filled(), OLD)
    assert "CREATE" not in text(decided.steps)
    assert decided.blocked is None
    assert "Give generation 2 up" in only(decided.aside).sentence


def test_another_change_makes_another_candidate_with_a_number_of_its_own() -> None:
    world = filled()
    decided = plan(replace(world, models=world.models | {Model("default", "third", "1", 4)}), THIRD)

    assert '"g3_chunks"' in text(decided.steps)
    assert "Give generation 2 up" in only(decided.aside).sentence


def test_a_candidate_of_the_same_content_takes_the_changed_index_on() -> None:
    of = spec(embedding=embedding(model="other", dimension=16), index={"type": "hnsw", "m": 8})
    decided = plan(filled(), of)

    (build,) = decided.steps
    assert isinstance(build.action, BuildIndex)
    assert build.action.index == vector_name(of, 2)
