"""Runs migrations: under a lock, in one transaction, as the role that owns the catalog."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import polaris
from polaris.catalog import CONSUMER_TIMEOUT_SECONDS
from polaris.errors import Conflict, Unsupported
from polaris.names import CATALOG_SCHEMA, advisory_key

_HERE = Path(__file__).parent
_LOCK = advisory_key("polaris", "migrate")
# Alembic keeps the connection that it works on in its modules: two threads with two databases, as the
# operator's are, would run one's statements on the other's.
_ALEMBIC = threading.Lock()
# An operator says that it lives at each look at its PolarisDatabase, once a minute unless told otherwise.
_OPERATOR_TIMEOUT_SECONDS = 180
_RUNNING = text("""
SELECT 'the operator of ' || name AS who FROM polaris.installations
WHERE heartbeat_at > now() - make_interval(secs => :operator)
UNION ALL
SELECT format('%s %s (POLARIS %s, level %s)', kind, id, version, catalog_level) FROM polaris.consumers
WHERE reported_at > now() - make_interval(secs => :consumer) AND catalog_level > :level
ORDER BY who
""")


def _config(connection: Connection | None = None, output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output) if output else Config()
    config.set_main_option("script_location", str(_HERE))
    config.attributes["connection"] = connection
    return config


HEAD: str = ScriptDirectory(str(_HERE)).get_current_head() or ""
"""The revision that this code's migrations lead to."""


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the catalog in this database; None where there is no catalog."""
    context = MigrationContext.configure(connection, opts={"version_table_schema": CATALOG_SCHEMA})
    return context.get_current_revision()


def _lock(connection: Connection) -> None:
    # Held until the transaction ends, so two operators never migrate at once, and the second one
    # finds the work done. The schema comes first: Alembic's own version table stands in it.
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {CATALOG_SCHEMA}"))


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the catalog to `revision`, in the connection's transaction; the caller commits."""
    _lock(connection)
    if current_revision(connection) not in known_revisions():
        return  # A newer version's catalog: `check_code` says whether we may use it.
    with _ALEMBIC:
        command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Take the catalog back to `revision` ("base": nothing), in the connection's transaction.

    Raises Conflict while an operator lives, which would bring it up again, or a service or worker that
    needs a newer level than that revision's: each revision is numbered as the level that it brings.
    """
    _lock(connection)
    if running := _running(connection, 0 if revision == "base" else int(revision)):
        raise Conflict(f"the catalog is in use by {', '.join(running)}: stop what runs first")
    with _ALEMBIC:
        command.downgrade(_config(connection), revision)


def _running(connection: Connection, level: int) -> Sequence[str]:
    if current_revision(connection) is None:
        return ()
    limits = {"operator": _OPERATOR_TIMEOUT_SECONDS, "consumer": CONSUMER_TIMEOUT_SECONDS, "level": level}
    return connection.execute(_RUNNING, limits).scalars().all()


def offline_sql(revision: str = "head") -> str:
    """Return the SQL that leads from nothing to `revision`, for administrators who run it themselves."""
    output = io.StringIO()
    output.write(f"CREATE SCHEMA IF NOT EXISTS {CATALOG_SCHEMA};\n\n")
    with _ALEMBIC:
        command.upgrade(_config(output=output), revision, sql=True)
    return output.getvalue()


def known_revisions() -> set[str | None]:
    """Return the revisions that this code has, None (no catalog) among them."""
    scripts = ScriptDirectory(str(_HERE))
    return {None, *(script.revision for script in scripts.walk_revisions())}


def check_code(connection: Connection) -> None:
    """Raise Unsupported where the catalog no longer serves code as old as this."""
    oldest = connection.execute(text("SELECT oldest_code FROM polaris.catalog")).scalar_one()
    if oldest > polaris.CATALOG_LEVEL:
        raise Unsupported(
            f"this is POLARIS {polaris.__version__} (catalog level {polaris.CATALOG_LEVEL}),"
            f" and the catalog needs level {oldest} or newer: upgrade POLARIS"
        )
