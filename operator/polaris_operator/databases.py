"""The databases that this process is logged in to: one entry a PolarisDatabase.

An entry is opened when its PolarisDatabase is reconciled, and found by the indexes that refer to it.
The operator's own login is replaced at half of its life; sessions that run go on with the old one,
which the ledger remembers (owner `operator/…`) until it is revoked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from polaris.errors import NotFound, PolarisError, VaultRefused, VaultUnavailable
from polaris.spec import PolarisDatabaseSpec, SecretKeyRef
from polaris.spec import Vault as VaultSpec
from polaris.status import Reason
from polaris.telemetry import logger
from polaris_operator.doors import Doors
from polaris_operator.listener import Listener
from polaris_operator.measurements import Measurements
from polaris_operator.objects import Key, Objects, Resource
from polaris_operator.postgres import Identity, Postgres, Server
from polaris_operator.steps import Blocked
from polaris_operator.vault import (
    TRIAL_SECONDS,
    AppRoleMethod,
    KubernetesMethod,
    Method,
    TokenMethod,
    Trial,
    Vault,
)
from polaris_operator.world.database import OwnLogin, Process

log = logger(__name__)


@dataclass
class _Entry:
    """What is kept of a database between two looks at its PolarisDatabase."""

    vault: Vault | None = None
    vault_made_from: Any = None
    own: OwnLogin | None = None
    trial: Trial | None = None
    """What the own login ends with before long, until the ledger has it."""
    kept: Trial | None = None
    """What it lives by since."""
    postgres: Postgres | None = None
    measurements: Measurements | None = None
    doors: Doors | None = None
    listener: Listener | None = None
    blocked: Blocked | None = None
    """Why indexes can't use it; None: they can."""
    looked_at: bool = False
    """Whether this process knows at all if they can."""
    allowed: frozenset[str] | None = None
    """Namespaces whose indexes may use it; None: nobody knows yet, so nobody is told off."""


