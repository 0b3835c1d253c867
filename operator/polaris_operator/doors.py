"""The doors that one reconcile goes through, together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from polaris_operator.objects import Key, Objects
from polaris_operator.postgres import Postgres
from polaris_operator.vault import Vault


@dataclass(frozen=True)
class OwnLogin:
    """The login that the operator itself uses, where Vault issued it."""

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
class Doors:
    """What a PolarisDatabase leads to."""

    database: Key
    """The PolarisDatabase."""
    objects: Objects
    postgres: Postgres
    vault: Vault | None
    """None where the operator issues logins itself."""
    own: OwnLogin | None
    """None where a Secret holds the operator's login."""
    process: Process
    wake: Callable[[Key], None]
    """Look at an object again soon (a build of its has ended)."""
