"""What would be done about an object whose manifest said something else, or that is not there yet.

The one core of `polaris plan` and of the operator's `POST /v1/plan`: the world is observed and the plan made
as in a pass (`reconcile`), and nothing is done about it. What is shown is the text that `apply` executes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from polaris import API_GROUP
from polaris.errors import Conflict, InvalidManifest
from polaris.spec import PolarisIndexSpec, check_transition, parse_spec
from polaris_operator.doors import Doors
from polaris_operator.manifests import Manifest
from polaris_operator.objects import Key, Objects, Resource
from polaris_operator.plan.approval import plan_hash
from polaris_operator.sides.index import Index
from polaris_operator.steps import Plan, Step, statements

# Stands where the API server's will: an object that is not there has none yet.
NO_UID = "00000000-0000-0000-0000-000000000000"

UP_TO_THE_FIRST_WAIT = (
    "only the steps up to the first thing that has to be waited for are shown: what follows is planned once"
    " they are done"
)
UID_IS_NOT_KNOWN = (
    f"the object is not in the cluster yet: in its statements {NO_UID} stands for the uid that it will get"
)
NOT_WHILE_SUSPENDED = "nothing of it is done while spec.suspend is true"


@dataclass(frozen=True)
class Planned:
    """What would be done about one object."""

    key: Key
    plan: Plan
    hash: str | None = None
    """What `change.approvedPlan` names; None where there is nothing of an index to approve."""
    notices: tuple[str, ...] = ()
    """What whoever reads it should know."""


def proposed(manifest: Manifest, objects: Objects) -> Resource:
    """Return the object as it would be with this manifest applied: another spec, other annotations.

    Raises InvalidManifest for a spec that the API server would refuse, also as a change of what is there,
    and Conflict for an object that is being deleted.
    """
    spec = parse_spec(PolarisIndexSpec, manifest.spec)
    annotations = {
        name: text for name, text in manifest.annotations.items() if name.startswith(f"{API_GROUP}/")
    }
    present = objects.get(manifest.key)
    if present is None:
        return Resource(manifest.key, NO_UID, 1, "", manifest.spec, annotations=annotations)
    if present.deleted_at is not None:
        raise Conflict(f"{manifest.key} is being deleted, and no manifest changes that")
    before = None
    with suppress(InvalidManifest):  # An older operator may have let it in.
        before = parse_spec(PolarisIndexSpec, present.spec)
    if before is not None:
        check_transition(before, spec)
    generation = present.generation + (before != spec)
    return replace(present, spec=manifest.spec, annotations=annotations, generation=generation)


def look(resource: Resource, doors: Doors, now: datetime) -> Planned:
    """Return what would be done about an index; only reads. Raises what observing raises."""
    spec, side = parse_spec(PolarisIndexSpec, resource.spec), Index()
    world = side.gather(resource, spec, doors, now)
    plan = side.plan(resource, spec, world, now)
    # What is withheld is the whole change, as in `status.plan`; else all that would be done is.
    every = plan.withheld or (*plan.steps, *plan.aside)
    name = plan_hash(spec, world.index, every) if every else None
    return Planned(resource.key, plan, name, tuple(_notices(resource, spec, every)))


def _notices(resource: Resource, spec: PolarisIndexSpec, every: Sequence[Step]) -> Iterator[str]:
    if not every:
        return
    yield UP_TO_THE_FIRST_WAIT
    if resource.uid == NO_UID:
        yield UID_IS_NOT_KNOWN
    if spec.suspend:
        yield NOT_WHILE_SUSPENDED


def document(planned: Planned) -> dict[str, Any]:
    """Return it as JSON: what `polaris plan -o json` prints and `POST /v1/plan` answers."""
    plan, key = planned.plan, planned.key
    blocked = plan.blocked
    every = (*plan.steps, *plan.withheld, *plan.aside)
    return {
        "kind": key.kind,
        "namespace": key.namespace,
        "name": key.name,
        "hash": planned.hash,
        "destructive": any(step.destructive for step in every),
        "steps": [_step(step) for step in plan.steps],
        "withheld": [_step(step) for step in plan.withheld],
        "aside": [_step(step) for step in plan.aside],
        "blocked": blocked
        and {"reason": blocked.reason.value, "message": blocked.message, "stalled": blocked.stalled},
        "notices": list(planned.notices),
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "reason": step.reason.value,
        "sentence": step.sentence,
        "statement": statements(step.action),
        "destructive": step.destructive,
    }
