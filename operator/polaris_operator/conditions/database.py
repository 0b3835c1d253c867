"""What is said about a PolarisDatabase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from polaris.spec import PolarisDatabaseSpec
from polaris.status import DatabaseStatus, DeletedStatus, Reason
from polaris_operator.conditions import credentials
from polaris_operator.conditions.shared import Said, progress, stamped
from polaris_operator.objects import Resource
from polaris_operator.plan.database import in_the_way, wanted_logins
from polaris_operator.steps import Plan
from polaris_operator.world.credentials import Wanted
from polaris_operator.world.database import DatabaseWorld, Tombstone


def database_status(
    resource: Resource, spec: PolarisDatabaseSpec, world: DatabaseWorld, plan: Plan, now: datetime
) -> DatabaseStatus:
    """Return the status of a PolarisDatabase: `world` is after the last step, `plan` what is left."""
    catalog = world.catalog
    wanted = wanted_logins(resource.key, spec, catalog.id) if catalog else ()
    said = tuple(_said(resource, spec, world, plan, now))
    return DatabaseStatus(
        observed_generation=resource.generation,
        conditions=stamped(resource.status, said, resource.generation, now),
        server_version=world.server_version,
        vector_version=world.vector_version,
        catalog=catalog.id if catalog else None,
        catalog_revision=catalog.revision if catalog else None,
        indexes=catalog.indexes if catalog else None,
        deleted=[_deleted(catalog.id, one) for one in catalog.tombstones] if catalog else [],
        credentials=credentials.lines(wanted, world.credentials, now) if world.credentials else [],
    )


def _deleted(catalog: str, one: Tombstone) -> DeletedStatus:
    return DeletedStatus(
        index=one.index, id=f"{catalog}/{one.number}", deleted_at=one.deleted_at, drop_after=one.drop_after
    )


def _said(
    resource: Resource, spec: PolarisDatabaseSpec, world: DatabaseWorld, plan: Plan, now: datetime
) -> Iterator[Said]:
    wanted: Sequence[Wanted] = ()
    if world.catalog is not None:
        wanted = wanted_logins(resource.key, spec, world.catalog.id)
    ready = _ready(spec, world, plan, wanted, now)
    yield ready
    if world.credentials is not None:
        yield credentials.fresh(wanted, world.credentials, now)
    else:
        yield Said("CredentialsFresh", "Unknown", Reason.PENDING, "the ledger of logins was not looked at")
    # Where Vault is away but all that it issued lives, nothing waits and nobody has to do anything
    # about this object: CredentialsFresh says it.
    if ready.status != "True" or resource.deleted_at is not None:
        yield from progress(plan)


def _ready(
    spec: PolarisDatabaseSpec, world: DatabaseWorld, plan: Plan, wanted: Sequence[Wanted], now: datetime
) -> Said:
    blocked = in_the_way(spec, world) or plan.blocked
    if in_the_way(spec, world) is not None and blocked is not None:
        return Said("Ready", "False", blocked.reason, blocked.message)
    if world.catalog is None or world.credentials is None:
        return Said("Ready", "False", Reason.PROVISIONING, "the catalog is not there yet")
    unfit = [why for one in wanted if (why := credentials.unfit(one, world.credentials, now))]
    if not unfit:
        return Said("Ready", "True", Reason.READY, _summary(world))
    if blocked is None:
        return Said("Ready", "False", Reason.PROVISIONING, "; ".join(unfit))
    return Said("Ready", "False", blocked.reason, blocked.message)


def _summary(world: DatabaseWorld) -> str:
    catalog = world.catalog.id if world.catalog else ""
    return f"PostgreSQL {world.server_version}, pgvector {world.vector_version}, catalog {catalog}"
