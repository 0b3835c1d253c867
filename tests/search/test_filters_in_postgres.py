"""A filter selects in PostgreSQL exactly what it selects in Python, whatever JSON the rows hold."""

from __future__ import annotations

import asyncio
import itertools
import operator
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris.attributes import parse_datetime
from polaris.spec import AttributeType
from polaris.sql import compose
from polaris_service.search.filters import compile_filter, parse
from search.world import Chunk, Document, SearchIndex, World, spec
from soak import times

pytestmark = pytest.mark.postgres

DECLARED = {kind.value[:4]: kind for kind in AttributeType}

# What documents may hold under any name: right types, wrong ones, and what stands at their borders.
STORED: list[Any] = [
    "pt",
    "en",
    "",
    "é",
    "Z",
    "true",
    "3",
    3,
    -3,
    3.0,
    3.5,
    0,
    -0.0,
    2**63 - 1,
    2**63,
    -(2**63),
    1e300,
    1e-300,
    0.1,
    True,
    False,
    None,
    [],
    ["pt"],
    {},
    {"pt": 1},
    "2026-11-22T18:00:00Z",
    "2026-11-22T15:00:00-03:00",
    "2026-11-22T18:00:00.5Z",
    "2026-02-30T00:00:00Z",
    "2026-03-02T00:00:00Z",
    "2026-11-22",
]
ASKED: dict[AttributeType, list[Any]] = {
    AttributeType.KEYWORD: ["pt", "en", "", "é", "A", "true", "3"],
    AttributeType.INTEGER: [3, -3, 0, 1, 2**63 - 1, -(2**63)],
    AttributeType.NUMBER: [3, 3.0, 3.5, 0, 0.1, -1, 1e300, 2**63],
    AttributeType.BOOLEAN: [True, False],
    AttributeType.DATETIME: ["2026-11-22T18:00:00Z", "2026-11-22T19:00:00+01:00", "2026-03-02T00:00:00Z"],
}


def rows() -> list[dict[str, Any]]:
    """Every value under every name once, beside others; and some with little or nothing."""
    random = np.random.default_rng(4)
    made: list[dict[str, Any]] = [{}]
    for name, value in itertools.product(DECLARED, STORED):
        others = {n: STORED[random.integers(len(STORED))] for n in DECLARED if random.random() < 0.6}
        made.append({**others, name: value, "undeclared": value})
    return made


ROWS = rows()


# --- the same logic in Python ---


def as_stored(kind: AttributeType, row: dict[str, Any], name: str) -> Any:
    """The value of a row as an attribute of its declared type; None where it has none."""
    value: Any = row.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case AttributeType.KEYWORD:
            return value if isinstance(value, str) else None
        case AttributeType.INTEGER:
            whole = number and value == int(value) and -(2**63) <= int(value) < 2**63
            return int(value) if whole else None
        case AttributeType.NUMBER:
            return float(value) if number else None
        case AttributeType.BOOLEAN:
            return value if isinstance(value, bool) else None
        case AttributeType.DATETIME:
            return instant(value) if isinstance(value, str) else None


def instant(value: str) -> datetime | None:
    """As polaris.as_datetime has it: the day is added, so that 30 February is 2 March."""
    first = parse_datetime(value[:8] + "01" + value[10:])
    return (
        first + timedelta(days=int(value[8:10]) - 1)
        if first and parse_datetime(value[:8] + "28" + value[10:])
        else None
    )


