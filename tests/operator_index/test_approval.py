"""Who has to agree to a plan, to what exactly, and what goes on while nobody did."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_index.test_convergence import SPECS, worlds
from operator_index.worlds import NOW, embedding, made, nothing, resource, spec, without
from polaris.names import FINALIZER
from polaris.spec import Approval, PolarisIndexSpec
from polaris.sql import Sql
from polaris.status import Reason
from polaris_operator.conditions.index import shown_plan
from polaris_operator.plan.approval import missing, plan_hash, required
from polaris_operator.plan.index import plan_index
from polaris_operator.steps import Execute, Plan, Step, statements
from polaris_operator.world.index import IndexWorld, Model
from soak import times

pytestmark = pytest.mark.unit

SPEC = spec()
LANG = {"name": "lang", "type": "keyword"}
FINER: dict[str, Any] = {"index": {"m": 8, "efConstruction": 32}}


def asking(approval: str = "All", approved: str = "", **changes: Any) -> PolarisIndexSpec:
    """A spec whose changes wait for an approval."""
    return spec(change={"approval": approval, "approvedPlan": approved}, **changes)


def plan(world: IndexWorld, of: PolarisIndexSpec, **changes: Any) -> Plan:
    return plan_index(resource(of, **changes), of, world, NOW)


def with_approval(of: PolarisIndexSpec, approval: Approval, approved: str = "") -> PolarisIndexSpec:
    return of.model_copy(
        update={"change": of.change.model_copy(update={"approval": approval, "approved_plan": approved})}
    )


def waits(found: Plan) -> bool:
    return found.blocked is not None and found.blocked.reason == Reason.APPROVAL_REQUIRED


def hash_of(world: IndexWorld, of: PolarisIndexSpec) -> str:
    shown = shown_plan(of, world, plan(world, of).withheld)
    assert shown is not None
    return shown.hash


def removing(*tables: str) -> tuple[Step, ...]:
    drops = tuple(Sql(f'DROP TABLE "{table}"') for table in tables)
    return (Step(Reason.DELETED, "Drop them", Execute(drops), destructive=True),)


OTHER: dict[str, Any] = {"embedding": embedding(model="other")}
MANY = replace(made(SPEC, rows=5), models=nothing().models | {Model("default", "other", "1", 8)})
CHANGES: list[dict[str, Any]] = [
    FINER,
    {"attributes": [LANG]},
    {"search": {"targetRecallPercent": 90}},
    OTHER,
]


@pytest.mark.parametrize("changes", CHANGES, ids=["beside", "an attribute", "in place", "another model"])
def test_a_change_waits_until_its_hash_is_in_the_spec_and_serves_meanwhile(changes: dict[str, Any]) -> None:
    of = asking(**changes)
    held = plan(MANY, of)

    assert held.steps == ()
    assert waits(held)
    assert held.blocked is not None
    assert held.blocked.stalled
    assert hash_of(MANY, of) in held.blocked.message
    approved = plan(MANY, asking(approved=hash_of(MANY, of), **changes))
    assert not waits(approved)
    assert approved.steps
    assert all(step in held.withheld for step in approved.steps)


def test_nothing_is_made_before_somebody_agreed_to_it() -> None:
    held = plan(nothing(), asking())

    assert held.steps == ()
    assert waits(held)
    assert plan(nothing(), asking(approved=hash_of(nothing(), asking()))).steps == held.withheld


def test_one_approval_holds_from_the_first_step_to_the_last() -> None:
    of = asking(**OTHER)
    approved = hash_of(MANY, of)
    filling = replace(
        MANY, generations=(*MANY.generations, replace(MANY.generations[0], number=2, state="loading"))
    )

    assert plan_hash(of, filling, plan(filling, of).withheld) == approved
    assert not waits(plan(filling, asking(approved=approved, **OTHER)))


def test_another_change_needs_another_approval() -> None:
    approved = hash_of(MANY, asking(**FINER))

    other = plan(MANY, asking(approved=approved, attributes=[LANG]))

    assert waits(other)
    assert other.blocked is not None
    assert "what was approved is another plan" in other.blocked.message


def test_what_was_made_true_is_repaired_while_a_change_waits() -> None:
    harmed = without(MANY, relations=("documents",))

    held = plan(harmed, asking(**FINER))

    assert waits(held)
    assert {step.reason for step in held.steps} == {Reason.VIEW_MISSING, Reason.GRANT_MISSING}
    assert not plan(harmed, asking()).withheld


@pytest.mark.parametrize("approval", ["Auto", "Destructive"])
def test_what_can_be_made_again_waits_for_nobody_but_all(approval: str) -> None:
    assert plan(MANY, asking(approval, **FINER)).steps


def test_rows_and_time_and_the_approval_itself_void_no_approval() -> None:
    many = replace(made(SPEC, rows=50_000), models=MANY.models, now=NOW + timedelta(days=1))
    approved = hash_of(MANY, asking(**FINER))

    assert hash_of(many, asking(**FINER)) == approved
    assert hash_of(MANY, asking(suspend=True, **FINER)) == approved
    assert not waits(plan(many, asking(approved=approved, **FINER)))


def test_an_approval_is_void_once_something_else_would_be_lost() -> None:
    of = asking("Destructive")
    approved = plan_hash(of, MANY, removing("a"))

    assert required(of, SPEC, removing("a"))
    assert not required(asking("Auto"), SPEC, removing("a"))
    assert missing(of, MANY, removing("a"), approved) is None
    for other in (removing("b"), removing("a", "b"), (*removing("a"), *removing("b"))):
        void = missing(of, MANY, other, approved)
        assert void is not None
        assert void.reason == Reason.APPROVAL_REQUIRED


@pytest.mark.soak
@given(
    world=worlds(),
    of=SPECS.map(lambda of: of.model_copy(update={"suspend": False})),
    approval=st.sampled_from([Approval.ALL, Approval.ALL, *Approval]),
    wrong=st.booleans(),
)
@settings(max_examples=times(150, 10_000), deadline=None)
def test_of_any_world_nothing_is_done_without_its_hash_and_with_it_what_was_shown(
    world: IndexWorld, of: PolarisIndexSpec, approval: Approval, *, wrong: bool
) -> None:
    finalizers = (FINALIZER,) if of.deletion_policy == "Delete" else ()
    unapproved = with_approval(of, approval, f"sha256:{'0' * 64}" if wrong else "")
    held = plan(world, unapproved, finalizers=finalizers)

    if approval != Approval.AUTO:
        assert not any(step.destructive for step in (*held.steps, *held.aside))
    if not waits(held):
        return
    assert approval == Approval.ALL
    shown = shown_plan(unapproved, world, held.withheld)
    name = plan_hash(unapproved, world, held.withheld)
    done = plan(world, with_approval(of, approval, name), finalizers=finalizers)
    assert not waits(done)
    if shown is None:
        return
    assert shown.hash == name
    assert [one.statement for one in shown.steps] == [statements(one.action) for one in held.withheld]
    every = (*held.steps, *held.aside, *held.withheld)
    carried_out = (*done.steps, *done.withheld, *done.aside)
    assert {statements(one.action) for one in carried_out} <= {statements(one.action) for one in every}
