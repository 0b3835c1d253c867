"""The catalog: schema `polaris` in the database, all that operator and service tell each other.

The tables are declared here; `migrations/` leads to exactly them (a test compares). Times are with
time zone. JSON columns hold the models of `polaris.spec`, by their outside names.

==================  =====================================  =====================================
table               written by                             read by
==================  =====================================  =====================================
`catalog`           migrations                             all
`installations`     operator, command line                 operator, command line
`fences`            operator, command line                 operator, command line
`indexes`           operator                               all
`generations`       operator; worker (progress); service   all
                    and worker (that a load wants it)
`models`            worker                                 operator
`credentials`       operator                               operator only
`consumers`         service, worker                        operator
`query_vectors`     service                                operator
==================  =====================================  =====================================
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    MetaData,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from polaris.names import CATALOG_SCHEMA
from polaris.sql import Sql

NOW = text("now()")
QUERY_VECTORS = 64
"""Questions of each generation whose vectors are kept."""


class Base(DeclarativeBase):
    """Base of the catalog's tables."""

    metadata = MetaData(
        schema=CATALOG_SCHEMA,
        naming_convention={
            "pk": "%(table_name)s_pk",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "fk": "%(table_name)s_%(column_0_N_name)s_fk",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        },
    )
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy reads it from the class
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        uuid.UUID: UUID(as_uuid=True),
    }


class Catalog(Base):
    """One row: which catalog this is, and which code may use it."""

    __tablename__ = "catalog"
    __table_args__ = (CheckConstraint('"only"', name="only"),)

    only: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    id: Mapped[str]
    """Eight hexadecimal digits; part of the names of all roles."""
    oldest_code: Mapped[int]
    """The lowest `polaris.CATALOG_LEVEL` that may use this catalog."""
    level: Mapped[int] = mapped_column(server_default=text("5"))
    """The number of the newest migration; code whose `polaris.CATALOG_LEVEL` is higher waits for its own."""
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Installation(Base):
    """A cluster's operator, or a folder of manifests: who owns indexes."""

    __tablename__ = "installations"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    """`operator.installation`, else the cluster's uid, or a name that a folder keeps."""
    heartbeat_at: Mapped[datetime | None]
    """When its operator last said that it lives; the command line keeps away from one that does."""
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Fence(Base):
    """One row an installation: the epoch of the process that may write for it.

    A transaction that writes locks the row FOR SHARE and compares the epoch with its own, so a
    process that was replaced can end what it is in, and begin nothing.
    """

    __tablename__ = "fences"

    installation_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("polaris.installations.id"), primary_key=True
    )
    epoch: Mapped[int] = mapped_column(BigInteger)
    holder: Mapped[str]


