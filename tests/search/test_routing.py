"""Which way a query is run: a table, and what holds for all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris.routing import (
    EF_MAX,
    EXACT_MAX_ROWS,
    IndexFacts,
    Kind,
    Reason,
    Strategy,
    after_too_few,
    choose,
)

pytestmark = pytest.mark.unit

TABLE: list[tuple[str, IndexFacts, int, int | None, Kind, Reason, int | None]] = [
    ("no index", IndexFacts(False, 64, 10**6), 10, None, Kind.EXACT, Reason.NO_VECTOR_INDEX, None),
    ("no index, filter", IndexFacts(False, 64, 10**6), 10, 5, Kind.EXACT, Reason.NO_VECTOR_INDEX, None),
    ("empty", IndexFacts(True, 64, 0), 10, None, Kind.EXACT, Reason.FEW_ROWS, None),
    ("few rows", IndexFacts(True, 64, 1000), 10, None, Kind.EXACT, Reason.FEW_ROWS, None),
    ("many rows", IndexFacts(True, 64, 20_000), 10, None, Kind.HNSW, Reason.WHOLE_INDEX, 64),
    ("k beyond ef", IndexFacts(True, 64, 20_000), 100, None, Kind.HNSW, Reason.WHOLE_INDEX, 200),
    ("k = 1000", IndexFacts(True, 64, 90_000), 1000, None, Kind.EXACT, Reason.DEEPER_THAN_GRAPH, None),
    ("k = 1000 of millions", IndexFacts(True, 64, 10**7), 1000, None, Kind.HNSW, Reason.WHOLE_INDEX, 1000),
    ("2 % of 100k", IndexFacts(True, 64, 100_000), 10, 2000, Kind.EXACT, Reason.FEW_MATCHES, None),
    ("none", IndexFacts(True, 64, 100_000), 10, 0, Kind.EXACT, Reason.FEW_MATCHES, None),
    ("half of 100k", IndexFacts(True, 64, 100_000), 10, 50_000, Kind.ITERATIVE, Reason.FILTERED, 128),
    ("all of 100k", IndexFacts(True, 64, 100_000), 10, 200_000, Kind.ITERATIVE, Reason.FILTERED, 64),
    ("5 % of 1M", IndexFacts(True, 64, 10**6), 10, 50_000, Kind.EXACT, Reason.DEEPER_THAN_GRAPH, None),
    ("5 % of 100M", IndexFacts(True, 64, 10**8), 10, 5 * 10**6, Kind.ITERATIVE, Reason.FILTERED, 1000),
]


@pytest.mark.parametrize("row", [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_a_query_is_run_the_way_that_its_figures_ask_for(
    row: tuple[IndexFacts, int, int | None, Kind, Reason, int | None],
) -> None:
    facts, k, matches, kind, reason, ef = row
    strategy = choose(facts, k, matches)
    assert (strategy.kind, strategy.reason, strategy.ef) == (kind, reason, ef)
    assert strategy.sentence


@given(
    rows=st.integers(0, 10**9),
    ef=st.integers(1, EF_MAX),
    k=st.integers(1, 1000),
    matches=st.none() | st.integers(0, 10**9),
)
def test_no_way_of_the_graph_is_chosen_that_cannot_bring_k_hits(
    rows: int, ef: int, k: int, matches: int | None
) -> None:
    strategy = choose(IndexFacts(True, ef, rows), k, matches)
    if strategy.kind == Kind.EXACT:
        assert strategy.ef is None
        return
    assert strategy.ef is not None
    assert max(ef, k) <= strategy.ef <= EF_MAX
    assert (strategy.kind == Kind.ITERATIVE) == (matches is not None)


@given(rows=st.integers(0, EXACT_MAX_ROWS), k=st.integers(1, 1000), matches=st.integers(0, 1000))
def test_what_a_filter_leaves_a_thousand_rows_of_is_compared_row_by_row(
    rows: int, k: int, matches: int
) -> None:
    assert choose(IndexFacts(True, 64, rows), k, matches).kind == Kind.EXACT


def test_exact_has_the_last_word() -> None:
    graph = Strategy(Kind.HNSW, Reason.WHOLE_INDEX, "", 64)
    again = after_too_few(graph, 3, 10)
    assert again is not None
    assert (again.kind, again.reason) == (Kind.EXACT, Reason.TOO_FEW_HITS)
    assert after_too_few(again, 3, 10) is None
    assert after_too_few(graph, 10, 10) is None
