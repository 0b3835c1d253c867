"""One pass over one object: gather, decide, act, gather again, report.

The same function serves a new object, a changed one, drift, a resync and a deletion. Nothing is known
from the pass before but what stands in the object, the catalog and PostgreSQL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client import Counter, Histogram

from polaris.errors import (
    ClusterUnavailable,
    Conflict,
    DatabaseRefused,
    DeadlineExceeded,
    NotOwner,
    PolarisError,
    Prerequisite,
    VaultRefused,
    VaultUnavailable,
)
from polaris.names import FINALIZER
from polaris.spec import PolarisDatabaseSpec, PolarisIndexSpec, parse_spec
from polaris.status import DatabaseStatus, IndexStatus, Reason
from polaris.telemetry import logger
from polaris_operator.apply import apply
from polaris_operator.conditions import shared
from polaris_operator.databases import Databases
from polaris_operator.doors import Doors
from polaris_operator.measured import OBJECTS
from polaris_operator.objects import Key, Objects, Resource, database_of
from polaris_operator.steps import Blocked, IssueLogin, Plan, Step, WriteVaultRole

log = logger(__name__)

MOVING_SECONDS = 30.0
"""So long an object keeps to itself that others were quicker, or hold a lock that a step needs."""

S = TypeVar("S", PolarisDatabaseSpec, PolarisIndexSpec)
W = TypeVar("W")
S_contra = TypeVar("S_contra", bound=PolarisDatabaseSpec | PolarisIndexSpec, contravariant=True)

PASSES = Counter(
    "polaris_operator_passes_total", "Passes over objects, by how they ended.", ["kind", "outcome"]
)
SECONDS = Histogram("polaris_operator_pass_seconds", "Time of a pass over an object.", ["kind"])

# What is made first decides what can be seen next: a catalog, then its roles, then its logins.
_ROUNDS = 10
_VAULT_SECONDS = 10.0
# How much longer an index rests that the patrol of its database looks after.
_PATROLLED = 10
# A login that nobody wants any more ends by itself some day: that it does not now is in nobody's way.
_ENDS_OF_LOGINS = (Reason.LOGIN_SUPERSEDED, Reason.LOGIN_REMOVED)
_HELD = (
    "the object is held until the catalog knows that its data is kept; with deletionPolicy Delete, and not"
    " suspended, it is let go after deletionDeadlineSeconds"
)
_ISSUING = (IssueLogin, WriteVaultRole)
# What nothing waits for is tried again after so long.
_ASIDE_SECONDS = 30.0


class Side(Protocol[S_contra, W]):
    """What is particular to objects of one kind. `gather` only reads; the others are pure."""

    def gather(self, resource: Resource, spec: S_contra, doors: Doors, now: datetime) -> W:
        """Return the world of this object; change nothing."""
        ...

    def plan(self, resource: Resource, spec: S_contra, world: W, now: datetime) -> Plan:
        """Return what has to be done."""
        ...

    def status(
        self, resource: Resource, spec: S_contra, world: W, plan: Plan, now: datetime
    ) -> DatabaseStatus | IndexStatus:
        """Return the status, from the world after the last step, and what is left of the plan."""
        ...

    def deadline_seconds(self, resource: Resource) -> int | None:
        """Return how long a deletion may hold the object while its database can't be reached.

        None: for as long as that takes.
        """
        ...


class DatabaseSide(Side[PolarisDatabaseSpec, W], Protocol[W]):
    """What is particular to a PolarisDatabase."""

    def in_the_way(self, spec: PolarisDatabaseSpec, world: W) -> Blocked | None:
        """Return why indexes can't use the database yet."""
        ...

    def collect(self, resource: Resource, doors: Doors, now: datetime) -> float | None:
        """Take care of what objects that are gone left in this database; when to look again."""
        ...


@dataclass(frozen=True)
class _Settled(Generic[W]):
    resource: Resource
    world: W
    again: float | None

    @property
    def gone(self) -> bool:
        """Whether the object was deleted and nothing holds it any more."""
        return self.resource.deleted_at is not None and not self.resource.finalizers


