"""What has to be done about logins: issue, publish, rotate, revoke.

A login is issued anew at half of its life, so consumers have the other half to follow, and outlive an
absent operator for that long. The old one then stays valid for at least `overlap_seconds` (a mounted
Secret reaches its reader up to 90 s late), and for as long as a consumer reports that it still uses
it; its own expiry is the end in any case. Nobody who reports is ever cut off by us.

An epoch is used once: what a crash left half made is revoked, and the next epoch is issued.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from polaris import names
from polaris.sql import compose, identifier
from polaris.status import Reason
from polaris_operator import ledger
from polaris_operator.steps import (
    Blocked,
    Execute,
    IssueLogin,
    Plan,
    RedirectLogin,
    RevokeLease,
    RevokeLogin,
    Step,
    WriteVaultRole,
)
from polaris_operator.world.credentials import CredentialsWorld, Login, SecretSeen, VaultSeen, Wanted

# What a request to Vault may take: only then is a lease that nobody wrote down nobody's.
REQUEST_SECONDS = 30
# A Secret that is not ours may be what the last object of this name left, and about to be collected.
_LOOK_AGAIN_SECONDS = 10.0


@dataclass(frozen=True)
class _Due:
    """Nothing to do yet."""

    at: datetime


_Finding = Step | Blocked | _Due


def plan_credentials(wanted: Sequence[Wanted], world: CredentialsWorld, now: datetime) -> Plan:
    """Return the steps that make these logins be there and fresh, and no others.

    After them, and with no time gone by, the same question is answered with no steps.
    """
    findings: list[_Finding] = []
    present: set[int] = set()
    findings += _vault_roles(wanted, world)
    for one in wanted:
        current = current_login(one, world)
        present |= {current.id} if current else set()
        findings += _issue(one, current, world, now)
    findings += _revoke_orphans(world)
    for login in world.logins:
        if login.id not in present:
            findings += _revoke(login, wanted, world, now)
    return _plan(findings, now)


def current_login(wanted: Wanted, world: CredentialsWorld) -> Login | None:
    """Return the login that the Secret holds or should hold: the newest that was issued in full."""
    known = [login for login in world.logins if login.name == wanted.name and _complete(login, world)]
    return max(known, key=lambda login: login.epoch, default=None)


def _complete(login: Login, world: CredentialsWorld) -> bool:
    if login.state == "published":
        return True
    seen = world.secrets.get(login.secret)
    return login.state == "issued" and seen is not None and seen.whole and seen.epoch == login.epoch


def rotate_at(login: Login) -> datetime:
    """Return half of a login's life; the time of issue where nothing is known of its end."""
    if login.issued_at is None or login.expires_at is None:
        return login.requested_at
    return login.issued_at + (login.expires_at - login.issued_at) / 2


def late_consumers(wanted: Wanted, world: CredentialsWorld, now: datetime) -> list[str]:
    """Return who still uses a login of this name that was replaced longer ago than its overlap."""
    old = {
        login.username
        for login in world.logins
        if login.name == wanted.name
        and login.state == "superseded"
        and now >= (login.superseded_at or login.requested_at) + timedelta(seconds=login.overlap_seconds)
    }
    return sorted(consumer.id for consumer in world.consumers if consumer.username in old)


# --- what has to be issued


def _vault_roles(wanted: Sequence[Wanted], world: CredentialsWorld) -> Iterator[_Finding]:
    if world.vault is None or world.vault.unavailable or world.vault.refused:
        return
    for group in dict.fromkeys(one.group_role for one in wanted):
        role = names.vault_role(world.catalog, group)
        if role not in world.vault.roles:
            yield Step(
                Reason.ROLE_MISSING,
                f"Vault's role {role}, which issues members of {group}, is missing or differs",
                WriteVaultRole(role, group),
            )


