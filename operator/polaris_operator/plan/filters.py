"""Which filters recall is measured with: one for each class of how many rows a filter leaves.

The graph finds less with a filter, above all where what the filter leaves lies apart from what is asked
for. So the filters are made of attributes that are declared and of values that are there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polaris.attributes import SQL_TYPES, expression, problem
from polaris.spec import Attribute, AttributeType
from polaris.sql import Sql, compose, literal

CLASSES: Mapping[str, tuple[float, float]] = {
    "half": (0.25, 0.75),
    "tenth": (0.04, 0.25),
    "hundredth": (0.004, 0.04),
}
"""Shares of the rows that a filter of a class leaves: more than the first number, up to the second."""
_BY_VALUE = (AttributeType.KEYWORD, AttributeType.BOOLEAN, AttributeType.INTEGER)
_QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Restriction:
    """A comparison that leaves a known share of the rows."""

    attribute: str
    kind: AttributeType
    operator: str
    """= or >=."""
    value: Any
    share: float
    """Of all rows, as the sample showed it."""

    @property
    def sql(self) -> Sql:
        """The condition, on the columns of a table of chunks; as a filter of the service compares."""
        text = str(self.value).lower() if self.kind == AttributeType.BOOLEAN else str(self.value)
        return compose(
            "({what} {operator} CAST({value} AS {type}))",
            what=expression(self.attribute, self.kind),
            operator=Sql(self.operator),
            value=literal(text),
            type=Sql(SQL_TYPES[self.kind]),
        )


def choose_filters(
    declared: Sequence[Attribute], sample: Sequence[Mapping[str, Any]]
) -> dict[str, Restriction]:
    """Return a filter for each class that there is one for; `sample` are attributes of some rows.

    Of several the one that is nearest to the middle of its class.
    """
    found = [one for attribute in declared for one in _restrictions(attribute, sample)]
    chosen = {}
    for name, (low, high) in CLASSES.items():
        middle = math.sqrt(low * high)
        fitting = [one for one in found if low < one.share <= high]
        if fitting:
            chosen[name] = min(fitting, key=lambda one: abs(math.log(one.share / middle)))
    return chosen


def _restrictions(attribute: Attribute, sample: Sequence[Mapping[str, Any]]) -> Iterator[Restriction]:
    kind = attribute.type
    values = [row[attribute.name] for row in sample if attribute.name in row]
    values = [value for value in values if problem(kind, value) is None and "\x00" not in str(value)]
    if kind in _BY_VALUE:
        for value, count in Counter(values).items():
            yield Restriction(attribute.name, kind, "=", value, count / len(sample))
    if kind in (AttributeType.INTEGER, AttributeType.NUMBER):
        ordered = sorted(values)
        for quantile in _QUANTILES if ordered else ():
            value = ordered[int(quantile * (len(ordered) - 1))]
            left = sum(one >= value for one in ordered)
            yield Restriction(attribute.name, kind, ">=", value, left / len(sample))
