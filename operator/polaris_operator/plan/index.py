"""What has to be done for a PolarisIndex: pure, from its spec, what was observed, and the time.

The order is such that a crash between any two steps is mended by the next look: nothing points to
what is not there yet, nothing is dropped before nothing points to it, and `indexes.spec`, by which
the service goes, is written last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import datetime

from polaris import names
from polaris.names import CATALOG_CHANNEL, FINALIZER
from polaris.spec import DeletionPolicy, Drift, PolarisIndexSpec
from polaris.sql import Sql, compose, literal
from polaris.status import Reason
from polaris_operator.objects import Resource
from polaris_operator.plan import (
    approval,
    generation,
    hygiene,
    ownership,
    pg_index,
    recall,
    schema,
    succession,
    vector_index,
)
from polaris_operator.plan.aim import Aim, Decision, controls_aside, decide
from polaris_operator.plan.deletion import plan_deletion
from polaris_operator.plan.naming import naming, tell
from polaris_operator.plan.pg_index import LOOK_AGAIN_SECONDS, Progress
from polaris_operator.plan.vector_index import json_literal, set_generation
from polaris_operator.steps import Blocked, Plan, SetFinalizer, Step
from polaris_operator.world.credentials import Wanted
from polaris_operator.world.index import IndexWorld

_NOT_OURS_SECONDS = 30.0
_SHORTEST_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class _Case:
    """One look at one object."""

    resource: Resource
    spec: PolarisIndexSpec
    """What the object says, which may be more than can be made true now."""
    aim: Aim
    decision: Decision
    now: datetime
    approved: str
    """The plan that somebody agreed to; "" where nobody did."""


def plan_index(
    resource: Resource,
    spec: PolarisIndexSpec,
    world: IndexWorld,
    now: datetime,
    *,
    revocations: tuple[Step, ...] = (),
) -> Plan:
    """Return what leads from the world to the spec, and what stands in the way.

    Logins are planned apart; `revocations` are the steps that end all of them, for an object that is
    being deleted.
    """
    if resource.deleted_at is not None:
        return plan_deletion(resource, spec, world, now, logins=revocations)
    approved, spec = spec.change.approved_plan, approval.apart(spec)
    name = naming(resource, world)
    claim = ownership.ownership(resource, spec, world, name)
    if isinstance(claim, Blocked):
        return Plan((), (), claim, _NOT_OURS_SECONDS)
    decision = decide(resource, spec, world)
    if decision.blocked is not None and decision.blocked.reason == Reason.CATALOG_TOO_NEW:
        return Plan((), (), decision.blocked, _NOT_OURS_SECONDS)
    if claim is not None and ownership.changes_hands(claim):
        held = Plan((), (claim,), _suspended((claim,), None), _NOT_OURS_SECONDS)
        return held if spec.suspend else Plan((claim,))
    number = world.generation.number if world.generation else 1
    aim = Aim(name, world, decision.spec, ownership.guard(resource, world, name), decision.made, number)
    if (unavailable := _model_unavailable(aim)) is not None:
        return Plan((), (), unavailable, _patience(resource, now))
    case = _Case(resource, spec, aim, decision, now, approved)
    always = _consent(case, claimed=claim is None)
    claims = () if claim is None else (claim,)
    return _approved(case, _plan(case, always, claims), always, claims)


def _approved(case: _Case, whole: Plan, always: tuple[Step, ...], claim: tuple[Step, ...]) -> Plan:
    """Return the whole plan where nobody has to agree to it, or somebody did; else what goes on meanwhile.

    What was made true before is looked after while the change waits.
    """
    held = (*whole.steps[len(always) :], *whole.withheld, *whole.aside)
    made, spec = case.decision.made, case.spec
    if spec.suspend or case.decision.blocked is not None or not approval.required(spec, made, held):
        return whole
    waits = approval.missing(spec, case.aim.world, held, case.approved)
    if waits is None:
        return whole
    going = Plan(always)
    if made is not None:
        kept = controls_aside(made, spec)
        aim = dataclasses.replace(case.aim, spec=kept)
        meanwhile = dataclasses.replace(case, aim=aim, decision=Decision(made, kept, waits))
        going = _plan(meanwhile, always, claim)
    if any(step.destructive for step in (*going.steps, *going.aside)):
        going = Plan(always)
    done = (*going.steps, *going.aside)
    withheld = tuple(step for step in held if step not in done)
    return dataclasses.replace(going, withheld=withheld, blocked=going.blocked or waits)


def _plan(case: _Case, always: tuple[Step, ...], claim: tuple[Step, ...]) -> Plan:
    """Return the plan; `always` holds what is done also while everything else waits."""
    decision = case.decision
    if case.spec.drift == Drift.REPORT and (drift := _drift(case)):
        return Plan((*always, *claim), drift, decision.blocked or _drifted(drift))
    progress = _converge(case)
    if progress.blocked is None or not progress.blocked.stalled:
        progress = _together(progress, _succession(case))
    if progress.blocked is None and decision.blocked is None:
        progress = dataclasses.replace(progress, blocked=_out_of_our_hands(case))
    steps = (*claim, *progress.steps)
    blocked = progress.blocked or decision.blocked
    if case.spec.suspend:
        withheld = (*steps, *progress.withheld)
        return Plan(always, withheld, _suspended(withheld, blocked), progress.look_again_seconds)
    return Plan((*always, *steps), progress.withheld, blocked, progress.look_again_seconds, progress.aside)


def _together(first: Progress, second: Progress) -> Progress:
    waits = [p.look_again_seconds for p in (first, second) if p.look_again_seconds is not None]
    return Progress(
        (*first.steps, *second.steps),
        first.blocked or second.blocked,
        min(waits, default=None),
        (*first.aside, *second.aside),
        (*first.withheld, *second.withheld),
    )


def _out_of_our_hands(case: _Case) -> Blocked | None:
    """Return what keeps queries from the index and is a person's to mend; all else goes on meanwhile."""
    return vector_index.forbidden(case.aim) or vector_index.strangers(case.aim)


