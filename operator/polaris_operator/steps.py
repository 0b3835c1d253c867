"""What can be done: each step with its reason, a sentence made from the data, and the exact action.

Steps are plain values that a plan consists of and `apply` carries out in order. What is shown to a
person and what is executed is the same text, byte for byte; a secret never stands in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from polaris.spec import Attribute, Embedding
from polaris.sql import Sql
from polaris.status import Reason


@dataclass(frozen=True)
class Execute:
    """Statements of one transaction, as the operator's role; fenced (see `polaris.catalog.Fence`).

    `guards` are conditions over the catalog that were true when the step was planned; where one no
    longer holds the transaction is given up with Conflict and everything is observed again: at once, or
    where others change it all the time, after so many seconds of tries.
    """

    statements: tuple[Sql, ...]
    guards: tuple[Sql, ...] = ()
    patience_seconds: float = 0.0


@dataclass(frozen=True)
class ExecuteAlone:
    """One statement outside of a transaction (DROP INDEX CONCURRENTLY), as the operator's role.

    Where a lock is named, the session holds it from before the guards are looked at until the
    statement is done: a build of the same name can't begin meanwhile, and one that ended a moment
    ago has been seen. A lock that is held, or a guard that is false, is a Conflict.
    """

    statement: Sql
    settings: Mapping[str, str] = field(default_factory=dict)
    lock: int | None = None
    """Key of the session advisory lock of `BuildIndex` for the same index."""
    guards: tuple[Sql, ...] = ()


@dataclass(frozen=True)
class BuildIndex:
    """Build an index, or work one over, in a session of its own, which holds an advisory lock meanwhile.

    The build belongs to PostgreSQL: `apply` starts it and does not wait for its end. Who finds the
    lock held watches the build and never starts a second. Once the lock is ours we look again whether
    a relation of that name is there already (a build may have ended since we observed): then there is
    nothing to start.
    """

    index: str
    """Name of the index, without its schema."""
    schema: str
    statement: Sql
    """CREATE INDEX CONCURRENTLY; or a plain one, with what belongs to it in the same transaction."""
    lock: int
    """Key of the session advisory lock that marks a live build."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of the session: maintenance_work_mem, max_parallel_maintenance_workers, statement_timeout."""
    table: str = ""
    """What the index is on: where the build does not get its lock, who has one is told."""
    guards: tuple[Sql, ...] = ()
    """Where something of that name is worked over (REINDEX, VACUUM): what must be true under the lock, in
    place of that there is nothing of that name yet."""
    afterwards: Sql | None = None
    """What is run next in the same session; where the session ends in between, somebody sees what is left."""


@dataclass(frozen=True)
class Migrate:
    """Bring the catalog to this code's revision."""

    revision: str


@dataclass(frozen=True)
class TakeOver:
    """Become the process that writes for this installation: its fence in the catalog is raised."""

    installation: UUID
    name: str
    """For people."""


@dataclass(frozen=True)
class WriteVaultRole:
    """Create or update a role of Vault's database engine."""

    role: str
    group_role: str
    """The PostgreSQL role that issued logins are members of."""


@dataclass(frozen=True)
class DeleteVaultRole:
    """Delete a role of Vault's database engine; there may be none."""

    role: str


@dataclass(frozen=True)
class MeasureRecall:
    """Measure recall on a sample of rows and questions, choose `ef_search` by it, write both down.

    `apply` asks for it and does not wait: one index of a database is measured after the other, beside the
    passes, and its object is looked at again when that is done.
    """

    index: int
    """Number in the catalog."""
    generation: int
    schema: str
    embedding: Embedding
    attributes: tuple[Attribute, ...]
    """That filters may use."""
    target_percent: int
    ef_search: int
    """What queries use now."""
    urgent: bool = True
    """Whether nothing is known of it yet: then it waits for no other measurement's rest."""


@dataclass(frozen=True)
class Verify:
    """Compare a generation with the stored documents and the one that serves; write down what is found."""

    index: int
    """Number in the catalog."""
    generation: int
    serving: int
    schema: str


@dataclass(frozen=True)
class IssueLogin:
    """Issue a login and publish it in a Secret: ledger row, Vault (or CREATE ROLE), ledger, Secret."""

    owner: str
    """`database/installation/namespace/name` or `index/number`, as in the ledger."""
    name: str
    """query, worker, or the name of an entry of `access`."""
    epoch: int
    group_role: str
    secret_namespace: str
    secret_name: str
    overlap_seconds: int


@dataclass(frozen=True)
class RedirectLogin:
    """Write a login's Secret again with where the database is now; the login stays the same."""

    username: str
    epoch: int
    expires_at: datetime
    secret_namespace: str
    secret_name: str


@dataclass(frozen=True)
class RevokeLogin:
    """Revoke a login and make sure that it is gone: Vault's lease, sessions, role."""

    credential: int
    """Its row in the ledger."""
    username: str | None
    lease_id: str | None
    drop_secret: tuple[str, str] | None = None
    """Namespace and name of a Secret that nobody wants any more."""


@dataclass(frozen=True)
class RevokeLease:
    """Revoke a lease that no row of the ledger knows: left by a crash between lease and ledger."""

    lease_id: str


@dataclass(frozen=True)
class SetFinalizer:
    """Add or remove our finalizer on the object."""

    present: bool


Action: TypeAlias = (
    Execute
    | ExecuteAlone
    | BuildIndex
    | MeasureRecall
    | Migrate
    | TakeOver
    | WriteVaultRole
    | DeleteVaultRole
    | IssueLogin
    | RedirectLogin
    | RevokeLogin
    | RevokeLease
    | SetFinalizer
    | Verify
)


@dataclass(frozen=True)
class Hindrance:
    """What will make a step slower than it need be."""

    reason: Reason
    message: str
    """With what to do about it."""


@dataclass(frozen=True)
class Step:
    """One thing to do, and why."""

    reason: Reason
    sentence: str
    action: Action
    destructive: bool = False
    """Whether it removes what can't be made again from the stored documents."""
    told: bool = False
    """Whether the sentence becomes an Event, once it is done: somebody will want to know."""
    hindrances: tuple[Hindrance, ...] = ()
    """They become Warnings when the step is taken."""


@dataclass(frozen=True)
class Blocked:
    """Why nothing (more) is planned: waiting for a person, or for a part to come back."""

    reason: Reason
    message: str
    stalled: bool
    """True: only a person helps. False: we look again by ourselves."""


@dataclass(frozen=True)
class Plan:
    """What a decision comes to: steps in order, and what stands in the way of more."""

    steps: tuple[Step, ...] = ()
    withheld: tuple[Step, ...] = ()
    """What would have to be done and is not: shown in `status.plan`, never carried out."""
    blocked: Blocked | None = None
    look_again_seconds: float | None = None
    """When something is due (a rotation, a build's progress, a retry); None: at the next resync."""
    aside: tuple[Step, ...] = ()
    """What everything is as it should be without (dropping what no query uses, measuring): carried out
    after the status was written, and where it fails, only logged and tried again later."""


def statements(action: Action) -> str:
    """Return the exact text that an action runs in PostgreSQL; "" where it asks somebody else."""
    match action:
        case Execute():
            return ";\n".join(action.statements)
        case BuildIndex():
            return ";\n".join(filter(None, (action.statement, action.afterwards)))
        case ExecuteAlone():
            return action.statement
        case _:
            return ""
