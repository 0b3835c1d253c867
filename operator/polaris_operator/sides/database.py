"""What `reconcile` needs to know of a PolarisDatabase."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from polaris.spec import PolarisDatabaseSpec
from polaris.status import DatabaseStatus
from polaris_operator.conditions.database import database_status
from polaris_operator.doors import Doors
from polaris_operator.objects import Resource
from polaris_operator.observe.database import gather_database
from polaris_operator.plan.database import in_the_way, plan_database
from polaris_operator.steps import Blocked, Plan
from polaris_operator.world.database import DatabaseWorld

_DEADLINE_SECONDS = int(PolarisDatabaseSpec.model_fields["deletion_deadline_seconds"].default)


class Database:
    """PolarisDatabase, as a side of `reconcile`."""

    def __init__(self, collect: Callable[[Resource, Doors, datetime], float | None]) -> None:
        self._collect = collect

    def gather(
        self, resource: Resource, spec: PolarisDatabaseSpec, doors: Doors, now: datetime
    ) -> DatabaseWorld:
        """Return the world of this object; change nothing."""
        return gather_database(resource, spec, doors, now)

    def plan(
        self, resource: Resource, spec: PolarisDatabaseSpec, world: DatabaseWorld, now: datetime
    ) -> Plan:
        """Return what has to be done."""
        return plan_database(resource, spec, world, now)

    def status(
        self,
        resource: Resource,
        spec: PolarisDatabaseSpec,
        world: DatabaseWorld,
        plan: Plan,
        now: datetime,
    ) -> DatabaseStatus:
        """Return the status."""
        return database_status(resource, spec, world, plan, now)

    def deadline_seconds(self, resource: Resource) -> int:
        """Return how long a deletion may hold the object while its database can't be reached."""
        seconds = resource.spec.get("deletionDeadlineSeconds", _DEADLINE_SECONDS)
        return seconds if isinstance(seconds, int) else _DEADLINE_SECONDS

    def in_the_way(self, spec: PolarisDatabaseSpec, world: DatabaseWorld) -> Blocked | None:
        """Return why indexes can't use the database yet."""
        return in_the_way(spec, world)

    def collect(self, resource: Resource, doors: Doors, now: datetime) -> float | None:
        """Take care of what objects that are gone left in this database."""
        return self._collect(resource, doors, now)
