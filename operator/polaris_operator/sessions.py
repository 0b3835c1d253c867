"""Sessions of PostgreSQL, as `pg_stat_activity` shows them: how ours are named, and how any is told."""

from __future__ import annotations

from hashlib import sha256
from uuid import UUID

from polaris.sql import Sql, compose, identifier, literal

PROGRAM = "polaris-operator"
"""The name of a session of an operator that has not taken over a catalog yet."""
BUILDS = literal(f"^{PROGRAM}/[^/]+/build/")
"""The names of sessions that build an index, as a regular expression."""
_MOMENT = literal('YYYY-MM-DD HH24:MI:SS"Z"')


def name(installation: UUID, kind: str, epoch: int, holder: str) -> str:
    """Return the `application_name` of a session: whose it is, what it does, and for which process.

    Epoch 0 is a process that has not taken over.
    """
    return f"{_of(installation)}/{kind}/{epoch}/{_mark(holder)}"


def end_others(installation: UUID, holder: str) -> Sql:
    """Return the statement that ends what other processes of the installation have open in this database.

    But a build that is under way is adopted. One that is done, or was never begun, only holds its lock. A
    superuser's sessions are not ours to end, and to try would be an error.
    """
    return compose(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND starts_with(application_name, {ours}) AND application_name NOT LIKE {mine}"
        " AND (application_name !~ {builds} OR state = 'idle')"
        " AND NOT EXISTS (SELECT FROM pg_roles WHERE oid = usesysid AND rolsuper)",
        ours=literal(f"{_of(installation)}/"),
        mine=literal(f"%/{_mark(holder)}"),
        builds=BUILDS,
    )


def _of(installation: UUID) -> str:
    return f"{PROGRAM}/{str(installation)[:8]}"


def _mark(holder: str) -> str:
    return sha256(holder.encode()).hexdigest()[:8]


def told(activity: str) -> Sql:
    """Return the expression that tells people of a session, by the alias of `pg_stat_activity`.

    It gives such as `anna by psql (pid 4711, idle in transaction since 2026-11-23 09:15:00Z)`.
    """
    return compose(
        "concat(coalesce({a}.usename, {a}.backend_type), ' by ' || nullif({a}.application_name, ''),"
        " ' (pid ', {a}.pid, ', ', coalesce({a}.state, 'working'),"
        " ' since ' || to_char({a}.xact_start AT TIME ZONE 'UTC', {format}), ')')",
        a=identifier(activity),
        format=_MOMENT,
    )


def told_prepared(prepared: str) -> Sql:
    """Return the expression that tells people of a prepared transaction, by the alias of `pg_prepared_xacts`.

    Nobody's session holds it: it is there until somebody commits it or rolls it back, by its name.
    """
    return compose(
        "concat({p}.owner, ' (prepared transaction ', quote_literal({p}.gid), ' since ',"
        " to_char({p}.prepared AT TIME ZONE 'UTC', {format}), ')')",
        p=identifier(prepared),
        format=_MOMENT,
    )
