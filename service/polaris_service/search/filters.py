"""Filters on declared attributes: parsed into a small typed tree, compiled to SQL with parameters.

`{"and": […]}`, `{"or": […]}`, `{"not": …}`, and comparisons `{"eq": ["attribute", value]}` with `eq`,
`ne`, `gt`, `gte`, `lt`, `lte` and `in` (whose value is a list). `{"and": []}` is true of every row,
`{"or": []}` and an empty `in` of none.

**Logic has two values.** A comparison with an attribute that a document does not have, or has with
another type than the declared one, is false; `ne` and `not` are the exact opposite, so they match
such documents. A filter and its `not` always share all rows between them.

In SQL a comparison with NULL is neither. Negations are therefore moved down to the comparisons, where
`IS NOT TRUE` takes NULL for false; a comparison that is not negated stays bare, so that the index on
its expression can serve it, and its NULL ends as "not selected" anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeAlias

from polaris.attributes import SQL_TYPES, expression, parse_datetime, problem
from polaris.errors import InvalidInput, TooLarge
from polaris.spec import AttributeType
from polaris.sql import Sql, compose, join

Value: TypeAlias = "str | int | float | bool | datetime"


class Operator(StrEnum):
    """What a comparison asks."""

    EQ = "eq"
    NE = "ne"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    IN = "in"


_SQL_OPERATORS = {
    Operator.EQ: Sql("="),
    Operator.GT: Sql(">"),
    Operator.GTE: Sql(">="),
    Operator.LT: Sql("<"),
    Operator.LTE: Sql("<="),
}
_ORDERINGS = frozenset({Operator.GT, Operator.GTE, Operator.LT, Operator.LTE})
_GROUPS = ("and", "or", "not")
_OPERATORS = {operator.value: operator for operator in Operator}


@dataclass(frozen=True, slots=True)
class Compare:
    """An attribute against a value of its type (datetimes in UTC); `ne` is parsed as `not eq`."""

    operator: Operator
    attribute: str
    kind: AttributeType
    value: Value


@dataclass(frozen=True, slots=True)
class In:
    """An attribute against a list of values."""

    attribute: str
    kind: AttributeType
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class And:
    """All of them; true where there is none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of them; false where there is none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The rows that the part does not match, those without the attribute among them."""

    part: Filter


Filter: TypeAlias = "Compare | In | And | Or | Not"


@dataclass(frozen=True)
class Limits:
    """How large a filter may be."""

    depth: int = 16
    """Levels of nesting; a comparison alone has one."""
    terms: int = 256
    """Comparisons and entries of lists, together."""


def parse(
    value: Any,
    declared: Mapping[str, AttributeType],
    limits: Limits = Limits(),
    pointer: str = "/filter",
) -> Filter:
    """Return the filter that a JSON value says, or raise InvalidInput or TooLarge with its pointer.

    `declared` are the attributes of the index. The recursion is as deep as `limits.depth` at most.
    Strings hold neither NUL nor half a surrogate pair: the body was read by `bodies.parse_json`.
    """
    return _Parser(declared, limits).parse(value, pointer, 1)


class _Parser:
    def __init__(self, declared: Mapping[str, AttributeType], limits: Limits) -> None:
        self._declared = declared
        self._limits = limits
        self._terms = 0

    def parse(self, value: Any, pointer: str, depth: int) -> Filter:
        if depth > self._limits.depth:
            raise TooLarge(f"a filter is nested at most {self._limits.depth} deep", pointer)
        if not isinstance(value, dict) or len(value) != 1:
            raise InvalidInput(f"must be an object with exactly one of: {_choices()}", pointer)
        [(word, inner)] = value.items()
        at = f"{pointer}/{word}"
        if word in _GROUPS:
            return self._group(word, inner, at, depth)
        operator = _OPERATORS.get(word)
        if operator is None:
            raise InvalidInput(f"must be an object with exactly one of: {_choices()}", pointer)
        return self._comparison(operator, inner, at)

    def _group(self, word: str, inner: Any, at: str, depth: int) -> Filter:
        if word == "not":
            return Not(self.parse(inner, at, depth + 1))
        if not isinstance(inner, list):
            raise InvalidInput("must be a list of filters", at)
        if not inner:
            self._count(1, at)
        parts = tuple(self.parse(part, f"{at}/{i}", depth + 1) for i, part in enumerate(inner))
        return And(parts) if word == "and" else Or(parts)

    def _comparison(self, operator: Operator, inner: Any, at: str) -> Filter:
        if not isinstance(inner, list) or len(inner) != 2:
            raise InvalidInput('must be a list of two: ["attribute", value]', at)
        name, value = inner
        kind = self._kind(name, f"{at}/0")
        if operator == Operator.IN:
            return self._in(name, kind, value, f"{at}/1")
        self._count(1, at)
        if operator in _ORDERINGS and kind == AttributeType.BOOLEAN:
            raise InvalidInput(f"{name} is boolean: it can be compared by eq, ne and in only", at)
        typed = _typed(kind, value, f"{at}/1")
        if operator == Operator.NE:
            return Not(Compare(Operator.EQ, name, kind, typed))
        return Compare(operator, name, kind, typed)

    def _in(self, name: str, kind: AttributeType, value: Any, at: str) -> Filter:
        if not isinstance(value, list):
            raise InvalidInput("must be a list of values", at)
        self._count(max(1, len(value)), at)
        return In(name, kind, tuple(_typed(kind, entry, f"{at}/{i}") for i, entry in enumerate(value)))

    def _kind(self, name: Any, at: str) -> AttributeType:
        if not isinstance(name, str):
            raise InvalidInput("must be the name of an attribute", at)
        kind = self._declared.get(name)
        if kind is None:
            known = ", ".join(self._declared) or "none"
            raise InvalidInput(
                f"{name[:64]!a} is not an attribute that the index declares; declared: {known}", at
            )
        return kind

    def _count(self, terms: int, at: str) -> None:
        self._terms += terms
        if self._terms > self._limits.terms:
            raise TooLarge(f"a filter has at most {self._limits.terms} comparisons and list entries", at)


def _choices() -> str:
    return ", ".join((*_GROUPS, *Operator))


def _typed(kind: AttributeType, value: Any, at: str) -> Value:
    """Return the value as the driver takes it for the attribute's type."""
    wrong = problem(kind, value)
    if wrong:
        raise InvalidInput(wrong, at)
    convert = _CONVERSIONS.get(kind)
    try:
        typed: Value = convert(value) if convert else value
    except OverflowError:
        raise InvalidInput(f"is beyond what a {kind} can be", at) from None
    return typed