# --- other generations ---------------------------------------------------------------------------


def _succession(case: _Case) -> Progress:
    """Return what is to be done about generations beside the one that serves."""
    serving = case.aim
    if not _has_tables(serving) or case.decision.blocked is not None:
        return Progress()
    successor = succession.aimed_at(serving, case.spec) if case.decision.needed else None
    number = successor.number if successor else None
    retired = succession.retire(serving, number, case.spec.change.retain_previous_seconds)
    aside = Progress((), None, retired.look_again_seconds, retired.steps)
    progress = _together(succession.keep(serving, number, case.now), aside)
    return progress if successor is None else _together(_succeed(case, successor), progress)


def _succeed(case: _Case, successor: Aim) -> Progress:
    shown = succession.shown(successor, case.aim, case.decision.needed)
    if successor.generation is None:
        if (unavailable := _unoffered(successor)) is not None:
            return Progress((), unavailable, _patience(case.resource, case.now), withheld=shown)
        if case.spec.suspend:
            return Progress(withheld=shown)
    return succession.succeed(successor, case.aim, case.now, (_write_spec(case.resource, successor),))


def wanted_logins(resource: Resource, spec: PolarisIndexSpec, world: IndexWorld) -> tuple[Wanted, ...]:
    """Return the logins that `access` asks for; none for an object that is being deleted."""
    if resource.deleted_at is not None:
        return ()
    reader = names.index_role(world.catalog, world.number, "reader")
    return tuple(
        Wanted(one.name, reader, (resource.key.namespace, one.secret_name), one.overlap_seconds)
        for one in spec.access
    )


# --- what comes before anything else -------------------------------------------------------------


def _consent(case: _Case, *, claimed: bool) -> tuple[Step, ...]:
    """Return the steps about the object's end, in an order in which a crash costs nobody his data.

    While the row may say Delete the finalizer is there: going to Retain, it is let go of last.
    """
    policy = _policy(case.aim, case.spec) if claimed else ()
    finalizer = _finalizer(case.resource, case.spec)
    if _at_its_end(case.spec) == DeletionPolicy.DELETE:
        return (*finalizer, *policy)
    return (*policy, *finalizer) if claimed else ()


def _finalizer(resource: Resource, spec: PolarisIndexSpec) -> tuple[Step, ...]:
    wanted = _at_its_end(spec) == DeletionPolicy.DELETE
    if wanted == (FINALIZER in resource.finalizers):
        return ()
    sentence = (
        "Hold the object until its data is removed: deletionPolicy is Delete"
        if wanted
        else "Hold the object no more: its data stays when it is deleted"
    )
    return (Step(Reason.SPEC_CHANGED, sentence, SetFinalizer(present=wanted)),)