class Databases:
    """Entries by key. `open` and `close` are called by whoever has the key; `find` by anybody."""

    def __init__(
        self,
        objects: Objects,
        process: Process,
        wake: Callable[[Key], None],
        may: Callable[[], None] = lambda: None,
    ) -> None:
        """Work for `process` as long as `may` does not raise."""
        self._may = may
        self._objects = objects
        self._process = process
        self._wake = wake
        self._lock = threading.Lock()
        self._entries: dict[Key, _Entry] = {}

    def find(self, database: Key, namespace: str) -> Doors | Blocked | None:
        """Return the doors of a database, for an object of this namespace, or why it has to wait.

        None while this process has not looked at the database: what others said of it still stands.
        """
        with self._lock:
            entry = self._entries.get(database)
        if entry is None or not entry.looked_at:
            if self._objects.complete() and self._objects.get(database) is None:
                return Blocked(Reason.DATABASE_NOT_FOUND, f"there is no {database}", stalled=True)
            return None
        if entry.allowed is not None and entry.allowed.isdisjoint({namespace, "*"}):
            message = f"{database} does not allow namespace {namespace} (spec.allowedNamespaces)"
            return Blocked(Reason.NAMESPACE_NOT_ALLOWED, message, stalled=True)
        if entry.blocked is not None or entry.doors is None:
            return _not_ready(database, entry.blocked)
        return entry.doors

    def settle(self, database: Key, allowed: frozenset[str], blocked: Blocked | None) -> bool:
        """Say whether indexes can use a database; return whether that is news to them."""
        with self._lock:
            entry = self._entries.setdefault(database, _Entry())
        entry.allowed = allowed
        return _told(entry, blocked)

    def listen(self, database: Key) -> None:
        """Hear from now on what service and workers tell in this database."""
        with self._lock:
            entry = self._entries.get(database)
        if entry is not None and entry.listener is None and entry.postgres is not None:
            entry.listener = Listener(entry.postgres, database, self._process.installation, self._wake)

    def block(self, database: Key, blocked: Blocked) -> bool:
        """Say why indexes can't use a database now, and return whether that is news to them.

        Who may use it stays as it was.
        """
        with self._lock:
            entry = self._entries.setdefault(database, _Entry())
        return _told(entry, blocked)

    def open(self, resource: Resource, spec: PolarisDatabaseSpec) -> Doors:
        """Return the doors of a database, logged in with what its spec says now.

        Raises NotFound for a Secret or key that is not there, and what Vault and PostgreSQL raise.
        """
        with self._lock:
            entry = self._entries.setdefault(resource.key, _Entry())
        namespace = resource.key.namespace
        tls = spec.tls
        ca = None if tls.ca_secret_ref is None else self._value(namespace, tls.ca_secret_ref)
        server = Server(spec.host, spec.port, spec.database, tls.mode, ca)
        if entry.postgres is not None and not entry.postgres.leads_to(server):
            _leave(entry)
        identity = self._identity(entry, namespace, spec)
        if entry.postgres is None:
            entry.postgres = Postgres(server, identity, process=self._process, may=self._may)
        elif (entry.postgres.server, entry.postgres.identity) != (server, identity):
            entry.postgres.log_in(server, identity)
        if entry.measurements is None:
            entry.measurements = Measurements(entry.postgres)
        entry.doors = Doors(
            resource.key,
            self._objects,
            entry.postgres,
            entry.vault,
            entry.own,
            self._process,
            self._wake,
            entry.measurements,
            partial(self.keep_login, resource.key),
            partial(self.doubt_login, resource.key),
            partial(self.prolonging, resource.key),
        )
        return entry.doors

    def measuring(self) -> bool:
        """Whether the recall of some index is measured, or waits for that."""
        with self._lock:
            entries = list(self._entries.values())
        return any(entry.measurements is not None and entry.measurements.busy for entry in entries)

    def keep_login(self, database: Key) -> None:
        """The ledger has our own login: it is no longer on trial.

        Where Vault does not answer, the next call tries again.
        """
        with self._lock:
            entry = self._entries.get(database)
        if entry is None or entry.own is None or entry.trial is None or entry.vault is None:
            return
        own, trial = entry.own, entry.trial
        try:
            kept = entry.vault.renew(trial, own.expires_at)
        except (VaultUnavailable, VaultRefused) as error:
            log.warning("own login is still on trial", error=str(error), ends_at=trial.ends_at.isoformat())
            return
        entry.own = replace(own, expires_at=min(own.expires_at, kept.ends_at))
        entry.trial, entry.kept = None, kept

    @contextlib.contextmanager
    def prolonging(self, database: Key) -> Iterator[None]:
        """Let our own login go on for as long as this does, and no longer: no ledger has it yet."""
        with self._lock:
            entry = self._entries.get(database)
        over = threading.Event()

        def prolong() -> None:
            while entry is not None and not over.wait(TRIAL_SECONDS / 4):
                with contextlib.suppress(PolarisError):  # The next try may do better.
                    _goes_on(entry, datetime.now(UTC))

        thread = threading.Thread(target=prolong, name="own-login", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def doubt_login(self, database: Key) -> None:
        """Nobody leads here any more who would end our own login: it ends by itself, unless a build needs it.

        For the moment in which the object is let go: who is killed in it leaves nothing that lives for hours.
        """
        with self._lock:
            entry = self._entries.get(database)
        if entry is None or entry.kept is None or entry.vault is None or entry.postgres is None:
            return
        if entry.postgres.builds() is not False:
            return
        try:
            ends = datetime.now(UTC) + timedelta(seconds=TRIAL_SECONDS)
            entry.trial, entry.kept = entry.vault.renew(entry.kept, ends), None
        except (VaultUnavailable, VaultRefused) as error:
            log.warning("own login lives on until it is revoked", error=str(error))

    def forget_login(self, database: Key) -> None:
        """PostgreSQL refused the login: the next `open` asks Vault for another."""
        with self._lock:
            entry = self._entries.get(database)
        if entry is not None:
            _revoke_own(entry)

    def close(self, database: Key, *, for_another: bool = False) -> None:
        """End what was opened: the object is gone, or this process ends and another one comes."""
        with self._lock:
            entry = self._entries.pop(database, None)
        if entry is None:
            return
        _leave(entry, for_another=for_another)
        if entry.vault is not None:
            entry.vault.close()

    def close_all(self) -> None:
        """End everything that was opened, side by side: one server that is away holds up no other.

        Where we do not lead any more nothing is written or revoked: what is left is our successor's.
        """
        if databases := list(self._entries):
            with ThreadPoolExecutor(len(databases)) as threads:
                list(threads.map(partial(self.close, for_another=True), databases))

    # Which login

    def _identity(self, entry: _Entry, namespace: str, spec: PolarisDatabaseSpec) -> Identity:
        source = spec.credentials
        if source.vault is not None:
            return self._leased(entry, namespace, source.vault)
        if entry.vault is not None:
            _revoke_own(entry)
            entry.vault.close()
            entry.vault = entry.vault_made_from = None
        if source.secret_ref is None:
            raise NotFound("spec.credentials names no source")  # The spec's own rule forbids it.
        name = source.secret_ref.name
        username, password = (
            self._value(namespace, SecretKeyRef(name=name, key=key)) for key in ("username", "password")
        )
        return Identity(username, password)

    def _leased(self, entry: _Entry, namespace: str, spec: VaultSpec) -> Identity:
        method, secret = self._method(namespace, spec)
        ca = None if spec.ca_secret_ref is None else self._value(namespace, spec.ca_secret_ref)
        made_from = (spec, secret, ca)
        if entry.vault is None or entry.vault_made_from != made_from:
            if entry.vault is not None:
                entry.vault.close()
            entry.vault = Vault(spec.address, method, mount=spec.mount, connection=spec.connection, ca=ca)
            entry.vault.may = self._may
            entry.vault_made_from = made_from
        now = datetime.now(UTC)
        own, postgres = entry.own, entry.postgres
        half_lived = own is None or now >= own.issued_at + (own.expires_at - own.issued_at) / 2
        try:
            if own is not None and postgres is not None and not half_lived and _goes_on(entry, now):
                return postgres.identity
            issued, trial = entry.vault.issue_on_trial(spec.role)
        except (VaultUnavailable, VaultRefused) as error:
            # The login that we have serves for the other half of its life.
            if own is None or postgres is None or now >= own.expires_at:
                raise
            log.warning("own login not renewed", error=str(error), expires_at=own.expires_at.isoformat())
            return postgres.identity
        entry.own = OwnLogin(issued.username, issued.lease_id, now, issued.expires_at)
        entry.trial, entry.kept = trial, None
        return Identity(issued.username, issued.password)

    def _method(self, namespace: str, spec: VaultSpec) -> tuple[Method, str]:
        """Return how to log in to Vault, and the secret that it was made with."""
        auth = spec.auth
        if auth.kubernetes is not None:
            kubernetes = auth.kubernetes
            account = kubernetes.service_account_name

            def token() -> str:
                return self._objects.service_account_token(namespace, account, kubernetes.audience).value

            return KubernetesMethod(kubernetes.mount, kubernetes.role, token), ""
        if auth.token is not None:
            secret = self._value(namespace, auth.token.secret_ref).strip()
            return TokenMethod(secret), secret
        if auth.app_role is not None:
            secret = self._value(namespace, auth.app_role.secret_ref).strip()
            return AppRoleMethod(auth.app_role.mount, auth.app_role.role_id, secret), secret
        raise NotFound("spec.credentials.vault.auth names no method")  # The spec's own rule forbids it.

    def _value(self, namespace: str, reference: SecretKeyRef) -> str:
        secret = self._objects.secret(namespace, reference.name)
        if secret is None:
            raise NotFound(f"there is no Secret {namespace}/{reference.name}")
        if reference.key not in secret.data:
            raise NotFound(f"Secret {namespace}/{reference.name} has no key {reference.key}")
        return secret.data[reference.key]


def _told(entry: _Entry, blocked: Blocked | None) -> bool:
    before = (entry.looked_at, entry.blocked and entry.blocked.reason)
    entry.looked_at, entry.blocked = True, blocked
    return before != (True, blocked and blocked.reason)


def _not_ready(database: Key, blocked: Blocked | None) -> Blocked:
    why = blocked.message if blocked else "it was not opened yet"
    message = f"{database} is not ready: {why}"
    if blocked is not None and blocked.reason == Reason.DATABASE_UNAVAILABLE:
        # It is what holds for the index too, and not only for the object that it refers to.
        return Blocked(Reason.DATABASE_UNAVAILABLE, message, stalled=False)
    return Blocked(Reason.DATABASE_NOT_READY, message, stalled=False)


def _leave(entry: _Entry, *, for_another: bool = False) -> None:
    """End what leads to a database. Passes that are under way hold its doors, and go nowhere else.

    The next one is looked at before any index uses it. Revoking our login would end a build, which another
    process is to find; where nobody can say whether one lives, the login is left to end by itself.
    """
    if entry.listener is not None:
        entry.listener.stop()
    if entry.measurements is not None:
        entry.measurements.stop()
    if entry.postgres is not None:
        entry.postgres.resign()
        builds = entry.postgres.builds()
        if builds is False or (builds is None and not for_another):
            _revoke_own(entry)
        entry.postgres.close()
    entry.listener = entry.measurements = entry.postgres = entry.doors = None
    entry.looked_at = False


def _goes_on(entry: _Entry, now: datetime) -> bool:
    """Whether our login does: one on trial is, for as long as no ledger can have it, a trial at a time."""
    trial = entry.trial
    if trial is None or entry.vault is None or now < trial.ends_at - timedelta(seconds=TRIAL_SECONDS / 2):
        return True
    try:
        entry.trial = entry.vault.renew(trial, now + timedelta(seconds=TRIAL_SECONDS))
    except VaultRefused:
        return False  # It has ended, and the login with it.
    return True


def _revoke_own(entry: _Entry) -> None:
    """Revoke our own lease, as far as that is possible; it ends by itself in any case."""
    own, entry.own, entry.trial, entry.kept = entry.own, None, None, None
    if own is None or entry.vault is None:
        return
    try:
        entry.vault.revoke(own.lease_id)
    except PolarisError as error:
        log.warning("own login not revoked", expires_at=own.expires_at.isoformat(), error=str(error))