def ordered(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value  # COLLATE "C"


COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def matches(tree: dict[str, Any], row: dict[str, Any]) -> bool:
    [(word, inner)] = tree.items()
    groups: dict[str, Callable[[], bool]] = {
        "and": lambda: all(matches(part, row) for part in inner),
        "or": lambda: any(matches(part, row) for part in inner),
        "not": lambda: not matches(inner, row),
        "ne": lambda: not matches({"eq": inner}, row),
    }
    return groups[word]() if word in groups else compares(word, inner[0], inner[1], row)


def compares(word: str, name: str, asked: Any, row: dict[str, Any]) -> bool:
    kind = DECLARED[name]
    value = as_stored(kind, row, name)
    if value is None:
        return False
    convert = instant if kind == AttributeType.DATETIME else lambda v: v
    if word == "in":
        return any(value == convert(one) for one in asked)
    return COMPARISONS[word](ordered(value), ordered(convert(asked)))


# --- filters ---


def comparisons() -> st.SearchStrategy[dict[str, Any]]:
    def of(name: str) -> st.SearchStrategy[dict[str, Any]]:
        kind = DECLARED[name]
        values = st.sampled_from(ASKED[kind])
        words = ["eq", "ne"] if kind == AttributeType.BOOLEAN else ["eq", "ne", "gt", "gte", "lt", "lte"]
        one = st.builds(lambda w, v: {w: [name, v]}, st.sampled_from(words), values)
        many = st.builds(lambda v: {"in": [name, v]}, st.lists(values, max_size=4))
        return one | many

    return st.sampled_from(sorted(DECLARED)).flatmap(of)


FILTERS = st.recursive(
    comparisons(),
    lambda inner: (
        st.builds(lambda p: {"and": p}, st.lists(inner, max_size=3))
        | st.builds(lambda p: {"or": p}, st.lists(inner, max_size=3))
        | st.builds(lambda p: {"not": p}, inner)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def made(world: World) -> SearchIndex:
    index = world.make("filters", spec(2, attributes={n: k.value for n, k in DECLARED.items()}))
    vector = np.ones(2, dtype=np.float32)
    world.put(index, (Document(str(n), "text", [Chunk(0, 4, vector)], row) for n, row in enumerate(ROWS)))
    world.execute(f"ANALYZE {index.chunks}")
    return index


@pytest.fixture(scope="module")
def select(world: World, made: SearchIndex) -> Iterator[Callable[[Any], set[int]]]:
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(asyncpg.connect(world.database.dsn))

    def run(tree: Any) -> set[int]:
        condition = compile_filter(parse(tree, DECLARED), first=1)
        text = compose(
            "SELECT c.document_id FROM {chunks} c WHERE {condition}",
            chunks=made.chunks,
            condition=condition.sql,
        )
        found = loop.run_until_complete(connection.fetch(str(text), *condition.values))
        return {record["document_id"] - 1 for record in found}

    try:
        yield run
    finally:
        loop.run_until_complete(connection.close())
        loop.close()


@pytest.mark.soak
@settings(max_examples=times(250, 10_000), deadline=None)
@given(tree=FILTERS)
def test_postgres_selects_what_python_selects(
    select: Callable[[Any], set[int]], tree: dict[str, Any]
) -> None:
    assert select(tree) == {n for n, row in enumerate(ROWS) if matches(tree, row)}


@pytest.mark.soak
@settings(max_examples=times(100, 5_000), deadline=None)
@given(tree=FILTERS)
def test_a_filter_and_its_opposite_share_all_rows_between_them(
    select: Callable[[Any], set[int]], tree: dict[str, Any]
) -> None:
    those, others = select(tree), select({"not": tree})
    assert those | others == set(range(len(ROWS)))
    assert not those & others


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_not_equal_finds_the_rows_without_the_attribute(select: Callable[[Any], set[int]], name: str) -> None:
    assert 0 in select({"ne": [name, ASKED[DECLARED[name]][0]]})


def test_a_bare_comparison_uses_the_index_of_its_attribute(world: World, made: SearchIndex) -> None:
    condition = compile_filter(parse({"eq": ["inte", 3]}, DECLARED), first=1)
    text = compose("SELECT 1 FROM {c} c WHERE {w}", c=made.chunks, w=condition.sql)
    with world.session() as connection, connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        cursor.execute("EXPLAIN " + text.replace("$1", "3"))
        plan = "\n".join(line for (line,) in cursor.fetchall())
    connection.close()
    assert "g1_by_inte_inte" in plan