@dataclass(frozen=True)
class Sides:
    """What is particular to each kind."""

    database: DatabaseSide[Any]
    index: Side[PolarisIndexSpec, Any]


class Reconciler:
    """Looks at one object at a time; several threads may look at different ones."""

    def __init__(
        self,
        objects: Objects,
        databases: Databases,
        sides: Sides,
        wake: Callable[[Key], None],
        *,
        resync_seconds: float = 60.0,
    ) -> None:
        self._objects = objects
        self._databases = databases
        self._sides = sides
        self._wake = wake
        self._resync_seconds = resync_seconds
        self._moving: dict[Key, float] = {}
        """Since when passes over an object have ended because the world moved, one after the other."""

    def reconcile(self, key: Key) -> float | None:
        """Make one object true and report; return the seconds until it is to be looked at again.

        None where there is no such object. Raises PolarisError where it could not be done now; the
        object then says so already.
        """
        with SECONDS.labels(key.kind).time():
            try:
                again = self._pass(key)
            except PolarisError as error:
                PASSES.labels(key.kind, type(error).__name__).inc()
                raise
        self._moving.pop(key, None)
        PASSES.labels(key.kind, "done").inc()
        left = self.seconds_left(key)
        return again if left is None else min(again or left, left)

    def seconds_left(self, key: Key) -> float | None:
        """Return the time until a deleted object is let go whatever stands in the way.

        None where it is not being deleted, or has no such time, or that is over.
        """
        resource = self._objects.get(key)
        if resource is None or resource.deleted_at is None:
            return None
        side: Side[Any, Any] = self._sides.database if key.kind == "PolarisDatabase" else self._sides.index
        seconds = side.deadline_seconds(resource)
        if seconds is None:
            return None
        left = (resource.deleted_at + timedelta(seconds=seconds) - datetime.now(UTC)).total_seconds()
        return left if left > 0 else None

    def _pass(self, key: Key) -> float | None:
        resource = self._objects.get(key)
        if resource is None:
            self._gone(key)
            return None
        now = datetime.now(UTC)
        try:
            if key.kind == "PolarisDatabase":
                return self._database(resource, now)
            return self._index(resource, now)
        except ClusterUnavailable:
            raise  # There is nobody to tell.
        except PolarisError as error:
            self._report_failure(resource, error)
            raise
        except Exception as error:
            # Neither its words nor its traceback go into a status: nobody knows what stands in them.
            log.exception("unforeseen error", object=str(key))
            kind = type(error).__name__
            unforeseen = PolarisError(f"the operator failed as nobody foresaw ({kind}); its log says how")
            self._report_failure(resource, unforeseen)
            raise unforeseen from error

    # The two kinds

    def _database(self, resource: Resource, now: datetime) -> float | None:
        key, side = resource.key, self._sides.database
        try:
            spec = parse_spec(PolarisDatabaseSpec, resource.spec)
            doors = self._databases.open(resource, spec)
            settled = self._settle(side, resource, spec, doors)
            if settled.gone:
                self._gone(key)
                return None
            blocked = side.in_the_way(spec, settled.world)
            if blocked is None:
                doors.keep_login()
                doors.postgres.beat()
        except PolarisError as error:
            if isinstance(error, DatabaseRefused):
                self._databases.forget_login(key)
            told = not isinstance(error, ClusterUnavailable) and not _passing(error)
            if told and self._databases.block(key, shared.blocked_by(error)):
                self._wake_indexes(key)
            raise
        allowed = frozenset(spec.allowed_namespaces or [key.namespace])
        if self._databases.settle(key, allowed, blocked):
            self._wake_indexes(key)
        if blocked is None:
            self._databases.listen(key)
        collected = side.collect(resource, doors, now) if blocked is None else None
        times = (settled.again, collected, self._resync_seconds)
        return min(time for time in times if time is not None)

    def _index(self, resource: Resource, now: datetime) -> float | None:
        spec = parse_spec(PolarisIndexSpec, resource.spec)
        doors = self._databases.find(database_of(resource), resource.key.namespace)
        if isinstance(doors, Blocked):
            self._interrupt(resource, self._sides.index, doors, now)
        if doors is None or isinstance(doors, Blocked):
            return self._resync_seconds  # And once its database was looked at.
        settled = self._settle(self._sides.index, resource, spec, doors)
        if settled.gone:
            self._gone(resource.key)
            return None
        # Without logins of its own, its database's patrol looks at it in between.
        rest = self._resync_seconds if spec.access else self._resync_seconds * _PATROLLED
        return min(settled.again or rest, rest)

    def _settle(self, side: Side[S, W], resource: Resource, spec: S, doors: Doors) -> _Settled[W]:
        """Go round until nothing is left to be done, and report what there is then."""
        failure: PolarisError | None = None
        failed = _Failed()
        for _ in range(_ROUNDS):
            now = datetime.now(UTC)
            world = side.gather(resource, spec, doors, now)
            plan = failed.without_ends(side.plan(resource, spec, world, now))
            steps = failed.left_of(plan)
            if failure is not None or not steps:
                break
            try:
                resource = _apply(steps, doors, resource, failed)
            except (VaultUnavailable, VaultRefused) as error:
                # What was issued before lives on, so this is no reason to look no further.
                failure = error
        else:
            raise DeadlineExceeded(
                f"it does not settle in {_ROUNDS} rounds; still to be done: {steps[0].sentence}"
            )
        again, failure = plan.look_again_seconds, failure or failed.issuing
        if failure is not None:
            log.warning("logins failed", object=str(resource.key), error=str(failure))
            plan = replace(plan, blocked=plan.blocked or shared.blocked_by(failure))
            again = min(again or _VAULT_SECONDS, _VAULT_SECONDS)
        if failed.ends:
            again = min(again or _ASIDE_SECONDS, _ASIDE_SECONDS)
        settled = _Settled(resource, world, again)
        if settled.gone:
            return settled
        resource = self._write(resource, shared.plain(side.status(resource, spec, world, plan, now)))
        if not plan.aside:
            return settled
        return self._aside(side, resource, spec, doors, plan) or replace(settled, again=_ASIDE_SECONDS)

    def _aside(
        self, side: Side[S, W], resource: Resource, spec: S, doors: Doors, plan: Plan
    ) -> _Settled[W] | None:
        """Do what nothing waits for, and report again; None where it can't be done now."""
        try:
            resource = apply(plan.aside, doors, resource)
        except PolarisError as error:
            log.warning("put off", object=str(resource.key), error=str(error))
            return None
        now = datetime.now(UTC)
        world = side.gather(resource, spec, doors, now)
        plan = side.plan(resource, spec, world, now)
        self._write(resource, shared.plain(side.status(resource, spec, world, plan, now)))
        return _Settled(resource, world, plan.look_again_seconds)

    # Objects that are gone, or on their way

    def _gone(self, key: Key) -> None:
        OBJECTS.forget(key)
        if key.kind == "PolarisDatabase":
            self._databases.close(key)
            self._wake_indexes(key)
            return
        # What it left behind is its database's to collect, and which that was nobody knows any more.
        for database in self._objects.list("PolarisDatabase"):
            self._wake(database.key)

    def _interrupt(self, resource: Resource, side: Side[Any, Any], blocked: Blocked, now: datetime) -> None:
        """Say why an object can't be looked at now; let a deleted one go that waited for too long."""
        if resource.deleted_at is not None and FINALIZER in resource.finalizers:
            seconds = side.deadline_seconds(resource)
            if seconds is None:
                blocked = replace(blocked, message=f"{blocked.message}; {_HELD}")
            elif now >= resource.deleted_at + timedelta(seconds=seconds):
                log.warning("deleted without its database", object=str(resource.key), seconds=seconds)
                self._objects.set_finalizer(resource, present=False)
                return
        self._write(resource, shared.interrupted(resource, blocked, now))

    def _wake_indexes(self, database: Key) -> None:
        for index in self._objects.list("PolarisIndex"):
            if database_of(index) == database:
                self._wake(index.key)

    # Reporting

    def _report_failure(self, resource: Resource, error: PolarisError) -> None:
        now = datetime.now(UTC)
        database = resource.key.kind == "PolarisDatabase"
        side: Side[Any, Any] = self._sides.database if database else self._sides.index
        # The object may have changed under us: a finalizer, a status.
        present = self._objects.get(resource.key)
        if present is None or not self._worth_telling(resource.key, error):
            return  # It is looked at again in a moment; what it says still holds.
        self._interrupt(present, side, shared.blocked_by(error), now)

    def _worth_telling(self, key: Key, error: PolarisError) -> bool:
        """Whether it is more than that the world moved while we looked; that passes, unless it goes on."""
        if not _passing(error):
            self._moving.pop(key, None)
            return True
        now = time.monotonic()
        return now - self._moving.setdefault(key, now) >= MOVING_SECONDS

    def _write(self, resource: Resource, status: dict[str, Any]) -> Resource:
        OBJECTS.report(resource.key, status)
        if status == resource.status:
            return resource
        before, after = (shared.condition(one, "Stalled") for one in (resource.status, status))
        written = self._objects.write_status(resource, status)
        if after and after.get("reason") != before.get("reason"):
            self._objects.event(resource, after["reason"], after["message"], warning=True)
        for line in _newly_late(resource.status, status):
            self._objects.event(resource, "LoginNotAcknowledged", line, warning=True)
        return written


