"""What a pass over a PolarisIndex consists of: its index and the logins of its readers, together.

Logins come first in a plan: a rotation never waits for DDL, and goes on while that is suspended. One that
fails is put aside, and DDL does not wait for it either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from polaris import names
from polaris.spec import DeletionPolicy, PolarisIndexSpec
from polaris.status import IndexStatus
from polaris_operator.conditions.index import index_status, unfit
from polaris_operator.doors import Doors
from polaris_operator.objects import Resource
from polaris_operator.observe.attributes import compared
from polaris_operator.observe.credentials import gather_credentials
from polaris_operator.observe.index import gather
from polaris_operator.plan.credentials import plan_credentials
from polaris_operator.plan.deletion import deadline_passed, forget_vault_role, puts_aside
from polaris_operator.plan.index import plan_index, wanted_logins
from polaris_operator.plan.naming import ledger_owner
from polaris_operator.plan.ownership import is_own
from polaris_operator.steps import Plan
from polaris_operator.world.index import Claim, IndexAndLogins, IndexWorld

_DEADLINE_SECONDS = int(PolarisIndexSpec.model_fields["deletion_deadline_seconds"].default)


class Index:
    """PolarisIndex, as a side of `reconcile`."""

    def gather(
        self, resource: Resource, spec: PolarisIndexSpec, doors: Doors, now: datetime
    ) -> IndexAndLogins:
        """Return what there is of the object's index; change nothing."""
        claim = claim_of(resource)
        measuring = doors.measurements.pending()
        with doors.postgres.read() as connection:
            world = gather(connection, doors.process.installation, [claim])[claim]
            world = replace(world, indexes=compared(connection, world, spec.attributes))
        world = with_own_work(world, doors, measuring)
        if not has_logins(resource, world):
            return IndexAndLogins(world)
        wanted = wanted_logins(resource, spec, world)
        return IndexAndLogins(
            world, gather_credentials(doors, resource, ledger_owner(world.number), wanted, now)
        )

    def plan(self, resource: Resource, spec: PolarisIndexSpec, world: IndexAndLogins, now: datetime) -> Plan:
        """Return what has to be done."""
        logins = self._logins(resource, spec, world, now)
        if resource.deleted_at is not None:
            return self._plan_deletion(resource, spec, world, logins, now)
        own = plan_index(resource, spec, world.index, now)
        waits = [w for w in (logins.look_again_seconds, own.look_again_seconds) if w is not None]
        return Plan(
            (*logins.steps, *own.steps),
            own.withheld,
            own.blocked or logins.blocked,
            min(waits, default=None),
            own.aside,
        )

    def status(
        self, resource: Resource, spec: PolarisIndexSpec, world: IndexAndLogins, plan: Plan, now: datetime
    ) -> IndexStatus:
        """Return the status, from the world after the last step."""
        if resource.deleted_at is None:
            own = plan_index(resource, spec, world.index, now)
            # What stands in the way of logins is of no concern while there are others to use.
            lacking = not own.steps and unfit(resource, spec, world, now)
            plan = replace(own, blocked=own.blocked or (plan.blocked if lacking else None))
        return index_status(resource, spec, world, plan, now)

    def deadline_seconds(self, resource: Resource) -> int | None:
        """Return how long a deletion may hold the object while its database can't be reached.

        None, for as long as that takes, where its data stays: the catalog may still say Delete, and goes
        by it when the object is gone.
        """
        if resource.spec.get("deletionPolicy") != DeletionPolicy.DELETE.value or resource.spec.get("suspend"):
            return None
        seconds = resource.spec.get("deletionDeadlineSeconds", _DEADLINE_SECONDS)
        return seconds if isinstance(seconds, int) else _DEADLINE_SECONDS

    def _logins(
        self, resource: Resource, spec: PolarisIndexSpec, world: IndexAndLogins, now: datetime
    ) -> Plan:
        if world.credentials is None:
            return Plan()
        return plan_credentials(wanted_logins(resource, spec, world.index), world.credentials, now)

    def _plan_deletion(
        self, resource: Resource, spec: PolarisIndexSpec, world: IndexAndLogins, logins: Plan, now: datetime
    ) -> Plan:
        if logins.blocked is not None and not deadline_passed(resource, spec, now):
            if not puts_aside(resource, spec, world.index):
                # A reader's role that goes before its logins would leave them behind.
                return Plan((), (), logins.blocked, logins.look_again_seconds)
            return plan_index(resource, spec, world.index, now)
        vault = world.credentials is not None and world.credentials.vault is not None
        roles = forget_vault_role(world.index) if vault else ()
        return plan_index(resource, spec, world.index, now, revocations=(*logins.steps, *roles))


def claim_of(resource: Resource) -> Claim:
    """Return whose index the object says that it wants."""
    key = resource.key
    return Claim(key.namespace, key.name, resource.annotations.get(names.ADOPT_ANNOTATION))


def has_logins(resource: Resource, world: IndexWorld) -> bool:
    """Whether logins of the index may be there, or be made."""
    row = world.row
    reader = names.index_role(world.catalog, world.number, "reader")
    going = row is not None and row.uid == resource.uid and resource.deleted_at is not None
    return (is_own(resource, world) or going) and reader in world.roles


def with_own_work(world: IndexWorld, doors: Doors, measuring: Mapping[int, frozenset[int]]) -> IndexWorld:
    """Return the world with what this process knows of builds and measurements that it started.

    `measuring` is what was measured before the look: a result that came since is seen by the next one.
    """
    if world.subject is None:
        return world
    schema = world.subject.schema
    failures = {
        index: failure for (place, index), failure in doors.postgres.failures.items() if place == schema
    }
    return replace(world, failures=failures, measuring=measuring.get(world.number, frozenset()))
