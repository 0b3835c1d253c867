"""The door to Vault or OpenBao: logins from its database secrets engine.

A lease dies with the token that issued it (one advertised at 3,600 s died at 10 s with its token), so
each login is issued with a token of its own, and its expiry is the earlier of the two, counted from
before we asked. Nothing is read from this process's environment: no token, no proxy, no authority.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import hvac
import hvac.exceptions
import requests

from polaris.errors import VaultRefused, VaultUnavailable
from polaris.telemetry import logger
from polaris_operator import bootstrap

log = logger(__name__)

T = TypeVar("T")

_TIMEOUT_SECONDS = 20
# A token that never ends is still looked at again so often.
_FOREVER = timedelta(days=365)
# How long a login lives that nobody has written down yet.
TRIAL_SECONDS = 60


@dataclass(frozen=True)
class Issued:
    """A login that Vault made."""

    username: str
    password: str = field(repr=False)
    lease_id: str
    expires_at: datetime
    """The earlier of lease and token."""


@dataclass(frozen=True)
class Trial:
    """The token that a login depends on which nobody has written down yet.

    A lease dies with the token that issued it: where whoever asked for the login is killed before its
    ledger knows, nobody renews the token, and Vault itself revokes the login.
    """

    client: hvac.Client = field(repr=False)
    ends_at: datetime


@dataclass(frozen=True)
class _Session:
    client: hvac.Client
    expires_at: datetime


class Method(Protocol):
    """How one logs in to Vault."""

    def log_in(self, client: hvac.Client) -> timedelta:
        """Give the client a token; return how long it lives."""
        ...


@dataclass(frozen=True)
class KubernetesMethod:
    """With a ServiceAccount's token, asked for anew each time."""

    mount: str
    role: str
    token: Callable[[], str] = field(repr=False)

    def log_in(self, client: hvac.Client) -> timedelta:
        """Exchange the ServiceAccount's token for Vault's."""
        answer = client.auth.kubernetes.login(self.role, self.token(), mount_point=self.mount)
        return _lifetime(answer["auth"]["lease_duration"])


@dataclass(frozen=True)
class AppRoleMethod:
    """With a role id and a secret id."""

    mount: str
    role_id: str
    secret_id: str = field(repr=False)

    def log_in(self, client: hvac.Client) -> timedelta:
        """Exchange both for a token."""
        answer = client.auth.approle.login(self.role_id, self.secret_id, mount_point=self.mount)
        return _lifetime(answer["auth"]["lease_duration"])


@dataclass(frozen=True)
class TokenMethod:
    """With a token that somebody keeps in a Secret; renewed where Vault lets us."""

    token: str = field(repr=False)

    def log_in(self, client: hvac.Client) -> timedelta:
        """Use the token, and return what is left of it."""
        client.token = self.token
        if client.auth.token.lookup_self()["data"].get("renewable"):  # A root token says nothing.
            with contextlib.suppress(hvac.exceptions.Forbidden, hvac.exceptions.InvalidRequest):
                _warn(client.auth.token.renew_self(), "renewal")
        return _lifetime(client.auth.token.lookup_self()["data"]["ttl"])


