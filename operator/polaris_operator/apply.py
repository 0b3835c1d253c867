"""Carries out steps, in order, and decides nothing.

Each action may be carried out again after a crash in its middle: what it needs to know for that stands
in the catalog before anything is asked of anybody else.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from prometheus_client import Counter
from sqlalchemy import Connection

import polaris_migrations
from polaris import names
from polaris.errors import Conflict, Prerequisite, VaultRefused
from polaris.sql import Sql, compose, identifier, literal
from polaris.telemetry import logger
from polaris_operator import bootstrap, ledger, login_secret
from polaris_operator.doors import Doors
from polaris_operator.objects import Resource
from polaris_operator.observe.verification import verify
from polaris_operator.plan.succession import record_verified
from polaris_operator.postgres import run
from polaris_operator.steps import (
    Action,
    BuildIndex,
    DeleteVaultRole,
    Execute,
    ExecuteAlone,
    IssueLogin,
    MeasureRecall,
    Migrate,
    RedirectLogin,
    RevokeLease,
    RevokeLogin,
    SetFinalizer,
    Step,
    TakeOver,
    Verify,
    WriteVaultRole,
)
from polaris_operator.vault import Issued, Vault

log = logger(__name__)

_TRY_AGAIN_SECONDS = 0.05

STEPS = Counter("polaris_operator_steps_total", "Steps carried out, by what they do.", ["action", "reason"])


def apply(steps: Sequence[Step], doors: Doors, resource: Resource) -> Resource:
    """Carry out the steps; return the object as it is then (its finalizers may have changed).

    Raises what the doors raise; steps before the one that failed have been carried out.
    """
    for step in steps:
        log.info(
            "step",
            object=str(resource.key),
            reason=step.reason.value,
            sentence=step.sentence,
            destructive=step.destructive,
        )
        if isinstance(step.action, SetFinalizer):
            if resource.key == doors.database and not step.action.present:
                doors.doubt_login()
            resource = doors.objects.set_finalizer(resource, present=step.action.present)
        else:
            _carry_out(step.action, doors, resource)
        for hindrance in step.hindrances:
            doors.objects.event(resource, hindrance.reason.value, hindrance.message, warning=True)
        if step.told:
            doors.objects.event(resource, step.reason.value, step.sentence, warning=False)
        STEPS.labels(type(step.action).__name__, step.reason.value).inc()
    return resource


def _carry_out(action: Action, doors: Doors, resource: Resource) -> None:  # noqa: C901, PLR0912  one case an action
    match action:
        case Execute():
            _execute(action, doors)
        case ExecuteAlone():
            doors.postgres.alone(action)
        case BuildIndex():
            doors.postgres.start_build(action, lambda: doors.wake(resource.key))
        case MeasureRecall():
            doors.measurements.wish(action, lambda: doors.wake(resource.key))
        case Verify():
            _verify(action, doors)
        case Migrate():
            with doors.prolonging(), doors.postgres.unfenced() as connection:
                polaris_migrations.upgrade(connection, action.revision)
        case TakeOver():
            doors.postgres.take_over(action.installation, action.name, doors.process.holder)
        case WriteVaultRole():
            doors.postgres.hold()
            _vault(doors).write_role(action.role, action.group_role)
        case DeleteVaultRole():
            doors.postgres.hold()
            _vault(doors).delete_role(action.role)
        case IssueLogin():
            _issue(action, doors, resource)
        case RedirectLogin():
            _redirect(action, doors, resource)
        case RevokeLogin():
            _revoke(action, doors, resource)
        case RevokeLease():
            doors.postgres.hold()
            _vault(doors).revoke(action.lease_id)


def _execute(action: Execute, doors: Doors) -> None:
    end = time.monotonic() + action.patience_seconds
    while True:
        try:
            with doors.postgres.write(action.guards) as connection:
                for statement in action.statements:
                    run(connection, statement)
        except Conflict:
            if time.monotonic() >= end:
                raise
            time.sleep(_TRY_AGAIN_SECONDS)
        else:
            return


def _verify(action: Verify, doors: Doors) -> None:
    with doors.postgres.read() as connection:
        verified = verify(connection, action)
    with doors.postgres.write() as connection:
        run(connection, record_verified(action.index, action.generation, verified))


def _vault(doors: Doors) -> Vault:
    if doors.vault is None:
        raise Conflict("this database's logins do not come from Vault any more")
    return doors.vault


# --- issuing: ledger, then the login, then the ledger, then the Secret, then the ledger


def _issue(action: IssueLogin, doors: Doors, resource: Resource) -> None:
    postgres = doors.postgres
    source = "operator" if doors.vault is None else "vault"
    with postgres.write() as connection:
        fence = postgres.fence
        if fence is None:
            raise Conflict("this process no longer holds the catalog")
        row = run(connection, ledger.request(action, fence.installation, source)).one()
    if doors.vault is None:
        login = _make_login(doors, names.login(row.catalog, row.id), action.group_role)
    else:
        login = doors.vault.issue(names.vault_role(row.catalog, action.group_role))
    with postgres.write() as connection:
        run(connection, ledger.issued(row.id, login.username, login.lease_id or None, login.expires_at))
    data = login_secret.contents(
        postgres.server, login.username, login.password, action.epoch, login.expires_at
    )
    doors.objects.write_secret(action.secret_namespace, action.secret_name, data, resource)
    with postgres.write() as connection:
        for statement in ledger.published(row.id, action.owner, action.name):
            run(connection, statement)


def _redirect(action: RedirectLogin, doors: Doors, resource: Resource) -> None:
    namespace, name = action.secret_namespace, action.secret_name
    seen = doors.objects.secret(namespace, name)
    if seen is None or login_secret.epoch_of(seen.data) != action.epoch:
        raise Conflict(f"Secret {namespace}/{name} no longer holds epoch {action.epoch}")
    data = login_secret.contents(
        doors.postgres.server, action.username, seen.data["password"], action.epoch, action.expires_at
    )
    doors.objects.write_secret(namespace, name, data, resource)


def _make_login(doors: Doors, username: str, group_role: str) -> Issued:
    """Create a login ourselves: PostgreSQL sees a verifier only, never the password."""
    password = secrets.token_urlsafe(32)
    verifier = doors.postgres.scram_verifier(username, password)
    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=bootstrap.LOGIN_SECONDS)
    with doors.postgres.write() as connection:
        run(
            connection,
            compose(
                "CREATE ROLE {role} LOGIN PASSWORD {verifier} VALID UNTIL {expires} IN ROLE {group}",
                role=identifier(username),
                verifier=literal(verifier),
                expires=literal(expires_at.isoformat()),
                group=identifier(group_role),
            ),
        )
    return Issued(username, password, "", expires_at)


# --- revoking: the lease, sessions, the role; and only then the ledger


def _revoke(action: RevokeLogin, doors: Doors, resource: Resource) -> None:
    refusal = _revoke_lease(action, doors)
    if action.username is not None:
        _end_login(action.username, doors, refusal)
    elif refusal is not None:
        raise refusal
    if action.drop_secret is not None:
        doors.objects.delete_secret(*action.drop_secret, resource)
    with doors.postgres.write() as connection:
        for statement in ledger.revoked(action.credential):
            run(connection, statement)


def _end_login(username: str, doors: Doors, refusal: VaultRefused | None) -> None:
    """End a login's sessions and drop it where that was not done already; make sure that it is gone."""
    try:
        with doors.postgres.write() as connection:
            if not _role_exists(connection, username):
                return
            _end_sessions(connection, username)
            run(connection, compose("DROP ROLE IF EXISTS {role}", role=identifier(username)))
    except Prerequisite as error:
        # Not ours to drop: then it is Vault's word that counts.
        raise refusal or error from None


def _revoke_lease(action: RevokeLogin, doors: Doors) -> VaultRefused | None:
    """Ask Vault; what it refuses may be gone already, which the role tells."""
    if action.lease_id is None or doors.vault is None:
        return None
    doors.postgres.hold()
    try:
        doors.vault.revoke(action.lease_id)
    except VaultRefused as error:
        return error
    return None


def _end_sessions(connection: Connection, username: str) -> None:
    statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = {username}"
    run(connection, compose(statement, username=literal(username)))


def _role_exists(connection: Connection, username: str) -> bool:
    statement = compose(
        "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = {username})", username=literal(username)
    )
    return run(connection, Sql(statement)).scalar_one() is True
