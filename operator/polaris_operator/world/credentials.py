"""What was found of the logins that one object wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

State = Literal["requested", "issued", "published", "superseded"]
SecretName: TypeAlias = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True)
class Wanted:
    """A login that an object wants to be there, and the Secret that it is published in."""

    name: str
    """query, worker, or the name of an entry of `access`."""
    group_role: str
    """The PostgreSQL role that it is a member of."""
    secret: SecretName
    overlap_seconds: int = 300
    """How long an old login stays valid, at least, after a new one was published."""


@dataclass(frozen=True)
class Login:
    """A row of the ledger that is not revoked, and whether PostgreSQL has the role."""

    id: int
    name: str
    epoch: int
    group_role: str
    source: Literal["vault", "operator"]
    state: State
    secret: SecretName
    requested_at: datetime
    username: str | None = None
    """Of logins that the operator issues known from the beginning; of Vault's once issued."""
    lease_id: str | None = None
    issued_at: datetime | None = None
    expires_at: datetime | None = None
    superseded_at: datetime | None = None
    overlap_seconds: int = 300
    role_exists: bool = True


@dataclass(frozen=True)
class SecretSeen:
    """A Secret that stands where a login is to be published."""

    owner_uid: str | None
    epoch: int | None
    """The epoch that it says it holds."""
    intact: bool
    """Whether everything in it is as it was written for that epoch."""
    elsewhere: bool = False
    """Whether it is, but for where it leads: host, port, TLS or authority are others now."""

    @property
    def whole(self) -> bool:
        """Whether the login in it is the one that was written."""
        return self.intact or self.elsewhere


@dataclass(frozen=True)
class ConsumerSeen:
    """A running process of the service or of a worker, by its own report."""

    kind: str
    username: str
    epoch: int
    id: str = ""
    """The pod's name, or what the process calls itself."""


@dataclass(frozen=True)
class VaultSeen:
    """What Vault's database engine holds of ours."""

    roles: frozenset[str] = frozenset()
    """Roles that are there and issue what they should."""
    orphans: tuple[str, ...] | None = None
    """Leases of our roles that no row of the ledger knows: somebody died between lease and ledger.
    None: they were not looked for, because nobody did, or because somebody is at it right now."""
    strays: tuple[str, ...] = ()
    """Logins that Vault made and that no row of the ledger knows, looked for as leases are."""
    unavailable: str = ""
    """Why Vault could not be asked; "" where it answered."""
    refused: str = ""
    """What Vault would not let us do; "" where it lets us."""


@dataclass(frozen=True)
class CredentialsWorld:
    """All that decides what is to be done about the logins of one object."""

    owner: str
    """`database/installation/namespace/name` or `index/number`, as in the ledger."""
    owner_uid: str
    """The uid of the object that owns the Secrets."""
    catalog: str
    logins: tuple[Login, ...] = ()
    last_epochs: Mapping[str, int] = field(default_factory=dict)
    """The highest epoch ever given, revoked ones too, by name."""
    secrets: Mapping[SecretName, SecretSeen] = field(default_factory=dict)
    consumers: tuple[ConsumerSeen, ...] = ()
    """Those that reported lately."""
    vault: VaultSeen | None = None
    """None: the operator issues logins itself."""
