"""Sessions of PostgreSQL, as `pg_stat_activity` shows them: how ours are named, and how any is told."""

from __future__ import annotations

from uuid import UUID

from polaris.sql import Sql, compose, identifier, literal

PROGRAM = "polaris-operator"
"""The name of a session of an operator that has not taken over a catalog yet."""
BUILDS = literal(f"^{PROGRAM}/[^/]+/build/")
"""The names of sessions that build an index, as a regular expression."""
EPOCH = Sql("split_part(application_name, '/', 4)::bigint")
"""The epoch in a name that `name` has made."""


def name(installation: UUID, kind: str, epoch: int | str) -> str:
    """Return the `application_name` of a session: whose it is, what it does, the epoch of its operator.

    Kind and epoch may be regular expressions, and the result is one then.
    """
    return f"{PROGRAM}/{str(installation)[:8]}/{kind}/{epoch}"


def told(activity: str) -> Sql:
    """Return the expression that tells people of a session, by the alias of `pg_stat_activity`.

    It gives such as `anna (pid 4711, idle in transaction since 09:15:00)`.
    """
    return compose(
        "concat(coalesce({a}.usename, {a}.backend_type), ' (pid ', {a}.pid, ', ',"
        " coalesce({a}.state, 'working'), ' since ', to_char({a}.xact_start, 'HH24:MI:SS'), ')')",
        a=identifier(activity),
    )
