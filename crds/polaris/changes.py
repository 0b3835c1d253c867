"""What a change of each field of a PolarisIndex means for what stands in PostgreSQL.

This table is the one in `docs/changes.md` (a test compares them). A field that is not named here is
one that a test does not let through.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from polaris.spec import PolarisIndexSpec


class Effect(StrEnum):
    """How a change is brought about."""

    REFUSED = "Refused"
    """By the API server (a transition rule)."""
    NEW_GENERATION = "NewGeneration"
    """New tables, filled from the stored text while the old ones serve."""
    BESIDE = "Beside"
    """A second index beside the serving one, then a switch."""
    IN_PLACE = "InPlace"
    """At once."""


# Paths are as in the manifest; a path stands for everything below it that has no row of its own.
EFFECTS: dict[str, Effect] = {
    "databaseRef": Effect.REFUSED,
    "backend": Effect.REFUSED,
    "embedding.provider": Effect.NEW_GENERATION,
    "embedding.model": Effect.NEW_GENERATION,
    "embedding.revision": Effect.NEW_GENERATION,
    "embedding.dimension": Effect.NEW_GENERATION,
    "embedding.type": Effect.NEW_GENERATION,
    "embedding.metric": Effect.BESIDE,
    "chunking": Effect.NEW_GENERATION,
    "index": Effect.BESIDE,
    "search": Effect.IN_PLACE,
    "attributes": Effect.IN_PLACE,
    "tenancy": Effect.NEW_GENERATION,
    "build": Effect.IN_PLACE,
    "change": Effect.IN_PLACE,
    "drift": Effect.IN_PLACE,
    "deletionPolicy": Effect.IN_PLACE,
    "deletionDeadlineSeconds": Effect.IN_PLACE,
    "undeleteSeconds": Effect.IN_PLACE,
    "suspend": Effect.IN_PLACE,
    "access": Effect.IN_PLACE,
}


@dataclass(frozen=True)
class Change:
    """One field that differs, and what that means."""

    path: str
    old: Any
    new: Any
    effect: Effect

    @property
    def sentence(self) -> str:
        """The change as a person would say it."""
        return f"{self.path}: {self.old!r} becomes {self.new!r}"


def effect_of(path: str) -> Effect:
    """Return the effect of the longest path in the table that `path` lies at or below."""
    while path not in EFFECTS:
        path, dot, _ = path.rpartition(".")
        if not dot:
            raise KeyError(path)
    return EFFECTS[path]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        path = f"{prefix}{key}"
        flat |= _flat(item, f"{path}.") if isinstance(item, dict) else {path: item}
    return flat


def leaves(spec: PolarisIndexSpec) -> dict[str, Any]:
    """Return the spec as a flat mapping from path to value; lists are values."""
    return _flat(spec.model_dump(mode="json", by_alias=True))


def changes(old: PolarisIndexSpec, new: PolarisIndexSpec) -> list[Change]:
    """Return what differs between two specs, in the order of the fields."""
    before, after = leaves(old), leaves(new)
    return [
        Change(path, before.get(path), after.get(path), effect_of(path))
        for path in dict.fromkeys((*before, *after))
        if before.get(path) != after.get(path)
    ]
