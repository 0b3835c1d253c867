"""Takes care of indexes whose objects are gone: released, or put aside and removed in time.

Nothing is done about an object that merely was not seen: the listing has to be complete, and the
namespace one that this installation watches.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text

from polaris.errors import PolarisError
from polaris.telemetry import logger
from polaris_operator.apply import apply
from polaris_operator.doors import Doors
from polaris_operator.objects import Key, Resource, database_of
from polaris_operator.observe.credentials import gather_credentials
from polaris_operator.observe.index import gather_own, gather_row
from polaris_operator.plan.credentials import plan_credentials
from polaris_operator.plan.deletion import forget_vault_role, needs_collecting, plan_collection
from polaris_operator.plan.naming import ledger_owner
from polaris_operator.steps import Step
from polaris_operator.world.index import IndexRow

log = logger(__name__)

_RETRY_SECONDS = 30.0


def collect(_: Resource, doors: Doors, now: datetime) -> float | None:
    """Take care of what objects that are gone left in this database; return when to look again.

    One index that resists (somebody built on its views, Vault is away) stops no other.
    """
    with doors.postgres.read() as connection:
        catalog, rows = gather_own(connection, doors.process.installation)
        there: datetime = connection.execute(text("SELECT now()")).scalar_one()
    resisting = False
    for row in rows:
        wanted, due = needs_collecting(row, rows, there)
        if (wanted and doors.objects.watches(row.namespace)) or _is_orphan(row, catalog, doors):
            try:
                _collect(row, doors, now, due=due)
            except PolarisError as error:
                resisting = True
                log.warning("not collected", index=f"{row.namespace}/{row.name}", error=str(error))
    return _RETRY_SECONDS if resisting else None


def is_orphan(row: IndexRow, catalog: str, found: Resource | None, database: Key, *, known: bool) -> bool:
    """Whether the object that this row of a catalog was made for is gone.

    `found` is the object of its name, and `known` whether there not being one means anything; `database`
    is the PolarisDatabase that led to this catalog.
    """
    if row.state == "released" or not known:
        return False
    if found is None or _lives_elsewhere(row, catalog, found, database):
        return True
    # A new object of the name (of the same uid even, in a folder) takes up what the old one left, but
    # not what is being removed.
    return row.state == "deleting" and found.deleted_at is None


def _lives_elsewhere(row: IndexRow, catalog: str, found: Resource, database: Key) -> bool:
    """Whether a new object of the name has been made true in another database.

    That the status names another catalog is not enough: a PolarisDatabase may have led elsewhere for a
    while (its host was changed, and changed back), and what is here is the object's all the same.
    """
    if found.uid == row.uid or database_of(found) == database:
        return False
    label = found.status.get("catalog")
    return label is not None and not str(label).startswith(f"{catalog}/")


def _is_orphan(row: IndexRow, catalog: str, doors: Doors) -> bool:
    known = doors.objects.watches(row.namespace) and doors.objects.complete()
    found = doors.objects.get(Key("PolarisIndex", row.namespace, row.name))
    return is_orphan(row, catalog, found, doors.database, known=known)


def _collect(row: IndexRow, doors: Doors, now: datetime, *, due: bool) -> None:
    """Carry out what becomes of one index; raise what the doors raise. `due`: a tombstone's time is over."""
    gone = Resource(Key("PolarisIndex", row.namespace, row.name), row.uid, row.object_generation, "", {})
    with doors.postgres.read() as connection:
        world = gather_row(connection, doors.process.installation, row)
    credentials = gather_credentials(doors, gone, ledger_owner(world.number), (), now)
    planned = plan_credentials((), credentials, now)
    logins: tuple[Step, ...] | None = None
    if planned.blocked is None:
        logins = (*planned.steps, *(forget_vault_role(world) if credentials.vault is not None else ()))
    else:
        log.warning("logins are left", index=str(gone.key), error=planned.blocked.message)
    apply(plan_collection(world, row, now, logins=logins, due=due).steps, doors, gone)
