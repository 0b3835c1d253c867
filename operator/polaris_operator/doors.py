"""The doors that one reconcile goes through, together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from polaris_operator.measurements import Measurements
from polaris_operator.objects import Key, Objects
from polaris_operator.postgres import Postgres
from polaris_operator.vault import Vault
from polaris_operator.world.database import OwnLogin, Process


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
    measurements: Measurements
    """Of recall, beside the passes."""
    keep_login: Callable[[], None] = lambda: None
    """Let our own login live its whole life: it is written down."""
    doubt_login: Callable[[], None] = lambda: None
    """Let our own login end before long by itself: nobody leads here any more who would end it."""
    prolonging: Callable[[], AbstractContextManager[None]] = nullcontext
    """Let our own login go on for as long as something takes, whether it is written down or not."""
