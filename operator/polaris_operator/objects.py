"""Where objects live: the door that hides whether it is a cluster or a folder.

`kubernetes_api` and `folder` implement it, and pass the same tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from polaris.spec import Kind


@dataclass(frozen=True, order=True)
class Key:
    """Names one object."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True)
class Resource:
    """An object as it was read: plain values, spec and status as JSON by their outside names."""

    key: Key
    uid: str
    generation: int
    resource_version: str
    spec: Mapping[str, Any]
    status: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    deleted_at: datetime | None = None
    """When somebody asked for its deletion."""


def database_of(index: Resource) -> Key:
    """Return the PolarisDatabase that a PolarisIndex refers to; one without a name where it names none."""
    reference = index.spec.get("databaseRef", {})
    namespace = reference.get("namespace") or index.key.namespace
    return Key("PolarisDatabase", namespace, reference.get("name", ""))


@dataclass(frozen=True)
class Secret:
    """A Secret's values as text, and the uid of the object that owns it (None: nobody of ours)."""

    data: Mapping[str, str]
    owner_uid: str | None = None
    resource_version: str = ""


@dataclass(frozen=True)
class Token:
    """A ServiceAccount's token; never logged."""

    value: str = field(repr=False)
    expires_at: datetime


class Objects(Protocol):
    """Reads and writes objects and the Secrets beside them.

    Every method raises ClusterUnavailable where nobody answers, and Conflict where the object is no
    longer what was read.
    """

    @property
    def installation(self) -> str:
        """A stable name of this cluster or folder: who owns indexes, in the catalog."""
        ...

    def get(self, key: Key) -> Resource | None:
        """Return the object as last seen; None where there is none."""
        ...

    def list(self, kind: Kind) -> list[Resource]:
        """Return all objects of a kind that this installation watches."""
        ...

    def complete(self) -> bool:
        """Whether `list` is known to be complete: only then does an absent object mean a deleted one."""
        ...

    def watches(self, namespace: str) -> bool:
        """Whether objects of this namespace are ours to reconcile."""
        ...

    def write_status(self, resource: Resource, status: Mapping[str, Any]) -> Resource:
        """Replace the status; the caller has checked that it differs."""
        ...

    def set_finalizer(self, resource: Resource, *, present: bool) -> Resource:
        """Add or remove our finalizer."""
        ...

    def secret(self, namespace: str, name: str) -> Secret | None:
        """Return a Secret; None where there is none."""
        ...

    def write_secret(self, namespace: str, name: str, data: Mapping[str, str], owner: Resource) -> None:
        """Create or update a Secret that `owner` owns; Conflict where it is somebody else's."""
        ...

    def delete_secret(self, namespace: str, name: str, owner: Resource) -> None:
        """Delete a Secret where `owner` owns it; otherwise leave it."""
        ...

    def service_account_token(self, namespace: str, name: str, audience: str) -> Token:
        """Ask for a token of a ServiceAccount of the object's own namespace."""
        ...

    def event(self, resource: Resource, reason: str, message: str, *, warning: bool) -> None:
        """Tell a person what happened; best effort."""
        ...
