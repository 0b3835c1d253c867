"""Filterable attributes: which JSON values they take, and the SQL expression that compares them.

Attributes stay as JSON beside each chunk, so declaring one later is an index on an expression, not a
rewrite of a table and its graph. A stored value that is not of the declared type counts as absent
(it may have been stored before the attribute was declared): each expression yields NULL then, and
never an error, or the index on it could not be built.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any

from polaris.spec import AttributeType
from polaris.sql import Sql, compose, identifier, literal

# RFC 3339 with the offset required; the same as in the function polaris.as_datetime (migration 0001).
_DATETIME = re.compile(
    r"^[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])$"
)
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1
# Of double precision, as decimals that its parser takes: what is between zero and the first is lost.
NUMBER_SMALLEST, NUMBER_LARGEST = "4.9406564584124655e-324", "1.7976931348623157e308"
KEYWORD_BYTES = 1024

_TEMPLATES = {
    AttributeType.KEYWORD: (
        "(CASE WHEN jsonb_typeof({value}) = 'string'"
        f" AND octet_length({{value}} #>> '{{{{}}}}') <= {KEYWORD_BYTES}"
        " THEN {value} #>> '{{}}' END COLLATE \"C\")"
    ),
    AttributeType.INTEGER: (
        "(CASE WHEN jsonb_typeof({value}) = 'number'"
        " AND ({value})::numeric BETWEEN -9223372036854775808 AND 9223372036854775807"
        " AND ({value})::numeric = trunc(({value})::numeric) THEN ({value})::bigint END)"
    ),
    # JSON's numbers have no end, and a cast of one beyond double precision, or too near to zero, fails.
    AttributeType.NUMBER: (
        "(CASE WHEN jsonb_typeof({value}) = 'number' AND (({value})::numeric = 0"
        f" OR abs(({{value}})::numeric) BETWEEN {NUMBER_SMALLEST} AND {NUMBER_LARGEST})"
        " THEN ({value})::double precision END)"
    ),
    AttributeType.BOOLEAN: ("(CASE WHEN jsonb_typeof({value}) = 'boolean' THEN ({value})::boolean END)"),
    AttributeType.DATETIME: "polaris.as_datetime({value})",
}
SQL_TYPES = {
    AttributeType.KEYWORD: "text",
    AttributeType.INTEGER: "bigint",
    AttributeType.NUMBER: "double precision",
    AttributeType.BOOLEAN: "boolean",
    AttributeType.DATETIME: "timestamptz",
}


def expression(name: str, kind: AttributeType, column: str = "attributes") -> Sql:
    """Return the expression that an index and a filter share, to the letter."""
    value = compose("({column} -> {name})", column=identifier(column), name=literal(name))
    return Sql(compose(_TEMPLATES[kind].replace("{{}}", "\x01"), value=value).replace("\x01", "{}"))


def parse_datetime(value: str) -> datetime | None:
    """Return the instant, with its offset; None where it is not RFC 3339 with an offset."""
    if not _DATETIME.match(value):
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def problem(kind: AttributeType, value: Any) -> str | None:
    """Return what is wrong with a JSON value of a declared attribute; None where it is right."""
    match kind:
        case AttributeType.KEYWORD:
            right = isinstance(value, str) and len(value.encode()) <= KEYWORD_BYTES
            expected = f"a string of at most {KEYWORD_BYTES} bytes"
        case AttributeType.INTEGER:
            right = _is_integer(value) and INTEGER_MIN <= value <= INTEGER_MAX
            expected = "a whole number of at most 64 bits"
        case AttributeType.NUMBER:
            right = _is_double(value)
            expected = f"a number, and none beyond {NUMBER_LARGEST} (64 bits of floating point)"
        case AttributeType.BOOLEAN:
            right, expected = isinstance(value, bool), "true or false"
        case AttributeType.DATETIME:
            right = isinstance(value, str) and parse_datetime(value) is not None
            expected = "a date and time with its offset, such as 2026-11-22T18:00:00Z"
    return None if right else f"must be {expected}"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_double(value: Any) -> bool:
    if not (_is_integer(value) or isinstance(value, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
