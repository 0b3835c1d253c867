"""A document's trace goes on in the worker that applies it.

The service tells workers which trace a request's documents belong to, beside the NOTIFY that wakes
them; nothing of it is stored. Workers hear it before or after they have applied a document, so both are
kept for a while, and whichever comes second makes the span. A worker that was not there makes none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import orjson
from opentelemetry.trace import SpanKind
from pydantic import TypeAdapter, ValidationError

from polaris.telemetry import past_span, trace_headers, tracing

V = TypeVar("V")

_TOLD = 20
"""Documents of a commit whose trace is told; of a larger batch the first ones."""
_KEPT = 1000
_TOLD_OF: TypeAdapter[tuple[int, list[int], dict[str, str]]] = TypeAdapter(
    tuple[int, list[int], dict[str, str]]
)


def told(index: int, sequences: Sequence[int]) -> str | None:
    """Return what workers are told of the present request's documents; None where it is not traced."""
    carried = trace_headers(sampled=True)
    return orjson.dumps([index, sequences[:_TOLD], carried]).decode() if carried and sequences else None


@dataclass(frozen=True)
class _Applied:
    begun: int
    """Nanoseconds since 1970."""
    ended: int


class Traces:
    """Joins what was applied with the trace that it belongs to, by index and sequence."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[int, int], dict[str, str]] = OrderedDict()
        self._applied: OrderedDict[tuple[int, int], _Applied] = OrderedDict()

    def heard(self, payload: str | None) -> None:
        """Take in what a service told; None: the connection is new.

        Any login of the database may say something here, so what makes no sense is passed over.
        """
        if payload is None or not tracing():
            return
        try:
            index, sequences, carried = _TOLD_OF.validate_json(payload)
        except ValidationError:
            return
        for sequence in sequences:
            applied = self._applied.pop((index, sequence), None)
            if applied is None:
                _keep(self._told, (index, sequence), carried)
            else:
                _go_on(carried, applied)

    def applied(self, index: int, sequences: Iterable[int], begun: int, ended: int) -> None:
        """Say which documents became searchable, and when that began and ended, in nanoseconds since 1970."""
        if not tracing():
            return
        for sequence in sequences:
            carried = self._told.pop((index, sequence), None)
            if carried is None:
                _keep(self._applied, (index, sequence), _Applied(begun, ended))
            else:
                _go_on(carried, _Applied(begun, ended))


def _go_on(carried: dict[str, str], applied: _Applied) -> None:
    past_span("apply document", SpanKind.CONSUMER, carried, applied.begun, applied.ended)


def _keep(among: OrderedDict[tuple[int, int], V], key: tuple[int, int], value: V) -> None:
    among[key] = value
    if len(among) > _KEPT:
        among.popitem(last=False)
