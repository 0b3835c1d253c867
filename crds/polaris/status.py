"""What the operator reports: conditions, reasons and the rest of `status`.

Conditions follow the Kubernetes conventions and kstatus: `Ready` is always there; `Reconciling` and
`Stalled` are there only while they are true. `observedGeneration` is born -1 (a default in the CRD),
so that nobody takes an object for ready that no operator has seen.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from polaris.spec import Part


class Reason(StrEnum):
    """Why something is as it is, or why a step is taken: what a person sees in conditions."""

    # It is as it should be.
    READY = "Ready"
    SERVING = "Serving"
    FRESH = "Fresh"
    MEASURED = "Measured"
    # It is on its way.
    PENDING = "Pending"
    PROVISIONING = "Provisioning"
    MIGRATING = "Migrating"
    BUILDING_INDEX = "BuildingIndex"
    LOADING = "Loading"
    FILLING = "Filling"
    VERIFYING = "Verifying"
    ROTATING = "Rotating"
    DELETING = "Deleting"
    NOT_MEASURED = "NotMeasured"
    # A part that we need does not answer; we try again by ourselves.
    DATABASE_UNAVAILABLE = "DatabaseUnavailable"
    VAULT_UNAVAILABLE = "VaultUnavailable"
    CLUSTER_UNAVAILABLE = "ClusterUnavailable"
    DATABASE_NOT_READY = "DatabaseNotReady"
    RETRYING = "Retrying"
    # A person has to do something.
    INVALID_SPEC = "InvalidSpec"
    DATABASE_NOT_FOUND = "DatabaseNotFound"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    SECRET_NOT_FOUND = "SecretNotFound"
    SECRET_NOT_OURS = "SecretNotOurs"
    LOGIN_REFUSED = "LoginRefused"
    VAULT_REFUSED = "VaultRefused"
    PREREQUISITE_MISSING = "PrerequisiteMissing"
    VERSION_UNSUPPORTED = "VersionUnsupported"
    MIGRATION_NEEDED = "MigrationNeeded"
    CATALOG_TOO_NEW = "CatalogTooNew"
    MODEL_UNAVAILABLE = "ModelUnavailable"
    GATE_FAILED = "GateFailed"
    APPROVAL_REQUIRED = "ApprovalRequired"
    NOT_OWNER = "NotOwner"
    IN_USE = "InUse"
    SUSPENDED = "Suspended"
    BUILD_FAILED = "BuildFailed"
    DISK_FULL = "DiskFull"
    OUT_OF_MEMORY = "OutOfMemory"
    SHARED_MEMORY_TOO_SMALL = "SharedMemoryTooSmall"
    BELOW_TARGET = "BelowTarget"
    # It goes on, and somebody may want to do something about it: Events of this reason.
    MEMORY_TOO_SMALL = "MemoryTooSmall"
    OLD_TRANSACTION = "OldTransaction"
    # What the world looks like, and therefore what a step does.
    DRIFTED = "Drifted"
    ROLE_MISSING = "RoleMissing"
    GRANT_MISSING = "GrantMissing"
    SCHEMA_MISSING = "SchemaMissing"
    TABLE_MISSING = "TableMissing"
    VIEW_MISSING = "ViewMissing"
    INDEX_MISSING = "IndexMissing"
    INDEX_INVALID = "IndexInvalid"
    INDEX_REPLACED = "IndexReplaced"
    INDEX_DECAYED = "IndexDecayed"
    ATTRIBUTE_ADDED = "AttributeAdded"
    ATTRIBUTE_REMOVED = "AttributeRemoved"
    SPEC_CHANGED = "SpecChanged"
    LOGIN_MISSING = "LoginMissing"
    LOGIN_EXPIRING = "LoginExpiring"
    LOGIN_SUPERSEDED = "LoginSuperseded"
    LOGIN_REMOVED = "LoginRemoved"
    SECRET_MISSING = "SecretMissing"
    RELEASED = "Released"
    ADOPTED = "Adopted"
    DELETED = "Deleted"
    BULK_LOAD = "BulkLoad"
    GENERATION_RETIRED = "GenerationRetired"


class Condition(Part):
    """One condition, as `metav1.Condition`."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """What is said."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is so."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Why, in one word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, in a sentence made from the data."""
    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """The object's generation that this is about."""
    last_transition_time: datetime
    """Since when the status is what it is."""


Conditions = Annotated[
    list[Condition],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]
Timestamp = Annotated[datetime, Field()]


class CredentialStatus(Part):
    """A login that POLARIS keeps fresh. Never its password."""

    name: str
    """query, worker, or the name of an entry of `access`."""
    epoch: int
    """Counts the logins issued for this name."""
    expires_at: Timestamp
    """When the login ends unless it is replaced: min(lease, token)."""
    seal_tolerance_seconds: int = 0
    """For how long, at least, consumers go on while no login can be issued (Vault sealed, operator away):
    what is left of this login when it is due to be replaced, which is half of its life."""
    acknowledged: int = 0
    """Consumers that use this epoch."""
    consumers: int = 0
    """Consumers known."""
    late: list[str] = []
    """Consumers that still use a login which was replaced longer ago than its overlap: at most 10."""


