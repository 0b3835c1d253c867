"""Looks over a whole database at once: the resync of its indexes, and what gone objects left.

A pass over one index takes some 20 ms, most of it in PostgreSQL's catalogs. One look at all of them
takes little more than that, so only those get a pass of which the look shows that there is something
to do or to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from polaris.errors import InvalidManifest
from polaris.spec import PolarisIndexSpec, parse_spec
from polaris_operator.collector import collect
from polaris_operator.conditions import shared
from polaris_operator.conditions.index import index_status
from polaris_operator.doors import Doors
from polaris_operator.objects import Resource, database_of
from polaris_operator.observe.index import gather
from polaris_operator.plan.index import plan_index
from polaris_operator.sides.index import claim_of, with_own_work
from polaris_operator.world.index import IndexAndLogins, IndexWorld

# What one look holds in memory: some 30 kB an index.
_BATCH = 100


def patrol(database: Resource, doors: Doors, now: datetime) -> float | None:
    """Look over the indexes of a database; wake those that need a pass. Return when to look again."""
    again = collect(database, doors, now)
    found = list(_indexes(doors))
    for start in range(0, len(found), _BATCH):
        _look_over(found[start : start + _BATCH], doors, now)
    return again


def _look_over(found: Sequence[tuple[Resource, PolarisIndexSpec]], doors: Doors, now: datetime) -> None:
    claims = [claim_of(resource) for resource, _ in found]
    measuring = doors.measurements.pending()
    with doors.postgres.read() as connection:
        worlds = gather(connection, doors.process.installation, claims, canary=False)
    for claim, (resource, spec) in zip(claims, found, strict=True):
        world = with_own_work(worlds[claim], doors, measuring)
        if needs_a_pass(resource, spec, world, now):
            doors.wake(resource.key)


def _indexes(doors: Doors) -> Iterator[tuple[Resource, PolarisIndexSpec]]:
    """Yield the objects that refer to this database, but for those that have a resync of their own."""
    for resource in doors.objects.list("PolarisIndex"):
        if resource.deleted_at is not None:
            continue
        try:
            spec = parse_spec(PolarisIndexSpec, resource.spec)
        except InvalidManifest:
            continue
        if database_of(resource) == doors.database and not spec.access:
            yield resource, spec


def needs_a_pass(resource: Resource, spec: PolarisIndexSpec, world: IndexWorld, now: datetime) -> bool:
    """Whether there is something to do about an index, or its status says something else."""
    plan = plan_index(resource, spec, world, now)
    if plan.steps or plan.aside:
        return True
    # The planner is asked in a pass only: what it said then stands.
    used = bool(resource.status.get("verification", {}).get("indexUsed"))
    pointer = world.generation.vector_index if world.generation else None
    world = replace(world, canary=pointer if used else None)
    status = index_status(resource, spec, IndexAndLogins(world), plan, now)
    return shared.plain(status) != dict(resource.status)