class Index(Base):
    """An index that an object owns, owned, or that is being removed."""

    __tablename__ = "indexes"
    __table_args__ = (
        UniqueConstraint("namespace", "name"),
        CheckConstraint("state IN ('active', 'released', 'deleting')", name="state"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    installation_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("polaris.installations.id"))
    namespace: Mapped[str]
    name: Mapped[str]
    uid: Mapped[str]
    """The object's uid; another object of the same name takes a released index up again."""
    state: Mapped[str]
    deletion_policy: Mapped[str]
    """What the object said last; it holds when the object is gone."""
    schema_name: Mapped[str]
    spec: Mapped[dict[str, Any] | None]
    """The spec that was last made true in full; the service goes by it."""
    object_generation: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """`metadata.generation` of that spec."""
    serving: Mapped[int | None]
    """The generation that serves: the pointer that a switch moves."""
    last_generation: Mapped[int] = mapped_column(server_default=text("1"))
    """The highest number that a generation ever had: none is given twice, as callers name them."""
    released_at: Mapped[datetime | None]
    drop_after: Mapped[datetime | None]
    """Where a released index goes: when. It then bears a name that no object has (`polaris.names`)."""
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Generation(Base):
    """One set of vectors of an index.

    `indexes.serving` says which one serves. Of the others, one that has served and was superseded is a
    previous one, kept level for a way back; one that has not is a candidate, on its way to serve.
    """

    __tablename__ = "generations"
    __table_args__ = (CheckConstraint("state IN ('serving', 'loading', 'building')", name="state"),)

    index_id: Mapped[int] = mapped_column(
        ForeignKey("polaris.indexes.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]
    """serving: as one that serves is, workers write and its vector index follows; loading: without its vector
    index until what is behind is done; building: a plain CREATE INDEX runs, and workers leave the table
    alone."""
    embedding: Mapped[dict[str, Any]]
    chunking: Mapped[dict[str, Any]]
    index: Mapped[dict[str, Any] | None]
    """What its vector index is made by; None: as the index's spec says."""
    vector_index: Mapped[str | None]
    """Name of the valid index that queries use; None: exact search."""
    ef_search: Mapped[int] = mapped_column(server_default=text("64"))
    """What keeps the promise of recall."""
    recall: Mapped[float | None]
    """Share of the exact top 10 that was found, 0 to 1."""
    recall_rows: Mapped[int | None] = mapped_column(BigInteger)
    """Rows when it was measured."""
    recall_at: Mapped[datetime | None]
    recall_details: Mapped[dict[str, Any] | None]
    """What was found then, by how queries ask (`polaris_operator.world.index.RecallDetails`)."""
    low_water: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Every document with a sequence up to here is settled; work is looked for above it."""
    load_requested_at: Mapped[datetime | None]
    """A worker sees a bulk load coming and asks to load first and index after."""
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    valid_since: Mapped[datetime | None]
    """Since when it serves, or when it began to serve last."""
    superseded_at: Mapped[datetime | None]
    """When another took its place."""
    verified_at: Mapped[datetime | None]
    """When the gates before its switch were looked at last."""
    verified: Mapped[dict[str, Any] | None]
    """What was found then, in figures (`polaris_operator.world.index.Verified`)."""


class QueryVector(Base):
    """The vector of a question that somebody asked: nothing of who, when, or in which words.

    A bounded sample of each generation, which the service refreshes while questions come in: recall is
    measured for what is asked, and not for what is stored only. It goes with its generation.
    """

    __tablename__ = "query_vectors"
    __table_args__ = (
        ForeignKeyConstraint(
            ["index_id", "generation"],
            ["polaris.generations.index_id", "polaris.generations.number"],
            ondelete="CASCADE",
        ),
        CheckConstraint(f"slot BETWEEN 0 AND {QUERY_VECTORS - 1}", name="slot"),
    )

    index_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Its place in the sample; the next one to be kept there takes it."""
    vector: Mapped[list[float]] = mapped_column(ARRAY(REAL))


class Model(Base):
    """A model that a running worker can embed with."""

    __tablename__ = "models"

    provider: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    revision: Mapped[str] = mapped_column(primary_key=True)
    reporter: Mapped[str] = mapped_column(primary_key=True)
    """The consumer that reports it."""
    dimension: Mapped[int]
    max_tokens: Mapped[int | None]
    reported_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Credential(Base):
    """The ledger of logins: a row stands here before anything is asked of Vault. No passwords."""

    __tablename__ = "credentials"
    __table_args__ = (
        UniqueConstraint("owner", "name", "epoch"),
        CheckConstraint(
            "state IN ('requested', 'issued', 'published', 'superseded', 'revoked')", name="state"
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    installation_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("polaris.installations.id"))
    owner: Mapped[str]
    """Who wants it: `database/installation/namespace/name`, `index/number`, or `operator/…`."""
    name: Mapped[str]
    """`query`, `worker`, or the name of an entry of `access`."""
    epoch: Mapped[int] = mapped_column(BigInteger)
    group_role: Mapped[str]
    """The NOLOGIN role that it is a member of."""
    source: Mapped[str]
    """`vault`, or `operator` where there is none."""
    state: Mapped[str]
    username: Mapped[str | None]
    lease_id: Mapped[str | None]
    secret_namespace: Mapped[str]
    secret_name: Mapped[str]
    requested_at: Mapped[datetime] = mapped_column(server_default=NOW)
    issued_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    superseded_at: Mapped[datetime | None]
    overlap_seconds: Mapped[int] = mapped_column(server_default=text("300"))
    revoked_at: Mapped[datetime | None]


class Consumer(Base):
    """A running process of the service or of a worker, by its own report."""

    __tablename__ = "consumers"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    """`query` or `worker`."""
    username: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    """Of the login that it uses."""
    query_url: Mapped[str | None]
    """Where it serves, as its settings say; None: nowhere that others reach."""
    version: Mapped[str]
    catalog_level: Mapped[int]
    reported_at: Mapped[datetime] = mapped_column(server_default=NOW)


# A consumer, or a model's reporter, that has said nothing for so long is taken for gone.
CONSUMER_TIMEOUT_SECONDS = 90

# What the groups of logins may do in the catalog; the operator makes it so at each reconcile.
# The ledger of credentials is in neither: nobody but the operator reads leases.
GRANTS: dict[str, dict[str, Sql]] = {
    "query": {
        "catalog": Sql("SELECT"),
        "indexes": Sql("SELECT"),
        "generations": Sql("SELECT, UPDATE (load_requested_at)"),
        "consumers": Sql("SELECT, INSERT, UPDATE, DELETE"),
        "query_vectors": Sql("SELECT, INSERT, UPDATE"),
    },
    "worker": {
        "catalog": Sql("SELECT"),
        "indexes": Sql("SELECT"),
        "generations": Sql("SELECT, UPDATE (low_water, load_requested_at)"),
        "models": Sql("SELECT, INSERT, UPDATE, DELETE"),
        "consumers": Sql("SELECT, INSERT, UPDATE, DELETE"),
    },
}

__all__ = [
    "CONSUMER_TIMEOUT_SECONDS",
    "GRANTS",
    "QUERY_VECTORS",
    "Base",
    "Catalog",
    "Consumer",
    "Credential",
    "Fence",
    "Generation",
    "Index",
    "Installation",
    "Model",
    "QueryVector",
]