class DeletedStatus(Part):
    """An index that was deleted, and can still be had back."""

    index: str
    """Namespace and name of its object."""
    id: str
    """What the annotation `polaris.dev/adopt` names to have it back."""
    deleted_at: datetime
    """When it was deleted."""
    drop_after: datetime
    """When it is dropped."""


class DatabaseStatus(Part):
    """What is known of a PolarisDatabase."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = -1
    """The object's generation that this status is about; -1: none yet."""
    conditions: Conditions = []
    """Ready, CredentialsFresh; Reconciling and Stalled while true."""
    server_version: str | None = None
    """PostgreSQL's version."""
    vector_version: str | None = None
    """pgvector's version."""
    catalog: str | None = None
    """The catalog's id, part of every role's name."""
    catalog_revision: str | None = None
    """The last migration that was applied."""
    indexes: int | None = None
    """Indexes in this database."""
    deleted: list[DeletedStatus] = []
    """Indexes that were deleted and can still be had back, those that are dropped first before the others."""
    credentials: list[CredentialStatus] = []
    """The logins of service and workers."""


class ActiveStatus(Part):
    """The generation that serves."""

    generation: int
    """Its number."""
    table: str
    """Its table of chunks, with the schema."""
    index: str
    """Its vector index; empty where every search is exact."""
    rows: int
    """Chunks, as PostgreSQL estimates them."""
    model: str
    """Its embedding model."""
    dimension: int
    """Its vectors' dimension."""
    spec_hash: str
    """What it was made from."""
    valid_since: Timestamp | None = None
    """Since when it serves."""


class CandidateStatus(Part):
    """What is being built."""

    generation: int
    """The generation that it is for."""
    phase: str
    """PostgreSQL's word for what the build does."""
    progress: str
    """Share of the whole that is done, such as 61%."""
    done: int
    """Blocks (or tuples) of the present phase done; documents, where a generation is filled."""
    total: int
    """Of how many."""
    estimated_completion: Timestamp | None = None
    """When it is thought to be done."""
    blocked_by: str = ""
    """Who it waits for: whose sessions, by which program, and since when their transactions are open."""
    observed_at: Timestamp | None = None
    """When these figures were read."""
    pace_since: Timestamp | None = None
    """Since when the pace is measured that the estimate goes by: of this phase only."""
    pace_from: int = 0
    """How much was done then."""


class PreviousStatus(Part):
    """A generation that has served, kept level for a way back."""

    generation: int
    """Its number."""
    table: str
    """Its table of chunks, with the schema."""
    drop_after: Timestamp
    """When it is given up."""


class StepStatus(Part):
    """One step of the plan."""

    reason: str
    """Why, in one word."""
    sentence: str
    """What and why."""
    statement: str = ""
    """The exact statement; secrets are placeholders."""
    destructive: bool = False
    """Whether it removes what cannot be made again."""


class PlanStatus(Part):
    """What would be done, while something waits to be done."""

    hash: str
    """Names this plan."""
    destructive: bool
    """Whether any step is."""
    steps: list[StepStatus] = []
    """In order."""


class RecallStatus(Part):
    """Recall of one way to ask, with the interval that holds the true one nineteen times of twenty."""

    of: str
    """`rows`: by the index's own vectors; `questions`: by those of questions that were asked; `half`,
    `tenth`, `hundredth`: with a filter that leaves about so many of the rows."""
    attribute: str = ""
    """Of a filter: what it compares."""
    rows_percent: str = ""
    """Of a filter: the share of the rows that it leaves."""
    vectors: int
    """Vectors that were looked for."""
    recall_percent: str
    """Share of the exact top 10 that was found."""
    low_percent: str
    """Lower end of the interval."""
    high_percent: str
    """Upper end of the interval."""


class VerificationStatus(Part):
    """Recall of the live index, measured against exact search."""

    last_time: Timestamp | None = None
    """When."""
    recall_percent: str = ""
    """Share of the exact top 10 that was found, by the index's own vectors."""
    classes: list[RecallStatus] = []
    """The same by each way to ask for which the index is searched."""
    ef_search: int = 0
    """The ef_search that queries use."""
    index_used: bool = False
    """Whether the canary query used the vector index."""


class IndexStatus(Part):
    """What is known of a PolarisIndex."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = -1
    """The object's generation that this status is about; -1: none yet."""
    conditions: Conditions = []
    """Ready, Serving, CredentialsFresh, RecallMet; Reconciling and Stalled while true."""
    catalog: str | None = None
    """`catalog id/index number`: what `polaris.dev/adopt` names to take this index over."""
    query_url: Annotated[str | None, Field(alias="queryURL")] = None
    """Where it is served, once a service says so."""
    active: ActiveStatus | None = None
    """The generation that serves."""
    candidate: CandidateStatus | None = None
    """What is being built."""
    previous: PreviousStatus | None = None
    """What served before."""
    plan: PlanStatus | None = None
    """What waits to be done."""
    verification: VerificationStatus | None = None
    """Recall, measured."""
    credentials: list[CredentialStatus] = []
    """The logins of `access`."""


STATUSES: dict[str, type[DatabaseStatus | IndexStatus]] = {
    "PolarisDatabase": DatabaseStatus,
    "PolarisIndex": IndexStatus,
}
