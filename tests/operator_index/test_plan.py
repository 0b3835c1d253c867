from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from operator_index.worlds import (
    CATALOG,
    NOW,
    OTHERS,
    PLACE,
    attribute,
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
    with_relation,
    without,
)
from polaris.names import ADOPT_ANNOTATION, FINALIZER
from polaris.spec import PolarisIndexSpec
from polaris.status import Reason
from polaris_operator.plan.index import plan_index
from polaris_operator.steps import (
    BuildIndex,
    Execute,
    ExecuteAlone,
    MeasureRecall,
    Plan,
    SetFinalizer,
    Step,
    statements,
)
from polaris_operator.world.index import BuildFailure, IndexWorld, Model, build_lock

pytestmark = pytest.mark.unit

SPEC = spec()
VECTOR = vector_name(SPEC)
LANG = {"name": "lang", "type": "keyword"}


def plan(world: IndexWorld, of: PolarisIndexSpec = SPEC, now: Any = NOW, **changes: Any) -> Plan:
    return plan_index(resource(of, **changes), of, world, now)


def text(of: Plan | tuple[Step, ...]) -> str:
    steps = of.steps if isinstance(of, Plan) else of
    return "\n".join(statements(step.action) for step in steps)


def reasons(of: Plan) -> list[Reason]:
    return [step.reason for step in of.steps]


# --- nothing to do, and everything to do


@pytest.mark.parametrize(
    "of",
    [
        SPEC,
        spec(index={"type": "exact"}),
        spec(attributes=[LANG, {"name": "year", "type": "integer"}]),
        spec(embedding=embedding(type="vector", metric="l2")),
    ],
    ids=["the default", "exact", "with attributes", "another type and metric"],
)
@pytest.mark.parametrize("rows", [0, 5])
def test_an_index_that_is_as_its_spec_says_needs_nothing(of: PolarisIndexSpec, rows: int) -> None:
    decided = plan(made(of, rows=rows), of)

    assert decided == Plan()


def test_a_new_index_is_claimed_first_and_served_last() -> None:
    decided = plan(nothing())

    assert decided.blocked is None
    assert reasons(decided) == [
        Reason.PROVISIONING,
        Reason.ROLE_MISSING,
        Reason.SCHEMA_MISSING,
        Reason.TABLE_MISSING,
        Reason.TABLE_MISSING,
        Reason.VIEW_MISSING,
        Reason.VIEW_MISSING,
        Reason.GRANT_MISSING,
        Reason.SPEC_CHANGED,
    ]
    assert "INSERT INTO polaris.indexes" in statements(decided.steps[0].action)
    assert "serving = 1" in statements(decided.steps[-1].action)


def test_everything_of_a_new_index_is_made_in_transactions() -> None:
    assert all(isinstance(step.action, Execute) for step in plan(nothing()).steps)


def test_nothing_that_is_made_after_the_claim_is_made_for_somebody_else() -> None:
    for step in plan(nothing()).steps[1:]:
        assert isinstance(step.action, Execute)
        assert "uid = 'uid-1'" in step.action.guards[0]


def test_if_not_exists_is_never_used() -> None:
    for world in (nothing(), without(made(SPEC, rows=5), indexes=(VECTOR,))):
        assert "IF NOT EXISTS" not in text(plan(world))


def test_what_stands_for_a_default_is_not_written_down_so_that_older_replicas_know_every_field() -> None:
    of = spec(search={"targetRecallPercent": 95, "mode": "dense"}, drift="Repair")

    written = re.search(r"SET spec = '([^']+)'", text(plan(made(of, row=row(SPEC)), of)))

    assert written is not None
    assert json.loads(written[1]) == {
        "databaseRef": {"name": "main"},
        "embedding": {"model": "e5", "dimension": 8},
        "search": {"targetRecallPercent": 95, "mode": "dense"},
    }


def test_the_groups_of_logins_are_waited_for() -> None:
    decided = plan(nothing(roles={}))

    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.DATABASE_NOT_READY, False)


# --- the model


@pytest.mark.parametrize(
    ("models", "offered"),
    [
        (frozenset(), "nothing"),
        ({Model("default", "e5", "2", 8)}, "default/e5 revision 2 with dimension 8"),
        ({Model("default", "e5", "1", 16)}, "default/e5 revision 1 with dimension 16"),
        ({Model("other", "e5", "1", 8)}, "other/e5 revision 1 with dimension 8"),
    ],
    ids=["no worker", "another revision", "another dimension", "another provider"],
)
def test_a_model_that_nobody_embeds_with_stalls_before_anything_is_made(models: Any, offered: str) -> None:
    decided = plan(nothing(models=frozenset(models)))

    assert decided.steps == ()
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.MODEL_UNAVAILABLE, True)
    assert decided.blocked.message.endswith(f"offered: {offered}")


