"""The decision how a query is run: exact, through the graph, or through the graph until enough is found.

The service goes by it for each query, and the operator where it measures what such queries find. Pure.
No setting is right for every query: with a filter that keeps 2 % of 100,000 rows the graph alone
found 7 % of the true neighbours, and comparing every row that the filter leaves was right and quicker.

Costs are in compared rows. On 2 cores and 384 dimensions an exact scan took 0.8 µs a row, the graph
7 µs for each of its `ef_search` candidates; with a filter that keeps a share s of the rows it has to
visit `ef_search / s` candidates for the same recall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

EF_MAX = 1000
"""pgvector's largest ef_search."""
EXACT_MAX_ROWS = 100_000
"""Rows that are compared one by one where the graph cannot be searched deep enough: about 0.1 s."""
# Candidates of the graph cost about 9 rows of a scan; exact is taken up to twice the time, as it is right.
_ROWS_PER_CANDIDATE = 16
# The promised recall is that of the top 10; deeper lists need candidates in proportion.
_CANDIDATES_PER_HIT = 2


class Kind(StrEnum):
    """How nearest vectors are found."""

    EXACT = "exact"
    """Every row that the filter leaves is compared."""
    HNSW = "hnsw"
    """The graph, with `ef` candidates."""
    ITERATIVE = "iterative"
    """The graph, going on until enough rows pass the filter."""


class Reason(StrEnum):
    """Why; one for each way through `choose`."""

    NO_VECTOR_INDEX = "NoVectorIndex"
    FEW_ROWS = "FewRows"
    FEW_MATCHES = "FewMatches"
    DEEPER_THAN_GRAPH = "DeeperThanGraph"
    WHOLE_INDEX = "WholeIndex"
    FILTERED = "Filtered"
    TOO_FEW_HITS = "TooFewHits"


@dataclass(frozen=True)
class IndexFacts:
    """What is known of the serving generation."""

    indexed: bool
    """Whether a valid vector index stands there and is used."""
    ef_search: int
    """What keeps the promise of recall, at k = 10."""
    rows: int
    """Estimate of all rows."""


@dataclass(frozen=True)
class Strategy:
    """What is done, and why."""

    kind: Kind
    reason: Reason
    sentence: str
    ef: int | None = None
    """Candidates of the graph; None for exact."""


def choose(facts: IndexFacts, k: int, matches: int | None) -> Strategy:
    """Return how to run a query for k hits; `matches` estimates what the filter leaves, None: no filter."""
    if not facts.indexed:
        return _exact(Reason.NO_VECTOR_INDEX, "no vector index serves this generation")
    rows = max(1, facts.rows)
    left = rows if matches is None else max(1, min(matches, rows))
    wanted = max(facts.ef_search, _CANDIDATES_PER_HIT * k)
    visited = math.ceil(wanted * rows / left)
    if left <= _ROWS_PER_CANDIDATE * visited:
        if matches is None:
            return _exact(Reason.FEW_ROWS, f"about {rows} rows are compared as quickly")
        return _exact(Reason.FEW_MATCHES, f"the filter leaves about {left} of {rows} rows")
    if visited > EF_MAX and left <= EXACT_MAX_ROWS:
        return _exact(
            Reason.DEEPER_THAN_GRAPH,
            f"the graph would need {visited} candidates, and has at most {EF_MAX}",
        )
    ef = min(EF_MAX, visited)
    if matches is None:
        return Strategy(Kind.HNSW, Reason.WHOLE_INDEX, f"about {rows} rows, no filter", ef)
    return Strategy(Kind.ITERATIVE, Reason.FILTERED, f"the filter leaves about {left} of {rows} rows", ef)


def _exact(reason: Reason, sentence: str) -> Strategy:
    return Strategy(Kind.EXACT, reason, sentence)


def after_too_few(tried: Strategy, found: int, k: int) -> Strategy | None:
    """Return what to do when fewer than k hits came: exact once; None where exact has spoken.

    The graph hands out rows that were deleted and not yet vacuumed as candidates, and an iterative
    scan ends after `hnsw.max_scan_tuples`.
    """
    if found >= k or tried.kind == Kind.EXACT:
        return None
    return _exact(Reason.TOO_FEW_HITS, f"{tried.kind} found {found} of {k}")