def _issue(
    wanted: Wanted, current: Login | None, world: CredentialsWorld, now: datetime
) -> Iterator[_Finding]:
    seen = world.secrets.get(wanted.secret)
    if seen is not None and seen.owner_uid != world.owner_uid:
        namespace, name = wanted.secret
        yield Blocked(
            Reason.SECRET_NOT_OURS,
            f"Secret {namespace}/{name} exists and belongs to somebody else: it is not overwritten;"
            " remove it, or choose another secretName",
            stalled=True,
        )
        yield _Due(now + timedelta(seconds=_LOOK_AGAIN_SECONDS))
        return
    if current is not None and current.state == "issued":
        yield Step(
            Reason.LOGIN_MISSING,
            f"login {wanted.name}: epoch {current.epoch} stands in its Secret, and the ledger learns of it",
            Execute(ledger.published(current.id, world.owner, wanted.name)),
        )
    why = _why_anew(wanted, current, world, now)
    if why is None:
        if current is not None:
            yield from _redirect(wanted, current, seen)
            yield _Due(rotate_at(current))
        return
    if (blocked := _vault_in_the_way(world)) is not None:
        yield blocked
        yield _Due(now + timedelta(seconds=_LOOK_AGAIN_SECONDS))
        return
    reason, sentence = why
    action = IssueLogin(
        owner=world.owner,
        name=wanted.name,
        epoch=world.last_epochs.get(wanted.name, 0) + 1,
        group_role=wanted.group_role,
        secret_namespace=wanted.secret[0],
        secret_name=wanted.secret[1],
        overlap_seconds=wanted.overlap_seconds,
    )
    yield Step(reason, f"login {wanted.name}: {sentence}; epoch {action.epoch} is issued", action)


def _redirect(wanted: Wanted, current: Login, seen: SecretSeen | None) -> Iterator[Step]:
    """Tell consumers where the database is now; a login that works is not replaced for that."""
    if seen is None or not seen.elsewhere or current.username is None or current.expires_at is None:
        return
    yield Step(
        Reason.SPEC_CHANGED,
        f"login {wanted.name}: the Secret of epoch {current.epoch} leads to where the database was, or"
        " names an authority or TLS mode of before; the same login is written with those of now",
        RedirectLogin(current.username, current.epoch, current.expires_at, *wanted.secret),
    )


def _why_anew(
    wanted: Wanted, current: Login | None, world: CredentialsWorld, now: datetime
) -> tuple[Reason, str] | None:
    if current is None:
        return Reason.LOGIN_MISSING, "there is none"
    return next(_faults(wanted, current, world, now), None)


def _faults(
    wanted: Wanted, current: Login, world: CredentialsWorld, now: datetime
) -> Iterator[tuple[Reason, str]]:
    epoch = f"epoch {current.epoch}"
    source = "operator" if world.vault is None else "vault"
    seen = world.secrets.get(wanted.secret)
    if (current.group_role, current.secret, current.source) != (wanted.group_role, wanted.secret, source):
        yield Reason.SPEC_CHANGED, f"{epoch} was issued for another group, Secret or source"
    elif not current.role_exists:
        yield Reason.LOGIN_MISSING, f"{epoch}, role {current.username}, is gone from PostgreSQL"
    elif seen is None:
        yield Reason.SECRET_MISSING, f"the Secret of {epoch} is gone, and passwords are kept nowhere else"
    elif seen.epoch != current.epoch or not seen.whole:
        yield Reason.DRIFTED, f"its Secret no longer says what was written for {epoch}"
    elif now >= rotate_at(current):
        yield Reason.LOGIN_EXPIRING, f"{epoch} is past half of its life, which ends at {current.expires_at}"


def _vault_in_the_way(world: CredentialsWorld) -> Blocked | None:
    if world.vault is None:
        return None
    if world.vault.unavailable:
        return Blocked(Reason.VAULT_UNAVAILABLE, world.vault.unavailable, stalled=False)
    if world.vault.refused:
        return Blocked(Reason.VAULT_REFUSED, world.vault.refused, stalled=True)
    return None


# --- what has to go