def test_a_worker_that_vanishes_does_not_stall_an_index_that_has_tables() -> None:
    assert plan(made(SPEC, models=frozenset())) == Plan()


# --- whose is it


def owned_by(**changes: Any) -> IndexWorld:
    return made(SPEC, row=row(SPEC, **changes))


@pytest.mark.parametrize(
    "world",
    [
        owned_by(state="released"),
        owned_by(state="released", uid="uid-0"),
        owned_by(state="released", uid="uid-0", installation=OTHERS),
        owned_by(uid="uid-0"),
    ],
    ids=[
        "released, and the same object again",
        "released by an earlier object",
        "released by another cluster",
        "an earlier object's that nobody released",
    ],
)
def test_an_index_of_the_same_name_is_taken_up_again_and_nothing_else_is_done(world: IndexWorld) -> None:
    decided = plan(world)

    assert reasons(decided) == [Reason.RELEASED]
    assert "state = 'active'" in text(decided)
    assert decided.blocked is None


def test_another_installations_index_is_left_alone_and_the_way_to_it_is_said() -> None:
    decided = plan(owned_by(installation=OTHERS, installation_name="there"))

    assert decided.steps == ()
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.NOT_OWNER, True)
    assert "installation there" in decided.blocked.message
    assert f"{ADOPT_ANNOTATION}: {CATALOG}/7" in decided.blocked.message


def test_another_installations_index_is_adopted_by_its_own_name_with_consent() -> None:
    decided = plan(owned_by(installation=OTHERS), annotations={ADOPT_ANNOTATION: f"{CATALOG}/7"})

    assert reasons(decided) == [Reason.ADOPTED]


def test_an_index_of_another_name_is_adopted_with_consent_and_keeps_its_schema() -> None:
    there = row(SPEC, name="book", installation=OTHERS, uid="uid-9")
    world = made(SPEC, row=None, named=there)

    decided = plan(world, annotations={ADOPT_ANNOTATION: f"{CATALOG}/7"})

    assert reasons(decided) == [Reason.ADOPTED]
    assert "namespace = 'team', name = 'handbook'" in text(decided)


def test_an_annotation_that_was_followed_changes_nothing() -> None:
    assert plan(made(SPEC), annotations={ADOPT_ANNOTATION: f"{CATALOG}/7"}) == Plan()


@pytest.mark.parametrize(
    ("world", "annotation", "why"),
    [
        (nothing(), f"{CATALOG}/9", "there is no such index"),
        (nothing(), "nonsense", "there is no such index"),
        (nothing(named=row(SPEC, number=9, name="a")), "deadbeef/9", "there is no such index"),
        (made(SPEC, named=row(SPEC, number=9, name="a")), f"{CATALOG}/9", "has c0ffee00/7 already"),
        (nothing(named=row(SPEC, name="a")), f"{CATALOG}/7", "in use by PolarisIndex team/a"),
        (nothing(named=row(SPEC, name="a", state="deleting")), f"{CATALOG}/7", "being removed"),
        (nothing(named=row(SPEC, namespace="b", state="released")), f"{CATALOG}/7", "of namespace b"),
    ],
    ids=[
        "no such number",
        "not a label",
        "another catalog",
        "has one already",
        "in use next door",
        "being removed",
        "another namespace's",
    ],
)
def test_an_adoption_that_cannot_be_is_refused_with_the_reason(
    world: IndexWorld, annotation: str, why: str
) -> None:
    decided = plan(world, annotations={ADOPT_ANNOTATION: annotation})

    assert decided.steps == ()
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.NOT_OWNER, True)
    assert why in decided.blocked.message


def test_a_predecessor_that_is_being_removed_is_waited_for() -> None:
    decided = plan(owned_by(state="deleting", uid="uid-0"))

    assert decided.steps == ()
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.DELETING, False)


# --- what is missing or was damaged


