"""Who asks, and what for: the words of Kubernetes RBAC, which every way to authenticate uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType


class Access(Enum):
    """A verb on a subresource of `polarisindexes`, group polaris.dev."""

    QUERY = ("query", "get")
    READ = ("documents", "get")
    WRITE = ("documents", "create")
    DELETE = ("documents", "delete")
    PLAN = ("plan", "get")

    @property
    def subresource(self) -> str:
        """What is used of the index."""
        return self.value[0]

    @property
    def verb(self) -> str:
        """What is done with it."""
        return self.value[1]

    def __str__(self) -> str:
        """The words of a 403: `get on polarisindexes/query`."""
        return f"{self.verb} on polarisindexes/{self.subresource}"


@dataclass(frozen=True)
class Caller:
    """Who asks, as whoever knows them says."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def key(self) -> tuple[object, ...]:
        """All that a decision may depend on, hashable."""
        return (self.name, self.uid, self.groups, tuple(sorted(self.extra.items())))
