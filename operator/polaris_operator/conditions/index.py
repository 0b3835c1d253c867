"""The status of a PolarisIndex: pure, from what was observed and what is left to be done.

`Serving` says whether queries are answered now; `Ready`, whether everything is as the spec says. An
index that waits for a person, or builds another index beside the one that serves, serves all the while.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from polaris import names
from polaris.spec import PolarisIndexSpec
from polaris.status import (
    ActiveStatus,
    CandidateStatus,
    IndexStatus,
    PlanStatus,
    PreviousStatus,
    Reason,
    RecallStatus,
    StepStatus,
    VerificationStatus,
)
from polaris_operator.conditions import credentials, progress, shared
from polaris_operator.conditions.shared import Said
from polaris_operator.objects import Resource
from polaris_operator.plan import recall
from polaris_operator.plan.approval import plan_hash
from polaris_operator.plan.index import wanted_logins
from polaris_operator.plan.ownership import is_own
from polaris_operator.plan.preflight import fitting
from polaris_operator.plan.succession import drop_after, filled
from polaris_operator.steps import Plan, Step, statements
from polaris_operator.world.credentials import Wanted
from polaris_operator.world.index import ClassRecall, GenerationRow, IndexAndLogins, IndexWorld

_SHOWN_STEPS = 50
_SHOWN_CHARACTERS = 16_000


def index_status(
    resource: Resource, spec: PolarisIndexSpec, facts: IndexAndLogins, plan: Plan, now: datetime
) -> IndexStatus:
    """Return the status from the world after the last step, and from what is left of the index's plan.

    What is left to be done about logins is not in that plan.
    """
    world, wanted = facts.index, wanted_logins(resource, spec, facts.index)
    said = [
        ready(resource, spec, facts, plan, now),
        serving(resource, world),
        fresh(wanted, facts, now),
        recall_met(resource, spec, world),
        *shared.progress(plan),
    ]
    ours = is_own(resource, world)
    return IndexStatus(
        observed_generation=resource.generation,
        conditions=shared.stamped(resource.status, said, resource.generation, now),
        catalog=f"{world.catalog}/{world.row.number}" if ours and world.row else None,
        query_url=_query_url(resource, world),
        active=active(world) if ours else None,
        candidate=candidate(world, spec, resource.status) if ours else None,
        previous=previous(spec, world) if ours else None,
        plan=shown_plan(spec, world, plan.withheld),
        verification=verification(world) if ours else None,
        credentials=credentials.lines(wanted, facts.credentials) if facts.credentials else [],
    )


# --- conditions ----------------------------------------------------------------------------------


def ready(
    resource: Resource, spec: PolarisIndexSpec, facts: IndexAndLogins, plan: Plan, now: datetime
) -> Said:
    """Return whether everything is as the spec says."""
    if plan.blocked is not None:
        return Said("Ready", "False", plan.blocked.reason, plan.blocked.message)
    if plan.steps:
        return Said("Ready", "False", plan.steps[0].reason, plan.steps[0].sentence)
    if resource.deleted_at is not None:
        return Said("Ready", "False", Reason.DELETING, "the object is being deleted")
    lives = serving(resource, facts.index)
    if lives.status != "True":
        return Said("Ready", "False", lives.reason, lives.message)
    if useless := unfit(resource, spec, facts, now):
        return Said("Ready", "False", fresh(useless, facts, now).reason, fresh(useless, facts, now).message)
    suffix = ", and is suspended" if spec.suspend else ""
    return Said("Ready", "True", Reason.READY, f"it serves as its spec says{suffix}")


def unfit(resource: Resource, spec: PolarisIndexSpec, facts: IndexAndLogins, now: datetime) -> list[Wanted]:
    """Return the logins that nobody can use now."""
    wanted, world = wanted_logins(resource, spec, facts.index), facts.credentials
    return [one for one in wanted if world is None or credentials.unfit(one, world, now)]


def fresh(wanted: Sequence[Wanted], facts: IndexAndLogins, now: datetime) -> Said:
    """Return whether the logins of readers are there, and not due to be replaced."""
    if not wanted:
        return Said("CredentialsFresh", "True", Reason.FRESH, "no logins are asked for")
    if facts.credentials is None:
        return Said("CredentialsFresh", "False", Reason.PENDING, "there is nothing to read yet")
    return credentials.fresh(wanted, facts.credentials, now)


def serving(resource: Resource, world: IndexWorld) -> Said:
    """Return whether the service can answer queries of this index now."""
    row, generation = world.row, world.generation
    if row is None or not is_own(resource, world):
        return Said("Serving", "False", Reason.PENDING, "nothing serves under this object's name")
    if row.serving is None or row.spec is None or generation is None:
        return Said("Serving", "False", Reason.PROVISIONING, "it was not made true yet")
    tables = (
        names.DOCUMENTS,
        names.VERSIONS,
        names.chunks_table(generation.number),
        names.applied_table(generation.number),
    )
    missing = [table for table in tables if table not in world.relations]
    if missing:
        return Said("Serving", "False", Reason.DRIFTED, f"{', '.join(missing)} is gone")
    return Said("Serving", "True", Reason.SERVING, _how(generation))


def _how(generation: GenerationRow) -> str:
    if generation.state != "serving":
        return f"generation {generation.number} serves by comparing every row while it is {generation.state}"
    if generation.vector_index is None:
        return f"generation {generation.number} serves by comparing every row"
    return f"generation {generation.number} serves with {generation.vector_index}"


def recall_met(resource: Resource, spec: PolarisIndexSpec, world: IndexWorld) -> Said:
    """Return whether the promise of recall is kept, as far as it was measured."""
    generation = world.generation
    if generation is None or not is_own(resource, world):
        return Said("RecallMet", "Unknown", Reason.NOT_MEASURED, "there is nothing to measure yet")
    if generation.vector_index is None:
        return Said("RecallMet", "True", Reason.MEASURED, "every row is compared, so nothing is missed")
    if generation.recall is None:
        return Said("RecallMet", "Unknown", Reason.NOT_MEASURED, "it is measured once there is time for it")
    target = spec.search.target_recall_percent
    rows = f"at {generation.recall_rows} rows with ef_search {generation.ef_search}"
    found = "; ".join(map(_told, recall.classes(generation)))
    message = f"of the exact top 10 are found {found}; {rows}; promised: {target}%"
    if recall.below(generation, target / 100) is None:
        return Said("RecallMet", "True", Reason.MEASURED, message)
    return Said("RecallMet", "False", Reason.BELOW_TARGET, message)


def _told(one: ClassRecall) -> str:
    interval = f" ({_percent(one.low)} to {_percent(one.high)})" if one.vectors else ""
    return f"{_percent(one.recall)}%{interval} {recall.described(one)}"


def _percent(recall: float) -> str:
    # Rounded down: 99.96 is not 100.
    return f"{int(recall * 1000) / 10:.1f}"


def _query_url(resource: Resource, world: IndexWorld) -> str | None:
    """Return where queries of this index are answered; None where nobody says that he does."""
    if world.query_url is None or serving(resource, world).status != "True":
        return None
    key = resource.key
    return f"{world.query_url.rstrip('/')}/v1/indexes/{key.namespace}/{key.name}"


# --- the rest ------------------------------------------------------------------------------------


def active(world: IndexWorld) -> ActiveStatus | None:
    """Return what serves; None where nothing does yet."""
    row, generation = world.row, world.generation
    if row is None or row.serving is None or generation is None:
        return None
    chunks = names.chunks_table(generation.number)
    relation = world.relations.get(chunks)
    return ActiveStatus(
        generation=generation.number,
        table=f"{row.schema}.{chunks}",
        index=generation.vector_index or "",
        rows=relation.rows if relation else 0,
        model=str(generation.embedding["model"]),
        dimension=int(generation.embedding["dimension"]),
        spec_hash=names.digest(row.spec or {}),
        valid_since=generation.valid_since,
    )


def candidate(
    world: IndexWorld, spec: PolarisIndexSpec, said: Mapping[str, Any] | None = None
) -> CandidateStatus | None:
    """Return how far what is being made is: another generation, or another vector index of the same one.

    `said` is the status before.
    """
    before = (said or {}).get("candidate") or {}
    others = (row for row in world.others if row.superseded_at is None)
    successor = max(others, key=lambda row: row.number, default=None)
    if successor is not None:
        return _made(world, spec, successor, before) or _filling(world, successor)
    return _made(world, spec, world.generation, before) if world.generation else None


def _filling(world: IndexWorld, generation: GenerationRow) -> CandidateStatus:
    done, total = filled(world, generation.number)
    phase = "catching up" if generation.state == "serving" else "filling"
    share = f"{100 * done // total}%" if total else ""
    return CandidateStatus(generation=generation.number, phase=phase, progress=share, done=done, total=total)


def _made(
    world: IndexWorld, spec: PolarisIndexSpec, generation: GenerationRow, before: Mapping[str, Any]
) -> CandidateStatus | None:
    for build in world.builds:
        if build.table == names.chunks_table(generation.number):
            fits = fitting(world, spec, generation)
            return progress.candidate(generation.number, build, world.now, before, fits)
    if generation.state == "serving" or (
        generation is not world.generation and generation.state == "loading"
    ):
        return None
    # Between two builds, or before the first: the state of the load is all there is to say.
    phase = "loading" if generation.state == "loading" else "waiting to be built"
    return CandidateStatus(generation=generation.number, phase=phase, progress="", done=0, total=0)


def previous(spec: PolarisIndexSpec, world: IndexWorld) -> PreviousStatus | None:
    """Return what served before, while it is kept."""
    others = (row for row in world.others if row.superseded_at is not None)
    generation = max(others, key=lambda row: row.superseded_at or world.now, default=None)
    if generation is None or world.row is None:
        return None
    end = drop_after(generation, spec.change.retain_previous_seconds)
    assert end is not None  # noqa: S101  for the type checker
    table = f"{world.row.schema}.{names.chunks_table(generation.number)}"
    return PreviousStatus(generation=generation.number, table=table, drop_after=end)


def verification(world: IndexWorld) -> VerificationStatus | None:
    """Return what was measured last; None before the first time."""
    generation = world.generation
    if generation is None or generation.recall_at is None:
        return None
    return VerificationStatus(
        last_time=generation.recall_at,
        recall_percent="" if generation.recall is None else _percent(generation.recall),
        classes=[_class(one) for one in recall.classes(generation) if one.vectors],
        ef_search=generation.ef_search,
        index_used=generation.vector_index is not None and world.canary == generation.vector_index,
    )


def _class(one: ClassRecall) -> RecallStatus:
    return RecallStatus(
        of=one.of,
        attribute=one.attribute or "",
        rows_percent="" if one.share is None else f"{100 * one.share:.1f}",
        vectors=one.vectors,
        recall_percent=_percent(one.recall),
        low_percent=_percent(one.low),
        high_percent=_percent(one.high),
    )


# --- the plan that is shown ----------------------------------------------------------------------


def shown_plan(spec: PolarisIndexSpec, world: IndexWorld, withheld: Sequence[Step]) -> PlanStatus | None:
    """Return what would be done, while something waits; None where nothing does."""
    if not withheld:
        return None
    return PlanStatus(
        hash=plan_hash(spec, world, withheld),
        destructive=any(step.destructive for step in withheld),
        steps=[
            StepStatus(
                reason=step.reason.value,
                sentence=step.sentence,
                statement=statements(step.action)[:_SHOWN_CHARACTERS],
                destructive=step.destructive,
            )
            for step in withheld[:_SHOWN_STEPS]
        ],
    )