def _policy(aim: Aim, spec: PolarisIndexSpec) -> tuple[Step, ...]:
    # It holds when the object is gone, so it may not wait for anything.
    row, policy = aim.world.row, _at_its_end(spec).value
    if row is None or row.deletion_policy == policy:
        return ()
    update = compose(
        "UPDATE polaris.indexes SET deletion_policy = {policy} WHERE id = {number}",
        policy=literal(policy),
        number=aim.name.number,
    )
    sentence = f"Write down what becomes of the data when the object is deleted: {policy}"
    return (aim.step(Reason.SPEC_CHANGED, sentence, update),)


def _at_its_end(spec: PolarisIndexSpec) -> DeletionPolicy:
    """Return what becomes of the data when the object is deleted: while it is suspended, nothing."""
    return DeletionPolicy.RETAIN if spec.suspend else spec.deletion_policy


def _model_unavailable(aim: Aim) -> Blocked | None:
    """Return that nobody embeds with the model; once there are tables, a worker may come and go."""
    return None if aim.generation is not None and not generation.stale(aim) else _unoffered(aim)


def _unoffered(aim: Aim) -> Blocked | None:
    wanted, world = aim.spec.embedding, aim.world
    same = {
        model
        for model in world.models
        if (model.provider, model.model, model.revision) == (wanted.provider, wanted.model, wanted.revision)
    }
    if any(model.dimension == wanted.dimension for model in same):
        return None
    offered = ", ".join(sorted(map(str, same or world.models))) or "nothing"
    message = (
        f"no running worker embeds with {wanted.provider}/{wanted.model} revision {wanted.revision}"
        f" with dimension {wanted.dimension}; offered: {offered}"
    )
    return Blocked(Reason.MODEL_UNAVAILABLE, message, stalled=True)


def _patience(resource: Resource, now: datetime) -> float:
    """Return when to look for a worker again: soon at first, when everything has just been started."""
    for condition in resource.status.get("conditions", ()):
        if condition["type"] == "Stalled" and condition["reason"] == Reason.MODEL_UNAVAILABLE:
            waited = (now - datetime.fromisoformat(condition["lastTransitionTime"])).total_seconds()
            return min(max(waited / 2, _SHORTEST_SECONDS), _NOT_OURS_SECONDS)
    return _SHORTEST_SECONDS


# --- the way to the spec -------------------------------------------------------------------------


def _converge(case: _Case) -> Progress:
    """Return all steps towards the aim, up to the first thing that has to be waited for."""
    aim = case.aim
    blocked = schema.missing_groups(aim)
    if blocked is not None:
        return Progress((), blocked, LOOK_AGAIN_SECONDS)
    first: list[Step] = []
    if generation.stale(aim):
        step, world = generation.discard(aim)
        first, aim = [step], dataclasses.replace(aim, world=world)
    blocked = schema.damage(aim)
    if blocked is not None:
        return Progress(tuple(first), blocked)
    first += _provisions(aim)
    if not _has_tables(aim):
        # The tables and their indexes are made together by the steps before.
        return Progress((*first, *_point(case, aim)))
    return _converge_indexes(case, first)


def _has_tables(aim: Aim) -> bool:
    return aim.generation is not None and aim.chunks.name in aim.world.relations


def _converge_indexes(case: _Case, first: list[Step]) -> Progress:
    aim, kept = case.aim, vector_index.kept(case.aim)
    steps = [*first, *pg_index.unwanted_builds(aim, kept)]
    settled = vector_index.settle(aim, case.now)
    for part in (settled, _attributes(aim, case.now)):
        steps += part.steps
        if part.blocked is not None:
            return Progress(tuple(steps), part.blocked, part.look_again_seconds)
    tended = hygiene.tend(aim, vector_index.wanted_index(aim), case.now)
    # A DROP would wait for a build, which in turn would wait for it.
    busy = pg_index.builds_on(aim, aim.chunks.name)
    left = Progress() if busy else pg_index.leftovers(aim, kept)
    # What is about to be built anew is measured after it.
    measured = [] if settled.steps or tended.aside else recall.steps(aim)
    made = Progress((*steps, *_point(case, aim)), None, None, (*left.steps, *measured))
    return _together(_together(made, tended), Progress(look_again_seconds=left.look_again_seconds))