def _revoke_orphans(world: CredentialsWorld) -> Iterator[_Finding]:
    vault = world.vault or VaultSeen()
    for lease in vault.orphans or ():
        yield Step(
            Reason.LOGIN_SUPERSEDED,
            f"lease {lease} stands in no ledger: whoever asked for it died before it was written down",
            RevokeLease(lease),
        )
    for username in vault.strays:
        drop = compose("DROP ROLE IF EXISTS {role}", role=identifier(username))
        yield Step(
            Reason.LOGIN_SUPERSEDED,
            f"login {username} stands in no ledger: whoever asked for it died before it was made",
            Execute((drop,)),
        )


def _revoke(
    login: Login, wanted: Sequence[Wanted], world: CredentialsWorld, now: datetime
) -> Iterator[_Finding]:
    reason = Reason.LOGIN_SUPERSEDED
    if all(one.name != login.name for one in wanted):
        reason, why = Reason.LOGIN_REMOVED, "nobody wants it any more"
    elif (verdict := _why_gone(login, world, now)) is None:
        return
    elif isinstance(verdict, _Due):
        yield verdict
        return
    else:
        why = verdict
    if login.source == "vault" and login.role_exists and (blocked := _cannot_revoke(login, world, now)):
        yield from blocked
        return
    in_use = {one.secret for one in wanted}
    drop = None if login.secret in in_use else login.secret
    yield Step(
        reason,
        f"login {login.name}, epoch {login.epoch}: {why}; it is revoked",
        RevokeLogin(login.id, login.username, login.lease_id, drop),
    )


def _why_gone(login: Login, world: CredentialsWorld, now: datetime) -> str | _Due | None:
    """Return why a login that is not the present one has to go, or when to look again."""
    match login.state:
        case "requested":
            return _why_never(login, world, now)
        case "issued":
            return "it was issued and never published"
        case "published":
            return None  # Until the ledger learns of the newer one.
        case "superseded":
            return _why_over(login, world, now)


def _why_never(login: Login, world: CredentialsWorld, now: datetime) -> str | _Due:
    settled = login.requested_at + timedelta(seconds=REQUEST_SECONDS)
    if login.source == "vault" and now < settled:
        return _Due(settled)
    if world.vault is not None and login.source == "vault" and world.vault.orphans is None:
        return _Due(now + timedelta(seconds=_LOOK_AGAIN_SECONDS))  # Its lease is looked for first.
    return "it was asked for and never arrived"


def _why_over(login: Login, world: CredentialsWorld, now: datetime) -> str | _Due:
    over = (login.superseded_at or login.requested_at) + timedelta(seconds=login.overlap_seconds)
    if not login.role_exists:
        return "its role is gone already"
    if login.expires_at is not None and now >= login.expires_at:
        return "it has expired"
    if any(consumer.username == login.username for consumer in world.consumers):
        return _Due(now + timedelta(seconds=_LOOK_AGAIN_SECONDS))
    return "a newer one is published and nobody uses it" if now >= over else _Due(over)


def _cannot_revoke(login: Login, world: CredentialsWorld, now: datetime) -> list[_Finding]:
    """Return what stands in the way of asking Vault; a login ends with its lease in any case."""
    if (blocked := _vault_in_the_way(world)) is not None:
        return [blocked, _Due(now + timedelta(seconds=_LOOK_AGAIN_SECONDS))]
    if world.vault is None:  # The object has another source of logins now.
        return [_Due(login.expires_at or now + timedelta(seconds=_LOOK_AGAIN_SECONDS))]
    return []


# --- the plan


def _plan(findings: Sequence[_Finding], now: datetime) -> Plan:
    due = [finding.at for finding in findings if isinstance(finding, _Due)]
    wait = max((min(due) - now).total_seconds(), 1.0) if due else None
    return Plan(
        steps=tuple(finding for finding in findings if isinstance(finding, Step)),
        blocked=next((finding for finding in findings if isinstance(finding, Blocked)), None),
        look_again_seconds=wait,
    )