def _finite(value: float) -> float:
    number = float(value)  # OverflowError for an integer beyond a double
    if not math.isfinite(number):
        raise OverflowError
    return number


def _instant(value: str) -> datetime:
    parsed = parse_datetime(value)
    if parsed is None:
        raise ValueError(value)
    return parsed.astimezone(UTC)  # OverflowError at either end of the calendar


_CONVERSIONS: dict[AttributeType, Callable[[Any], Value]] = {
    AttributeType.NUMBER: _finite,
    AttributeType.DATETIME: _instant,
}

# --- SQL -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """A condition for WHERE, and the values of its parameters in order."""

    sql: Sql
    values: tuple[Any, ...]


def compile_filter(tree: Filter, first: int) -> Condition:
    """Return the filter as SQL on the columns of a table of chunks; parameters begin at `$first`.

    The text depends on the shape of the filter only, never on its values or the length of an `in`,
    so statements that were prepared once serve again.
    """
    compiler = _Compiler(first)
    sql = compiler.compile(tree, negated=False)
    return Condition(sql, tuple(compiler.values))


class _Compiler:
    def __init__(self, first: int) -> None:
        self._first = first
        self.values: list[Any] = []

    def compile(self, tree: Filter, *, negated: bool) -> Sql:
        match tree:
            case Not(part):
                return self.compile(part, negated=not negated)
            case And(parts):
                return self._group(parts, "OR" if negated else "AND", negated=negated)
            case Or(parts):
                return self._group(parts, "AND" if negated else "OR", negated=negated)
            case Compare() | In():
                bare = self._comparison(tree)
                return compose("({bare} IS NOT TRUE)", bare=bare) if negated else bare

    def _group(self, parts: Sequence[Filter], word: str, *, negated: bool) -> Sql:
        if not parts:
            return Sql("true" if word == "AND" else "false")
        inner = join(f" {word} ", [self.compile(part, negated=negated) for part in parts])
        return compose("({inner})", inner=inner)

    def _comparison(self, tree: Compare | In) -> Sql:
        what = expression(tree.attribute, tree.kind)
        of = Sql(SQL_TYPES[tree.kind])
        if isinstance(tree, In):
            place = self._place(list(tree.values))
            return compose("({what} = ANY({place}::{of}[]))", what=what, place=place, of=of)
        sign = _SQL_OPERATORS[tree.operator]
        place = self._place(tree.value)
        return compose("({what} {sign} {place}::{of})", what=what, sign=sign, place=place, of=of)

    def _place(self, value: Any) -> Sql:
        self.values.append(value)
        return Sql(f"${self._first + len(self.values) - 1}")