class Vault:
    """The database secrets engine at one mount, for one PolarisDatabase."""

    def __init__(
        self,
        address: str,
        method: Method,
        *,
        mount: str = "database",
        connection: str = "polaris",
        ca: str | None = None,
    ) -> None:
        self.may: Callable[[], None] = lambda: None
        """Called before each question; raises where it is no longer ours to ask."""
        self._folder = tempfile.TemporaryDirectory(prefix="polaris-vault-")
        self._address = address.rstrip("/")
        self._method = method
        self._mount = mount
        self._connection = connection
        self._verify: bool | str = True
        if ca is not None:
            path = Path(self._folder.name, "ca.crt")
            path.write_text(ca)
            self._verify = str(path)
        self._session: _Session | None = None

    def close(self) -> None:
        """Remove what stands on disk (the authority's certificate)."""
        self._folder.cleanup()

    def issue(self, role: str) -> Issued:
        """Return a new login of this role of the engine, by a token of its own."""
        with _translated(f"issue a login of role {role}"):
            return self._issue(role, self._log_in())

    def issue_on_trial(self, role: str) -> tuple[Issued, Trial | None]:
        """Return a new login that ends in `TRIAL_SECONDS`, unless the trial is renewed.

        `expires_at` is when it ends if it is. No trial: Vault's policy is one of before there were any,
        so the login lives on whatever happens to us.
        """
        with _translated(f"issue a login of role {role}"):
            session = self._log_in()
            trial = self._on_trial(session)
            if trial is None:
                return self._issue(role, session), None
            return self._issue(role, _Session(trial.client, session.expires_at)), trial

    def renew(self, trial: Trial, ends_at: datetime) -> Trial:
        """Let a login live until then; Vault may allow less, which is no error but a warning of its."""
        asked = datetime.now(UTC)
        seconds = max(int((ends_at - asked).total_seconds()), 1)
        with _translated("renew the token of a login"):
            self.may()
            answer = trial.client.auth.token.renew_self(increment=seconds)
        _warn(answer, "renewal")
        return Trial(trial.client, asked + _lifetime(answer["auth"]["lease_duration"]))

    def _issue(self, role: str, session: _Session) -> Issued:
        asked = datetime.now(UTC)
        self.may()
        answer = _json(session.client.read(f"{self._mount}/creds/{role}"))
        if answer is None:
            raise VaultRefused(f"Vault has no role {role} at {self._mount}")
        _warn(answer, role)
        return Issued(
            answer["data"]["username"],
            answer["data"]["password"],
            answer["lease_id"],
            min(asked + _lifetime(answer["lease_duration"]), session.expires_at),
        )

    def _on_trial(self, session: _Session) -> Trial | None:
        asked = datetime.now(UTC)
        try:
            # Not by hvac's own call: it sends parameters that the policy has no need to allow.
            parameters = {"ttl": f"{TRIAL_SECONDS}s", "renewable": True}
            answer = _json(session.client.write_data("auth/token/create", data=parameters)) or {}
        except (hvac.exceptions.Forbidden, hvac.exceptions.InvalidRequest) as error:
            log.warning(
                "a crash may leave a login until it ends: Vault's policy lets nobody make a token"
                " (`polaris bootstrap` prints the one that does)",
                error=_said(error),
            )
            return None
        client = self._client(answer["auth"]["client_token"])
        return Trial(client, asked + _lifetime(answer["auth"]["lease_duration"]))

    def issues_members(self, role: str, group_role: str) -> bool:
        """Whether the role is there and issues members of this group, as `write_role` makes it."""
        answer = self._do(f"read role {role}", lambda c: _json(c.read(f"{self._mount}/roles/{role}")))
        if answer is None:
            return False
        wanted = self._role(group_role)
        return {key: answer["data"].get(key) for key in wanted} == wanted

    def write_role(self, role: str, group_role: str) -> None:
        """Make the role issue members of this group."""
        self._do(
            f"write role {role}",
            lambda c: c.write_data(f"{self._mount}/roles/{role}", data=self._role(group_role)),
        )

    def delete_role(self, role: str) -> None:
        """Delete the role; there may be none."""
        self._do(f"delete role {role}", lambda c: c.delete(f"{self._mount}/roles/{role}"))

    def leases(self, role: str) -> list[str]:
        """Return the ids of the role's leases that live."""
        prefix = f"{self._mount}/creds/{role}/"
        answer = self._do(f"list leases of {role}", lambda c: _json(c.list(f"sys/leases/lookup/{prefix}")))
        return [] if answer is None else [prefix + key for key in answer["data"]["keys"]]

    def revoke(self, lease_id: str) -> None:
        """Revoke a lease and wait until it is done."""
        # The id stands in the path, so that the policy can say which ones we may revoke.
        path = f"/v1/sys/leases/revoke/{lease_id}"
        self._do(f"revoke {lease_id}", lambda c: c.adapter.put(path, json={"sync": True}))

    def _role(self, group_role: str) -> dict[str, Any]:
        return bootstrap.vault_role_parameters(group_role, self._connection)

    def _client(self, token: str) -> hvac.Client:
        http = requests.Session()
        http.trust_env = False
        http.verify = self._verify
        return hvac.Client(
            url=self._address, token=token, verify=self._verify, timeout=_TIMEOUT_SECONDS, session=http
        )

    def _log_in(self) -> _Session:
        self.may()
        client = self._client("")
        asked = datetime.now(UTC)
        return _Session(client, asked + self._method.log_in(client))

    def _do(self, what: str, call: Callable[[hvac.Client], T]) -> T:
        """Call with the session's token; once more with a new one where it no longer holds."""
        with _translated(what):
            self.may()
            session = self._session
            if session is not None and datetime.now(UTC) < session.expires_at - timedelta(seconds=60):
                with contextlib.suppress(hvac.exceptions.Forbidden):
                    return call(session.client)
            self._session = self._log_in()
            self.may()
            return call(self._session.client)


def _json(answer: Any) -> dict[str, Any] | None:
    """Return what Vault said; hvac hands out None for 404, and a bare response for 204."""
    return answer if isinstance(answer, dict) else None


def _warn(answer: Any, what: str) -> None:
    """Log what Vault warns of: a life that it shortened is no error there."""
    for warning in (_json(answer) or {}).get("warnings") or ():
        log.warning("vault warns", of=what, warning=warning)


def _lifetime(seconds: int) -> timedelta:
    return timedelta(seconds=seconds) if seconds > 0 else _FOREVER


_REFUSALS = (
    hvac.exceptions.InvalidRequest,
    hvac.exceptions.Unauthorized,
    hvac.exceptions.Forbidden,
    hvac.exceptions.InvalidPath,
    hvac.exceptions.UnsupportedOperation,
    hvac.exceptions.ParamValidationError,
)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except _REFUSALS as error:
        raise VaultRefused(f"Vault refuses to {what}: {_said(error)}") from None
    except hvac.exceptions.VaultError as error:
        raise VaultUnavailable(f"Vault does not {what}: {_said(error)}") from None
    except requests.exceptions.SSLError as error:
        # Not a refusal: Vault itself was never asked, and what it holds stays as it is.
        raise VaultUnavailable(
            f"Vault's certificate is not believed, so it was not asked to {what}: {_root(error)}"
        ) from None
    except requests.RequestException as error:
        raise VaultUnavailable(f"Vault does not answer to {what}: {_root(error)}") from None
    except OSError as error:
        # The door was closed behind us, and the authority's file with it: the spec leads elsewhere now.
        raise VaultUnavailable(f"Vault was not asked to {what}: {error}") from None


def _said(error: hvac.exceptions.VaultError) -> str:
    """Return what Vault said, in one line, without where we asked."""
    return " ".join(str(error.args[0]).split())


def _root(error: BaseException) -> BaseException:
    """Return the innermost cause: urllib3's wrappings name objects, and so differ each time."""
    inside = (getattr(error, "reason", None), *error.args)
    cause = next((inner for inner in inside if isinstance(inner, BaseException)), None)
    return error if cause is None else _root(cause)