@pytest.mark.parametrize(
    ("world", "sentence"),
    [
        (without(made(SPEC), relations=("documents",)), "Make the view documents"),
        (with_relation(made(SPEC), "chunks", depends_on=frozenset()), "Put right the view chunks"),
        (with_relation(made(SPEC), "chunks", grants=frozenset()), "Grant readers and writers"),
        (with_relation(made(SPEC), "g1_applied", grants=frozenset()), "Grant readers and writers"),
        (with_relation(made(SPEC), "g1_chunks", owner="mallory"), "g1_chunks is owned by mallory"),
        (made(SPEC, clock=None), "Start the clock again"),
        (without(made(SPEC), relations=("clock",)), "Make clock"),
        (without(made(SPEC, rows=5), relations=("g1_chunks",)), "Make the tables g1_chunks of generation 1"),
        (without(made(SPEC, rows=5), relations=("g1_applied",)), "Make the table g1_applied"),
        (made(SPEC, generations=()), "Write generation 1 down again"),
        (made(SPEC, issuer=False, roles=nothing().roles), "Make the roles"),
        (without(made(SPEC), indexes=(VECTOR,)), f"Make the index {VECTOR} on the empty table"),
        (without(made(SPEC, rows=5), indexes=(VECTOR,)), "Say that search is exact"),
        (without(made(SPEC), indexes=("stored_documents_by_sequence",)), "Make the index stored_doc"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_missing_is_made_again(world: IndexWorld, sentence: str) -> None:
    decided = plan(world)

    assert decided.steps[0].sentence.startswith(sentence)
    assert not any(step.destructive for step in decided.steps)


def test_chunks_that_were_lost_are_made_again_from_the_stored_documents() -> None:
    decided = plan(without(made(SPEC, rows=5), relations=("g1_chunks",)))

    assert 'TRUNCATE "polaris_i7_handbook"."g1_applied"' in text(decided)
    assert "low_water = 0" in text(decided)
    assert "polaris_work" in text(decided)


@pytest.mark.parametrize(
    ("world", "fault"),
    [
        (without(made(SPEC), relations=("stored_versions",)), "table stored_versions is gone"),
        (with_relation(made(SPEC), "g1_chunks", columns=()), "column g1_chunks.embedding is gone"),
        (with_relation(made(SPEC), "stored_documents", primary_key=()), "the primary key of"),
        (with_relation(made(SPEC), "g1_applied", kind="m"), "g1_applied is not a table"),
        (with_relation(made(SPEC), "chunks", kind="r"), "chunks is not a view"),
        (
            without(made(SPEC), indexes=("stored_documents_external_id_key",)),
            "external_id is not unique",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_nobody_can_mend_stalls_and_nothing_is_touched(world: IndexWorld, fault: str) -> None:
    decided = plan(world)

    assert decided.steps == ()
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.DRIFTED, True)
    assert fault in decided.blocked.message


def test_a_role_that_may_log_in_is_made_a_group_again() -> None:
    role = f"polaris_{CATALOG}_i7_owner"
    world = made(SPEC)
    world = replace(world, roles={**world.roles, role: replace(world.roles[role], login=True)})

    assert f'ALTER ROLE "{role}" NOLOGIN' in text(plan(world))


def test_readers_may_connect_also_where_not_everybody_may() -> None:
    role = f"polaris_{CATALOG}_i7_reader"
    world = made(SPEC)
    world = replace(world, roles={**world.roles, role: replace(world.roles[role], connects=False)})

    assert f'GRANT CONNECT ON DATABASE "polaris" TO "{role}"' in text(plan(world))
    assert "GRANT CONNECT" in text(plan(nothing(public_connects=False)))


# --- the four states of an index's name


def waiting_for(decided: Plan) -> Reason | None:
    return decided.blocked.reason if decided.blocked else None


def test_absent_beside_rows_it_is_built_concurrently_and_not_waited_for() -> None:
    decided = plan(with_generation(without(made(SPEC, rows=5), indexes=(VECTOR,)), vector_index=None))

    (step,) = decided.steps
    assert isinstance(step.action, BuildIndex)
    assert step.action.statement.startswith("CREATE INDEX CONCURRENTLY")
    assert step.action.lock == build_lock(PLACE, VECTOR)
    assert step.action.settings["maintenance_work_mem"] == "256MB"
    assert step.action.settings["statement_timeout"] == "86400s"
    assert waiting_for(decided) == Reason.BUILDING_INDEX


@pytest.mark.parametrize("concurrently", [True, False], ids=["concurrently", "plainly"])
@pytest.mark.parametrize("there", [True, False], ids=["and is there, invalid", "and is not there yet"])
def test_a_live_build_is_watched_and_a_second_never_begun(*, concurrently: bool, there: bool) -> None:
    world = without(made(SPEC, rows=5, **live(VECTOR, concurrently=concurrently)), indexes=(VECTOR,))
    if there:
        world = with_index(world, VECTOR, hnsw(SPEC, valid=False))

    decided = plan(with_generation(world, vector_index=None))

    assert decided.steps == ()
    assert waiting_for(decided) == Reason.BUILDING_INDEX
    assert decided.blocked is not None
    assert "building index: loading tuples" in decided.blocked.message


def test_a_held_lock_alone_marks_a_live_build() -> None:
    world = without(made(SPEC, rows=5), indexes=(VECTOR,))
    world = replace(world, locks=frozenset({build_lock(PLACE, VECTOR)}))

    assert plan(with_generation(world, vector_index=None)).steps == ()


def test_dead_and_invalid_it_is_dropped_under_its_lock_and_built() -> None:
    world = with_index(made(SPEC, rows=5), VECTOR, hnsw(SPEC, valid=False))

    drop, build = plan(with_generation(world, vector_index=None)).steps

    assert isinstance(drop.action, ExecuteAlone)
    assert drop.action.statement == f'DROP INDEX CONCURRENTLY "{PLACE}"."{VECTOR}"'
    assert drop.action.settings == {"lock_timeout": "5s"}
    assert drop.action.lock == build_lock(PLACE, VECTOR)
    assert "indisvalid" in drop.action.guards[1]
    assert isinstance(build.action, BuildIndex)


@pytest.mark.parametrize(
    "seen",
    [
        hnsw(SPEC, method="btree", opclass="int8_ops", columns=("ordinal",), options={}),
        hnsw(SPEC, opclass="halfvec_l2_ops"),
        hnsw(SPEC, options={"m": "4", "ef_construction": "64"}),
        hnsw(SPEC, partial=True),
    ],
    ids=["a btree", "another metric", "other parameters", "a part of the rows"],
)
def test_what_only_bears_the_name_is_not_taken_for_the_index(seen: Any) -> None:
    decided = plan(with_index(made(SPEC, rows=5), VECTOR, seen))

    assert f'DROP INDEX CONCURRENTLY "{PLACE}"."{VECTOR}"' in text(decided)
    assert isinstance(decided.steps[-1].action, BuildIndex)


def test_queries_are_told_when_their_index_is_gone() -> None:
    decided = plan(without(made(SPEC, rows=5), indexes=(VECTOR,)))

    assert "SET vector_index = NULL" in statements(decided.steps[0].action)
    assert isinstance(decided.steps[1].action, BuildIndex)


# --- builds that fail


def failed(count: int, seconds_ago: int) -> IndexWorld:
    world = with_generation(without(made(SPEC, rows=5), indexes=(VECTOR,)), vector_index=None)
    at = NOW - timedelta(seconds=seconds_ago)
    return replace(world, failures={VECTOR: BuildFailure("No space left on device", at, count)})


@pytest.mark.parametrize(("seconds_ago", "again"), [(299, False), (301, True)])
def test_a_build_that_did_not_get_its_lock_is_tried_again_and_again_and_stalls_nothing(
    *, seconds_ago: int, again: bool
) -> None:
    world = failed(9, seconds_ago)
    world = replace(world, failures={VECTOR: replace(world.failures[VECTOR], late=True)})

    decided = plan(world)

    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.BUILDING_INDEX, False)
    assert bool(decided.steps) == again
    if again:
        action = decided.steps[0].action
        assert isinstance(action, BuildIndex)
        assert action.settings["max_parallel_maintenance_workers"] == str(SPEC.build.parallel_workers)


@pytest.mark.parametrize(
    ("count", "seconds_ago", "again", "stalled"),
    [(1, 10, False, False), (1, 31, True, None), (3, 31, False, True), (3, 121, True, None)],
)
def test_a_failed_build_is_tried_again_later_each_time(
    *, count: int, seconds_ago: int, again: bool, stalled: bool | None
) -> None:
    decided = plan(failed(count, seconds_ago))

    assert bool(decided.steps) == again
    if not again:
        assert decided.blocked is not None
        assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.BUILD_FAILED, stalled)
        assert "No space left on device" in decided.blocked.message
        assert decided.look_again_seconds is not None


def test_after_a_failure_a_build_does_without_parallel_workers() -> None:
    action = plan(failed(1, 60)).steps[0].action

    assert isinstance(action, BuildIndex)
    assert action.settings["max_parallel_maintenance_workers"] == "0"


# --- changes


OTHER_M = spec(index={"m": 8, "efConstruction": 64})
OTHER_METRIC = spec(embedding=embedding(metric="l2"))


@pytest.mark.parametrize("of", [OTHER_M, OTHER_METRIC], ids=["index.m", "embedding.metric"])
def test_another_vector_index_is_built_beside_the_one_that_serves(of: PolarisIndexSpec) -> None:
    decided = plan(made(SPEC, rows=5), of, generation=2)

    (step,) = decided.steps
    assert isinstance(step.action, BuildIndex)
    assert step.action.index == vector_name(of)
    assert step.reason == Reason.INDEX_REPLACED


@pytest.mark.parametrize("of", [OTHER_M, OTHER_METRIC], ids=["index.m", "embedding.metric"])
def test_once_it_is_valid_the_pointer_moves_and_then_the_spec_is_true(of: PolarisIndexSpec) -> None:
    decided = plan(with_index(made(SPEC, rows=5), vector_name(of), hnsw(of)), of, generation=2)

    switch, spec_ = decided.steps
    assert f"vector_index = '{vector_name(of)}'" in statements(switch.action)
    assert f'"metric": "{of.embedding.metric.value}"' in statements(switch.action)
    assert "object_generation = 2" in statements(spec_.action)
    assert decided.blocked is None


def test_the_old_index_is_dropped_when_no_query_can_still_be_using_it() -> None:
    world = with_index(made(OTHER_M, rows=5), VECTOR, hnsw(SPEC))
    just_switched = replace(world, row=row(OTHER_M, updated_at=NOW - timedelta(seconds=10)))

    early, later = plan(just_switched, OTHER_M), plan(world, OTHER_M)

    assert (early.steps, early.aside, early.look_again_seconds) == ((), (), 20.0)
    assert later.steps == ()
    assert text(later.aside) == f'DROP INDEX CONCURRENTLY "{PLACE}"."{VECTOR}"'


def test_from_an_index_to_none_queries_are_told_at_once() -> None:
    exact = spec(index={"type": "exact"})

    decided = plan(made(SPEC, rows=5), exact, generation=2)

    assert "vector_index = NULL" in statements(decided.steps[0].action)
    assert decided.blocked is None


def test_a_build_that_an_edit_made_useless_is_ended() -> None:
    other = vector_name(OTHER_M)
    world = with_index(made(SPEC, rows=5, **live(other)), other, hnsw(OTHER_M, valid=False))

    (step,) = plan(world).steps

    assert "pg_cancel_backend" in statements(step.action)
    assert "End the build" in step.sentence


def test_a_build_of_somebody_else_on_the_table_is_left_alone() -> None:
    somebody = live("mine")["builds"][0]
    world = made(SPEC, rows=5, builds=(replace(somebody, index="mine", locks=frozenset()),))

    assert plan(world) == Plan()


def test_an_added_attribute_is_indexed_before_the_spec_is_true() -> None:
    of = spec(attributes=[LANG])

    decided = plan(made(SPEC, rows=5), of, generation=2)

    (step,) = decided.steps
    assert step.reason == Reason.ATTRIBUTE_ADDED
    assert isinstance(step.action, BuildIndex)
    assert step.action.statement.startswith('CREATE INDEX CONCURRENTLY "g1_by_lang_keyw"')


def test_added_to_an_empty_table_an_attribute_is_indexed_at_once() -> None:
    decided = plan(made(SPEC), spec(attributes=[LANG]), generation=2)

    assert [type(step.action) for step in decided.steps] == [Execute, Execute]
    assert decided.blocked is None


def test_a_removed_attribute_is_forgotten_by_the_spec_before_its_index_goes() -> None:
    of = spec(attributes=[LANG])

    decided = plan(with_index(made(of, rows=5), "g1_by_lang_keyw", attribute("lang")), SPEC, generation=2)

    assert [type(step.action) for step in decided.steps] == [Execute]
    assert text(decided.aside) == 'DROP INDEX CONCURRENTLY "polaris_i7_handbook"."g1_by_lang_keyw"'


def test_an_index_that_somebody_else_made_on_the_table_stays() -> None:
    world = with_index(made(SPEC, rows=5), "theirs", attribute("lang"))

    assert plan(world) == Plan()


def test_a_change_that_is_refused_is_refused_without_an_api_server_too() -> None:
    of = spec(databaseRef={"name": "other"})

    decided = plan(made(SPEC), of, generation=2)

    assert decided.steps == ()
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.INVALID_SPEC, True)


def test_a_new_object_may_call_its_database_otherwise() -> None:
    of = spec(databaseRef={"name": "other"})

    decided = plan(owned_by(state="released", uid="uid-0"), of)

    assert decided.blocked is None
    assert reasons(decided) == [Reason.RELEASED, Reason.SPEC_CHANGED]


def test_a_spec_that_changed_before_it_ever_served_starts_over() -> None:
    of = spec(embedding=embedding(dimension=16))
    world = made(
        SPEC, row=row(SPEC, spec=None, serving=None), models=frozenset({Model("default", "e5", "1", 16)})
    )

    decided = plan(world, of, generation=2)

    assert 'DROP TABLE "polaris_i7_handbook"."g1_chunks"' in statements(decided.steps[0].action)
    assert "serving IS NULL" in str(decided.steps[0].action)
    assert "halfvec(16)" in text(decided)
    assert "serving = 1" in statements(decided.steps[-1].action)


def test_a_spec_of_a_newer_version_in_the_catalog_is_not_touched() -> None:
    newer = {**(row(SPEC).spec or {}), "unheard": 1}

    decided = plan(made(SPEC, row=row(SPEC, spec=newer)))

    assert decided.steps == ()
    assert waiting_for(decided) == Reason.CATALOG_TOO_NEW


def test_a_new_generation_of_the_object_with_the_same_spec_is_written_down() -> None:
    (step,) = plan(made(SPEC), generation=5).steps

    assert "object_generation = 5" in statements(step.action)


def test_the_deletion_policy_is_written_down_whatever_else_waits() -> None:
    of = spec(embedding=embedding(model="other"), deletionPolicy="Delete")

    decided = plan(made(SPEC), of, generation=2)

    assert [type(step.action) for step in decided.steps] == [SetFinalizer, Execute]
    assert "deletion_policy = 'Delete'" in text(decided)


def test_while_it_is_suspended_the_catalog_says_retain_and_nothing_holds_the_object() -> None:
    of = spec(deletionPolicy="Delete", suspend=True)

    decided = plan(made(spec(deletionPolicy="Delete")), of, finalizers=(FINALIZER,))

    assert "deletion_policy = 'Retain'" in statements(decided.steps[0].action)
    assert [step.action for step in decided.steps][1:] == [SetFinalizer(present=False)]


def test_the_object_is_held_for_as_long_as_the_catalog_may_say_delete() -> None:
    decided = plan(made(DELETE), SPEC, finalizers=(FINALIZER,))

    assert "deletion_policy = 'Retain'" in statements(decided.steps[0].action)
    assert [step.action for step in decided.steps][1:2] == [SetFinalizer(present=False)]


# --- bulk loads


def loading(**changes: Any) -> IndexWorld:
    world = without(made(SPEC, rows=50_000), indexes=(VECTOR,))
    return with_generation(world, state="loading", vector_index=None, **changes)


def test_a_wished_bulk_load_drops_the_index_of_a_small_table() -> None:
    decided = plan(with_generation(made(SPEC, rows=5), load_requested_at=NOW))

    assert [type(step.action) for step in decided.steps] == [Execute, ExecuteAlone]
    assert "state = 'loading', vector_index = NULL" in text(decided)
    assert waiting_for(decided) == Reason.LOADING


def test_a_bulk_load_into_a_large_table_is_not_worth_its_index() -> None:
    world = with_generation(made(SPEC, rows=50_000), load_requested_at=NOW)

    assert plan(world) == Plan()


def test_with_exact_search_there_is_nothing_to_drop_for_a_bulk_load() -> None:
    of = spec(index={"type": "exact"})

    assert plan(with_generation(made(of), load_requested_at=NOW), of) == Plan()


@pytest.mark.parametrize(
    ("requested", "behind", "over"),
    [
        (None, True, True),
        (NOW, False, False),
        (NOW - timedelta(hours=1), True, False),
        (NOW - timedelta(hours=1), False, True),
    ],
    ids=["taken back", "fresh", "old, but documents wait", "old, and nothing waits"],
)
def test_a_load_is_over_when_it_was_taken_back_or_nobody_loads_any_more(
    *, requested: Any, behind: bool, over: bool
) -> None:
    decided = plan(loading(load_requested_at=requested, behind=behind))

    if over:
        assert [type(step.action) for step in decided.steps] == [Execute, BuildIndex]
        assert "state = 'building'" in text(decided)
    else:
        assert decided.steps == ()
    assert waiting_for(decided) == (Reason.BUILDING_INDEX if over else Reason.LOADING)


def test_after_a_load_the_index_is_built_in_one_scan_under_a_lock_timeout() -> None:
    action = plan(loading()).steps[1].action

    assert isinstance(action, BuildIndex)
    assert action.statement.startswith(f'CREATE INDEX "{VECTOR}"')
    assert "state = 'serving'" in action.statement
    assert action.settings["lock_timeout"] == "30s"


def test_when_the_index_of_a_load_is_valid_it_serves() -> None:
    world = with_generation(made(SPEC, rows=50_000), state="building", vector_index=None)

    decided = plan(world)

    assert "state = 'serving'" in text(decided)
    assert "recall_at = NULL" in text(decided)
    assert decided.blocked is None


def test_a_load_that_brought_nothing_ends_at_once() -> None:
    world = with_generation(without(made(SPEC), indexes=(VECTOR,)), state="loading", vector_index=None)

    decided = plan(world)

    assert [type(step.action) for step in decided.steps] == [Execute]
    assert "CREATE INDEX" in text(decided)


def test_while_a_failed_build_waits_documents_go_on_coming_in() -> None:
    failure = BuildFailure("No space left on device", NOW, 1)
    building = with_generation(loading(), state="building")

    give_way = plan(replace(building, failures={VECTOR: failure}))
    waits = plan(replace(loading(), failures={VECTOR: failure}))

    assert "state = 'loading'" in text(give_way)
    assert (waits.steps, waiting_for(waits)) == ((), Reason.BUILD_FAILED)


# --- recall


def measured(rows: int, **changes: Any) -> list[Step]:
    decided = plan(with_generation(made(SPEC, rows=rows), **changes))
    assert decided.steps == ()
    return list(decided.aside)


def test_recall_is_measured_when_it_never_was() -> None:
    (step,) = measured(5000, recall=None, recall_rows=None, recall_at=None)

    assert isinstance(step.action, MeasureRecall)
    assert (step.action.target_percent, step.action.urgent) == (98, True)


@pytest.mark.parametrize(
    ("rows", "before", "minutes", "recall", "due"),
    [
        (5000, 5000, 60, 0.99, False),
        (5400, 5000, 1, 0.99, False),
        (5600, 5000, 1, 0.99, True),
        (4400, 5000, 1, 0.99, True),
        (5001, 5000, 3, 0.99, False),
        (5001, 5000, 5, 0.99, True),
        (5000, 5000, 11, 0.90, True),
        (5000, 5000, 1, 0.90, False),
        (5000, 5000, 11, None, True),
    ],
)
def test_recall_is_measured_again_when_rows_changed(
    *, rows: int, before: int, minutes: int, recall: float | None, due: bool
) -> None:
    at = NOW - timedelta(minutes=minutes)

    steps = measured(rows, recall=recall, recall_rows=before, recall_at=at)

    assert [type(step.action) for step in steps] == ([MeasureRecall] if due else [])


def test_few_rows_are_complete_without_a_measurement() -> None:
    (step,) = measured(90, recall=None, recall_rows=None, recall_at=None)

    assert isinstance(step.action, Execute)
    assert "recall = 1" in statements(step.action)


def test_another_promise_is_measured_anew() -> None:
    of = spec(search={"targetRecallPercent": 90})

    assert "recall_at = NULL" in text(plan(made(SPEC, rows=5000), of, generation=2))
    assert "recall_at = NULL" not in text(plan(made(SPEC, rows=5000), generation=2))


def test_nothing_is_measured_while_the_index_is_being_replaced() -> None:
    world = with_index(made(SPEC, rows=5000), vector_name(OTHER_M), hnsw(OTHER_M))
    world = with_generation(world, recall=None, recall_at=None)

    assert plan(world, OTHER_M).aside == ()


# --- suspended, and drift that is only reported


def test_suspended_nothing_is_done_and_everything_is_shown() -> None:
    of = spec(suspend=True)

    decided = plan(nothing(), of)

    assert decided.steps == ()
    assert len(decided.withheld) == len(plan(nothing()).steps)
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.SUSPENDED, True)


def test_suspended_with_nothing_to_be_done_it_is_as_it_should_be() -> None:
    of = spec(suspend=True)

    assert plan(made(of), of) == Plan()


def test_suspended_it_is_not_even_measured() -> None:
    of = spec(suspend=True)

    assert plan(with_generation(made(of, rows=5000), recall_at=None), of) == Plan()


REPORT = spec(drift="Report")


@pytest.mark.parametrize(
    "world",
    [
        without(made(REPORT), relations=("documents",)),
        without(made(REPORT, rows=5), indexes=(VECTOR,)),
        with_relation(made(REPORT), "g1_chunks", grants=frozenset()),
        without(made(REPORT, rows=5), relations=("g1_chunks",)),
    ],
    ids=["a view is gone", "the index is gone", "a grant is gone", "a table is gone"],
)
def test_drift_is_reported_and_left_as_it_is(world: IndexWorld) -> None:
    decided = plan(world, REPORT)

    assert decided.steps == ()
    assert decided.withheld
    assert decided.blocked is not None
    assert (decided.blocked.reason, decided.blocked.stalled) == (Reason.DRIFTED, True)


def test_with_report_a_new_index_is_made_all_the_same() -> None:
    assert len(plan(nothing(), REPORT).steps) == len(plan(nothing()).steps)


def test_with_report_an_edit_is_no_drift() -> None:
    of = spec(drift="Report", index={"m": 8, "efConstruction": 64}, attributes=[LANG])
    between = with_generation(
        with_index(made(REPORT, rows=5), vector_name(OTHER_M), hnsw(OTHER_M)),
        vector_index=vector_name(OTHER_M),
    )

    for world in (made(REPORT, rows=5), between):
        decided = plan(world, of, generation=2)
        assert decided.withheld == ()
        assert any(isinstance(step.action, BuildIndex) for step in decided.steps)


def test_with_report_a_bulk_load_is_no_drift() -> None:
    world = without(made(REPORT, rows=50_000), indexes=(VECTOR,))

    for state in ("loading", "building"):
        decided = plan(with_generation(world, state=state, vector_index=None), REPORT)
        assert decided.withheld == ()
        assert any(isinstance(step.action, BuildIndex) for step in decided.steps)


# --- deletion


DELETE = spec(deletionPolicy="Delete", undeleteSeconds=0)


def deleted(seconds_ago: int = 1, **changes: Any) -> dict[str, Any]:
    return {"deleted_at": NOW - timedelta(seconds=seconds_ago), "finalizers": (FINALIZER,), **changes}


def test_only_delete_holds_the_object() -> None:
    held = plan(made(DELETE), DELETE)
    let_go = plan(made(SPEC), finalizers=(FINALIZER,))

    assert [step.action for step in held.steps] == [SetFinalizer(present=True)]
    assert [step.action for step in let_go.steps] == [SetFinalizer(present=False)]


def test_deleted_with_delete_everything_goes_and_the_object_last() -> None:
    decided = plan(made(DELETE, rows=5), DELETE, **deleted())

    assert "state = 'deleting'" in statements(decided.steps[0].action)
    assert 'DROP SCHEMA "polaris_i7_handbook"' in text(decided)
    assert "DROP ROLE" in text(decided)
    assert "DELETE FROM polaris.indexes" in text(decided)
    assert decided.steps[-1].action == SetFinalizer(present=False)


def test_only_what_polaris_named_is_dropped_and_nothing_cascades() -> None:
    world = made(DELETE, rows=5)
    world = replace(world, relations={**world.relations, "theirs": replace(world.relations["clock"])})

    dropped = text(plan(world, DELETE, **deleted()))

    assert "theirs" not in dropped
    assert "CASCADE" not in dropped
    assert '"g1_applied"' in dropped


def test_what_drops_documents_is_marked_destructive() -> None:
    for step in plan(made(DELETE, rows=5), DELETE, **deleted()).steps:
        drops = "DROP TABLE" in statements(step.action) or "DELETE FROM" in statements(step.action)
        assert step.destructive == drops


def test_after_its_deadline_the_object_goes_and_its_row_says_what_is_left_to_do() -> None:
    decided = plan(made(DELETE), DELETE, **deleted(seconds_ago=601))

    assert "state = 'deleting'" in statements(decided.steps[0].action)
    assert decided.steps[-1].action == SetFinalizer(present=False)
    assert len(decided.steps) == 2


@pytest.mark.parametrize(
    ("world", "of", "first"),
    [
        (made(DELETE), spec(deletionPolicy="Delete", undeleteSeconds=0, suspend=True), [Reason.SPEC_CHANGED]),
        (made(DELETE), SPEC, [Reason.SPEC_CHANGED]),
        (made(SPEC), SPEC, []),
    ],
    ids=["suspended", "retained, which the catalog does not know yet", "retained"],
)
def test_deleted_without_consent_to_delete_the_data_is_released(
    world: IndexWorld, of: PolarisIndexSpec, first: list[Reason]
) -> None:
    decided = plan(world, of, **deleted())

    assert reasons(decided) == [*first, Reason.RELEASED, Reason.DELETED]
    assert "DROP" not in text(decided)


def test_after_its_deadline_an_object_that_keeps_its_data_waits_for_no_login() -> None:
    decided = plan(made(DELETE), SPEC, **deleted(seconds_ago=601))

    assert "deletion_policy = 'Retain'" in statements(decided.steps[0].action)
    assert decided.steps[-1].action == SetFinalizer(present=False)
    assert len(decided.steps) == 2


@pytest.mark.parametrize(
    "world",
    [nothing(), owned_by(installation=OTHERS), owned_by(uid="uid-9")],
    ids=["nothing was made", "another installation's", "another object's"],
)
def test_an_object_that_owns_nothing_drops_nothing(world: IndexWorld) -> None:
    decided = plan(world, DELETE, **deleted())

    assert [step.action for step in decided.steps] == [SetFinalizer(present=False)]


def test_live_builds_are_ended_before_the_schema_is_dropped() -> None:
    decided = plan(made(DELETE, rows=5, **live(VECTOR)), DELETE, **deleted())

    order = [statements(step.action).split("(")[0].strip() for step in decided.steps]
    assert order.index("SELECT pg_cancel_backend") == 1
