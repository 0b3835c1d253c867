"""What the gate hands to the audit: who used which index, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# Key of the request's scope under which the audit finds what was admitted.
SCOPE_KEY = "polaris.admission"


class Use(Protocol):
    """A verb on a subresource of `polarisindexes`."""

    @property
    def subresource(self) -> str:
        """What is used of the index."""
        ...

    @property
    def verb(self) -> str:
        """What is done with it."""
        ...


@dataclass
class Admission:
    """What the audit writes down of a request; no text, no token."""

    caller: str = ""
    access: Use | None = None
    namespace: str = ""
    name: str = ""