def _newly_late(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Tell of each consumer once that it does not go over to a new login."""
    known = {line["name"]: set(line.get("late") or ()) for line in before.get("credentials") or ()}
    for line in after.get("credentials") or ():
        if new := set(line.get("late") or ()) - known.get(line["name"], set()):
            yield (
                f"{', '.join(sorted(new))} did not go over to epoch {line['epoch']} of login {line['name']}:"
                " the one before is kept until they do, or until it ends"
            )


@dataclass
class _Failed:
    """Steps about logins that failed in a pass: they are tried again in another one, and stop nothing else.

    But for an object that is being deleted: it is held until everything made for it is gone.
    """

    ends: list[Step] = field(default_factory=list)
    """Of logins that nobody wants any more; they end by themselves some day, so nobody is told."""
    issuing: PolarisError | None = None
    """Why a login that is wanted was not issued."""

    def take(self, step: Step, error: PolarisError, resource: Resource) -> bool:
        """Put a step aside; False where it is none that may be."""
        if isinstance(step.action, _ISSUING):
            self.issuing = error
        elif step.reason in _ENDS_OF_LOGINS and resource.deleted_at is None:
            self.ends.append(step)
            log.warning("not revoked", object=str(resource.key), step=step.sentence, error=str(error))
        else:
            return False
        return True

    def without_ends(self, plan: Plan) -> Plan:
        """Return the plan without the ends of logins that were tried already."""
        actions = [step.action for step in self.ends]
        return replace(plan, steps=tuple(step for step in plan.steps if step.action not in actions))

    def left_of(self, plan: Plan) -> tuple[Step, ...]:
        """Return what is to be tried now."""
        if self.issuing is None:
            return plan.steps
        return tuple(step for step in plan.steps if not isinstance(step.action, _ISSUING))


def _apply(steps: Sequence[Step], doors: Doors, resource: Resource, failed: _Failed) -> Resource:
    """Carry out the steps; those about logins that fail are put aside, and stop nothing else."""
    for step in steps:
        try:
            resource = apply([step], doors, resource)
        except (VaultUnavailable, VaultRefused, Prerequisite) as error:
            if not failed.take(step, error, resource):
                raise
    return resource


def _passing(error: PolarisError) -> bool:
    """Whether the world only moved while we looked: nothing that anybody has to be told."""
    return isinstance(error, Conflict) and not isinstance(error, NotOwner)
