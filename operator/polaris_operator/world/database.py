"""What was found of one database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from polaris_operator.bootstrap import Grant
from polaris_operator.world.credentials import CredentialsWorld

Acl: TypeAlias = Mapping[tuple[str, str, str], frozenset[str]]
"""Privileges by grantee, relation of the catalog ("" is the schema itself) and column ("": all)."""

PUBLIC = "PUBLIC"
"""Grantee of what everybody may do."""


@dataclass(frozen=True)
class Group:
    """A role that logins are members of."""

    login: bool = False
    """It must not be one itself."""
    connects: bool = True
    """May connect to this database."""
    issuer_has_admin: bool = True
    """Whether Vault's login may make members of it."""


@dataclass(frozen=True)
class FenceSeen:
    """Who writes for this installation, by the catalog."""

    epoch: int
    holder: str


@dataclass(frozen=True)
class OwnSeen:
    """A login of the operator itself, by the ledger."""

    id: int
    epoch: int
    username: str
    lease_id: str | None
    builds: bool
    """Whether a build lives in a session of it: it can't be revoked then."""


@dataclass(frozen=True)
class OwnLogin:
    """The login that this process uses, where Vault issued it."""

    username: str
    lease_id: str
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class Process:
    """Who we are, in every catalog."""

    installation: UUID
    """Made of the name of the cluster or folder."""
    name: str
    """That name, for people."""
    holder: str
    """This process among those of the installation."""


@dataclass(frozen=True)
class Tombstone:
    """An index that was deleted and can still be had back."""

    number: int
    index: str
    """`namespace/name` of its object."""
    deleted_at: datetime
    drop_after: datetime


@dataclass(frozen=True)
class CatalogSeen:
    """The catalog in this database."""

    id: str
    revision: str
    known: bool
    """Whether this code knows the revision; a newer version's it does not."""
    oldest_code: int
    fence: FenceSeen | None = None
    groups: Mapping[str, Group] = field(default_factory=dict)
    acl: Acl = field(default_factory=dict)
    indexes: int = 0
    """Indexes that objects own, of any installation."""
    in_use_by: tuple[str, ...] = ()
    """Those of this installation, `namespace/name`."""
    tombstones: tuple[Tombstone, ...] = ()
    """Of this installation."""
    own_logins: tuple[OwnSeen, ...] = ()
    last_own_epoch: int = 0


@dataclass(frozen=True)
class DatabaseWorld:
    """All that decides what is to be done about one database."""

    process: Process
    head: str
    """The revision that this code's migrations lead to."""
    server_version: str
    server_version_number: int
    """As `server_version_num`: 180006 is 18.6."""
    standby: bool = False
    pooled: bool = False
    """Whether what answers is a pooler, which hands each transaction to another session."""
    vector_version: str | None = None
    vector_available: str | None = None
    """The version that the server could install."""
    missing: tuple[Grant, ...] = ()
    """What administrators have not granted."""
    catalog: CatalogSeen | None = None
    credentials: CredentialsWorld | None = None
    """None while there is no catalog that we can use."""
    fence: FenceSeen | None = None
    """With which this process took over; None: it has not."""
    own: OwnLogin | None = None
    """None where a Secret holds the operator's login."""
    vault: bool = False
    """Whether Vault issues the logins."""
