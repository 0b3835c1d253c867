"""Recall of a live index, measured on its own rows against an exact search.

For each vector of a sample, its nearest others are found twice: by comparing every row, and by the
index at some `ef_search`. A row counts as found where it is no farther than the farthest of the exact
ones, so that equal texts, which are equally near, do no harm. The vector itself does not count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from polaris import names
from polaris.errors import DeadlineExceeded
from polaris.sql import Sql, compose, identifier, join, literal
from polaris.telemetry import logger
from polaris_operator.plan.recall import BUDGET_SECONDS, LAST_SECONDS, SAMPLES, Measured, choose
from polaris_operator.postgres import Postgres, run
from polaris_operator.steps import MeasureRecall

log = logger(__name__)

TOP = 10
# Comparing every row takes nearly all of the time.
_EXACT_SHARE = 0.7
# Up to so many rows the sample is drawn from all of them, beyond from some blocks.
_FEW_ROWS = 5000
_BLOCK_SAMPLE_ROWS = 500


@dataclass(frozen=True)
class _Query:
    """A vector of the sample, by its key, and how far its nearest others are."""

    document: int
    ordinal: int
    farthest: float
    found: int


def measure(postgres: Postgres, action: MeasureRecall) -> tuple[Measured, int]:
    """Return what the measurement came to, and how many rows there were by PostgreSQL's estimate.

    It takes at most about BUDGET_SECONDS; what was compared until then counts. Where a statement alone
    takes longer, it is done again with fewer vectors, and the last time with patience.
    """
    rows = 0
    for vectors in SAMPLES:
        seconds = BUDGET_SECONDS if vectors > 1 else LAST_SECONDS
        try:
            with postgres.read() as connection:
                rows = _rows(connection, action)
                return _measure(connection, action, rows, vectors, seconds), rows
        except DeadlineExceeded as error:
            log.info("recall takes long", schema=action.schema, vectors=vectors, error=str(error))
    return Measured(action.ef_search, None), rows


def _measure(
    connection: Connection, action: MeasureRecall, rows: int, vectors: int, seconds: float
) -> Measured:
    began = time.monotonic()
    _set(connection, "statement_timeout", str(int(seconds * 1000)))
    queries: list[_Query] = []
    slowest = 0.0
    for document, ordinal in _sample(connection, action, rows, vectors):
        passed = time.monotonic() - began
        if passed + slowest > seconds * _EXACT_SHARE and queries:
            break
        queries += _exact(connection, action, document, ordinal)
        slowest = max(slowest, time.monotonic() - began - passed)
    wanted = sum(query.found for query in queries)
    if not wanted:
        return Measured(action.ef_search, None)
    # The planner would rather read a small table; the question here is what the index finds.
    _set(connection, "enable_seqscan", "off")

    def by_index(ef_search: int) -> float | None:
        if time.monotonic() - began > seconds:
            return None
        return _found(connection, action, queries, ef_search) / wanted

    return choose(action.target_percent / 100, by_index, action.ef_search, wanted)


def _chunks(action: MeasureRecall) -> Sql:
    return identifier(action.schema, names.chunks_table(action.generation))


def _set(connection: Connection, setting: str, value: str) -> None:
    run(
        connection,
        compose("SELECT set_config({name}, {value}, true)", name=literal(setting), value=literal(value)),
    )


def _rows(connection: Connection, action: MeasureRecall) -> int:
    statement = compose(
        "SELECT CAST(greatest(pg_stat_get_live_tuples(c.oid), c.reltuples, 0) AS bigint)"
        " FROM pg_class c WHERE c.oid = to_regclass({chunks})",
        chunks=literal(_chunks(action)),
    )
    return int(run(connection, statement).scalar() or 0)


def _sample(
    connection: Connection, action: MeasureRecall, rows: int, vectors: int
) -> Sequence[tuple[int, int]]:
    if rows <= _FEW_ROWS:
        return _drawn(connection, action, vectors, Sql(""))
    share = 100 * _BLOCK_SAMPLE_ROWS / rows
    drawn = _drawn(connection, action, vectors, Sql(f" TABLESAMPLE SYSTEM ({share:.6f})"))
    return drawn or _drawn(connection, action, vectors, Sql(""))


def _drawn(
    connection: Connection, action: MeasureRecall, vectors: int, sample: Sql
) -> Sequence[tuple[int, int]]:
    statement = compose(
        "SELECT document_id, ordinal FROM {chunks}{sample} ORDER BY random() LIMIT {limit}",
        chunks=_chunks(action),
        sample=sample,
        limit=vectors,
    )
    return [(row.document_id, row.ordinal) for row in run(connection, statement)]


def _exact(connection: Connection, action: MeasureRecall, document: int, ordinal: int) -> list[_Query]:
    """Return the vector with the distance of its farthest neighbour; [] where it has none."""
    # Adding 0 keeps the index out of it.
    statement = compose(
        "WITH q AS MATERIALIZED"
        " (SELECT embedding FROM {chunks} WHERE document_id = {document} AND ordinal = {ordinal}),"
        " nearest AS (SELECT c.embedding {operator} q.embedding AS distance FROM {chunks} c, q"
        " WHERE NOT (c.document_id = {document} AND c.ordinal = {ordinal})"
        " ORDER BY (c.embedding {operator} q.embedding) + 0 LIMIT {top})"
        " SELECT count(*) AS found, max(distance) AS farthest FROM nearest WHERE distance <> 'NaN'",
        chunks=_chunks(action),
        document=document,
        ordinal=ordinal,
        operator=action.operator,
        top=TOP,
    )
    row = run(connection, statement).one()
    return [_Query(document, ordinal, row.farthest, row.found)] if row.found else []


def _found(connection: Connection, action: MeasureRecall, queries: Sequence[_Query], ef_search: int) -> int:
    """Return how many of the nearest others the index finds, over the whole sample."""
    _set(connection, "hnsw.ef_search", str(ef_search))
    values = join(
        ", ",
        (
            Sql(f"({q.document}, {q.ordinal}, CAST('{q.farthest!r}' AS double precision), {q.found})")
            for q in queries
        ),
    )
    statement = compose(
        "SELECT coalesce(sum(least(s.found, n.found)), 0) FROM (VALUES {values})"
        " s(document_id, ordinal, farthest, found)"
        " JOIN {chunks} q ON q.document_id = s.document_id AND q.ordinal = s.ordinal"
        " CROSS JOIN LATERAL (SELECT count(*) AS found FROM (SELECT c.document_id, c.ordinal,"
        " c.embedding {operator} q.embedding AS distance FROM {chunks} c"
        " ORDER BY c.embedding {operator} q.embedding LIMIT {top}) n"
        " WHERE n.distance <= s.farthest"
        " AND NOT (n.document_id = s.document_id AND n.ordinal = s.ordinal)) n",
        values=values,
        chunks=_chunks(action),
        operator=action.operator,
        top=TOP + 1,
    )
    return int(run(connection, statement).scalar_one())
