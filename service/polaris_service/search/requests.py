"""The body of a search, checked: what it says by itself, before any index is looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from polaris.errors import InvalidInput, TooLarge
from polaris.settings import ServiceSettings
from polaris.spec import SearchMode
from polaris_service.bodies import escape
from polaris_service.search import filters

DEFAULT_K = 10
MAX_QUERY_CHARACTERS = 8192
"""More than any embedding model of today reads of a query."""
_MODES_TO_COME = ("hybrid", "lexical")
_INT64 = 2**63 - 1


@dataclass(frozen=True)
class Limits:
    """What a search may ask for; from the service's settings."""

    max_k: int = 1000
    seconds: float = 30.0
    """Longest time of one search, unless the caller asks for less."""
    filter: filters.Limits = field(default_factory=filters.Limits)

    @classmethod
    def of(cls, settings: ServiceSettings) -> Self:
        """Return what the settings allow."""
        return cls(
            max_k=settings.max_k,
            seconds=settings.request_timeout_seconds,
            filter=filters.Limits(settings.max_filter_depth, settings.max_filter_terms),
        )


@dataclass(frozen=True)
class SearchRequest:
    """A search. Exactly one of `query` and `vector` is given."""

    k: int
    seconds: float
    """Time that it may take."""
    query: str | None = None
    vector: Any = None
    """As in JSON: which vectors are right depends on the index (`vectors.parse`)."""
    filter: Any = None
    """As in JSON: which attributes there are depends on the index (`filters.parse`)."""
    after_sequence: int | None = None
    generation: int | None = None
    """The generation that the vector was made for."""
    explain: bool = False


def parse(body: Any, limits: Limits) -> SearchRequest:
    """Return the search that a JSON body says; raise InvalidInput or TooLarge with its pointer."""
    fields = Fields(body, _FIELDS)
    query = fields.text("query", MAX_QUERY_CHARACTERS)
    vector = fields.get("vector")
    if (query is None) == (vector is None):
        raise InvalidInput("must have exactly one of query and vector")
    fields.check_mode()
    fields.check_tenant()
    timeout = fields.integer("timeout_ms", 1, _INT64)
    return SearchRequest(
        k=fields.k(limits.max_k),
        seconds=min(limits.seconds, timeout / 1000) if timeout else limits.seconds,
        query=query,
        vector=vector,
        filter=fields.get("filter"),
        after_sequence=fields.integer("after_sequence", 0, _INT64),
        generation=fields.integer("generation", 1, _INT64),
        explain=fields.flag("explain"),
    )


_FIELDS = frozenset(
    {
        "query",
        "vector",
        "k",
        "mode",
        "filter",
        "tenant",
        "after_sequence",
        "timeout_ms",
        "explain",
        "generation",
    }
)


class Fields:
    """The fields of a body, read with their types; null counts as absent.

    A field that nobody knows is refused: `filters` in place of `filter` would silently find too much.
    """

    def __init__(self, body: Any, known: frozenset[str]) -> None:
        if not isinstance(body, dict):
            raise InvalidInput("the body must be a JSON object")
        self._body: Mapping[str, Any] = body
        for name in body:
            if name not in known:
                raise InvalidInput(
                    f"unknown field; known: {', '.join(sorted(known))}", f"/{escape(name[:64])}"
                )

    def get(self, name: str) -> Any:
        """Return the field as it is, None where it is absent."""
        return self._body.get(name)

    def _typed(self, name: str, right: Callable[[Any], bool], expected: str) -> Any:
        value = self.get(name)
        if value is not None and not right(value):
            raise InvalidInput(f"must be {expected}", f"/{name}")
        return value

    def text(self, name: str, most: int) -> str | None:
        """Return text of 1 to `most` characters that is more than blanks."""
        value: str | None = self._typed(name, lambda v: isinstance(v, str), "a string")
        if value is None:
            return None
        if len(value) > most:
            raise TooLarge(f"has {len(value)} characters, at most {most} are taken", f"/{name}")
        if not value.strip():
            raise InvalidInput("must not be empty", f"/{name}")
        return value

    def integer(self, name: str, least: int, most: int) -> int | None:
        """Return a whole number from `least` to `most`."""
        value: int | None = self._typed(name, lambda v: type(v) is int, "a whole number")
        if value is not None and not least <= value <= most:
            raise InvalidInput(f"must be from {least} to {most}", f"/{name}")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false; false where it is absent."""
        return bool(self._typed(name, lambda v: isinstance(v, bool), "true or false"))

    def k(self, most: int, default: int = DEFAULT_K) -> int:
        """Return how many hits are asked for."""
        value = self.integer("k", 1, most)
        return min(default, most) if value is None else value

    def check_mode(self) -> None:
        """Refuse a mode that this version does not have."""
        mode = self._typed("mode", lambda v: isinstance(v, str), "a string")
        if mode is None or mode in list(SearchMode):
            return
        have = ", ".join(SearchMode)
        if mode in _MODES_TO_COME:
            raise InvalidInput(f"{mode} is not there yet: this version has {have}", "/mode")
        raise InvalidInput(f"must be one of: {have}", "/mode")

    def check_tenant(self) -> None:
        """Refuse a tenant: no index of this version has any, and to ignore it would leak."""
        if self.get("tenant") is not None:
            raise InvalidInput("the index has no tenants: its spec.tenancy.mode is none", "/tenant")