def _attributes(aim: Aim, now: datetime) -> Progress:
    # During a bulk load they would only slow it down.
    serving = aim.generation is not None and aim.generation.state == "serving"
    return pg_index.attain(aim, now) if serving else Progress()


def _provisions(aim: Aim) -> list[Step]:
    """Return the steps for all but the indexes of tables that hold rows."""
    return [
        *schema.roles(aim),
        *schema.schema(aim),
        *schema.document_tables(aim),
        *generation.tables(aim),
        *schema.ownership(aim),
        *schema.own_ownership(aim),
        *schema.own_storage(aim),
        *schema.views(aim),
        *schema.grants(aim),
    ]


def _point(case: _Case, aim: Aim) -> list[Step]:
    """Return the step that says that the spec is true; the service goes by it from then on."""
    if case.decision.blocked is not None or case.decision.needed:
        return []
    row, resource = aim.world.subject, case.resource
    number, serving = aim.name.number, row.serving if row else None
    same = aim.made == aim.spec
    if same and row is not None and serving is not None and row.object_generation == resource.generation:
        return []
    statements: list[Sql] = []
    if serving is None:
        statements.append(set_generation(aim, valid_since=Sql("coalesce(valid_since, now())")))
    if not same or serving is None:
        statements += [*recall.forget(aim), _write_spec(resource, aim)]
        statements.append(tell(CATALOG_CHANNEL, number))
    elif row is not None and row.object_generation != resource.generation:
        statements.append(
            compose(
                "UPDATE polaris.indexes SET object_generation = {generation} WHERE id = {number}",
                generation=resource.generation,
                number=number,
            )
        )
    sentence = (
        f"Serve generation {aim.number}" if serving is None else "Write down the spec that was made true"
    )
    return [aim.step(Reason.SPEC_CHANGED, sentence, *statements)]


def _write_spec(resource: Resource, aim: Aim) -> Sql:
    # Without defaults: a field that a new version brings is then no matter to replicas of the old one
    # until somebody uses it. They refuse what they do not know, and would serve no index at all.
    spec = aim.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return compose(
        "UPDATE polaris.indexes SET spec = {spec}, object_generation = {generation}, serving = {serving},"
        " updated_at = now() WHERE id = {number}",
        spec=json_literal(spec),
        generation=resource.generation,
        serving=aim.number,
        number=aim.name.number,
    )


# --- drift that is only reported, and suspension -------------------------------------------------


def _drift(case: _Case) -> tuple[Step, ...]:
    """Return what would repair the spec that was made true; nothing for one that never was."""
    if case.aim.made is None:
        return ()
    made = dataclasses.replace(case.aim, spec=case.aim.made)
    if schema.missing_groups(made) or schema.damage(made):
        return ()
    steps = _provisions(made)
    if _has_tables(made):
        steps += [*_vector_drift(case, made), *_attributes(made, case.now).steps]
    return tuple(steps)


def _vector_drift(case: _Case, made: Aim) -> tuple[Step, ...]:
    state = made.generation.state if made.generation else "serving"
    asked = (made.spec.index, made.spec.embedding) == (case.aim.spec.index, case.aim.spec.embedding)
    if state != "serving" or not asked:
        return ()  # On its way somewhere, by a worker's wish or by an edit.
    steps = vector_index.settle(made, case.now).steps
    return tuple(step for step in steps if step.reason != Reason.BULK_LOAD)


def _drifted(drift: Iterable[Step]) -> Blocked:
    what = "; ".join(step.sentence for step in drift)
    return Blocked(
        Reason.DRIFTED, f"the database is not what the spec says, and drift is Report: {what}", stalled=True
    )


def _suspended(withheld: tuple[Step, ...], blocked: Blocked | None) -> Blocked | None:
    if not withheld:
        return blocked
    message = f"suspended with {len(withheld)} steps to be done; the first: {withheld[0].sentence}"
    return Blocked(Reason.SUSPENDED, message, stalled=True)


__all__ = ["plan_index", "wanted_logins"]
