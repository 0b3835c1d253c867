"""What is said about logins: `CredentialsFresh`, and a line for each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from polaris.status import CredentialStatus, Reason
from polaris_operator.conditions.shared import Said
from polaris_operator.plan.credentials import current_login, late_consumers, plan_credentials, rotate_at
from polaris_operator.world.credentials import CredentialsWorld, Wanted

_NAMED = 10


def fresh(wanted: Sequence[Wanted], world: CredentialsWorld, now: datetime) -> Said:
    """Return CredentialsFresh: every login is there, published, and not due to be replaced."""
    due = [problem for one in wanted if (problem := unfit(one, world, now) or _overdue(one, world, now))]
    late = [words for one in wanted if (words := _late(one, world, now))]
    if not due:
        message = "; ".join((f"{len(wanted)} logins are published", *late))
        return Said("CredentialsFresh", "True", Reason.FRESH, message)
    plan = plan_credentials(wanted, world, now)
    reason, why = Reason.ROTATING, ""
    if plan.blocked is not None:
        reason, why = plan.blocked.reason, f": {plan.blocked.message}"
    return Said("CredentialsFresh", "False", reason, "; ".join((*due, *late)) + why)


def unfit(wanted: Wanted, world: CredentialsWorld, now: datetime) -> str | None:
    """Return why nobody can use a login; None where it works."""
    current = current_login(wanted, world)
    if current is None:
        return f"login {wanted.name} was not issued yet"
    if not current.role_exists or (current.expires_at is not None and now >= current.expires_at):
        return f"login {wanted.name}, epoch {current.epoch}, has ended"
    seen = world.secrets.get(wanted.secret)
    if seen is None or seen.owner_uid != world.owner_uid or not seen.intact:
        return f"login {wanted.name} is not in Secret {wanted.secret[0]}/{wanted.secret[1]}"
    return None


def _overdue(wanted: Wanted, world: CredentialsWorld, now: datetime) -> str | None:
    current = current_login(wanted, world)
    if current is None or now < rotate_at(current):
        return None
    return f"login {wanted.name}, epoch {current.epoch}, is past half of its life"


def _late(wanted: Wanted, world: CredentialsWorld, now: datetime) -> str:
    late = late_consumers(wanted, world, now)
    if not late:
        return ""
    return f"{_some(late)} still use a login {wanted.name} that was replaced, and keep it from being revoked"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def lines(
    wanted: Sequence[Wanted], world: CredentialsWorld, now: datetime | None = None
) -> list[CredentialStatus]:
    """Return what `status.credentials` says; who is late only where it is said what time it is.

    Of the logins of `access` nobody reports that he uses them, so nobody is late there.
    """
    found = []
    for one in wanted:
        current = current_login(one, world)
        if current is None or current.expires_at is None:
            continue
        users = [consumer for consumer in world.consumers if consumer.kind == one.name]
        found.append(
            CredentialStatus(
                name=one.name,
                epoch=current.epoch,
                expires_at=current.expires_at,
                seal_tolerance_seconds=int((current.expires_at - rotate_at(current)).total_seconds()),
                acknowledged=sum(consumer.username == current.username for consumer in users),
                consumers=len(users),
                late=late_consumers(one, world, now)[:_NAMED] if now else [],
            )
        )
    return found
