"""Recall of a live index, measured against an exact search: by its own rows, by questions, with filters.

For each vector of a sample, its nearest others are found twice: by comparing every row, and as the service
would find them at some `ef_search` (`polaris.routing`). A row counts as found where it is no farther than the
farthest of the exact ones, so that equal texts, which are equally near, do no harm. A row is not its own
neighbour.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from polaris import names, routing
from polaris.catalog import QUERY_VECTORS
from polaris.errors import DeadlineExceeded
from polaris.layout import DISTANCE_OPERATOR
from polaris.sql import Sql, compose, identifier, join, literal
from polaris.telemetry import logger
from polaris_operator.plan.estimate import Estimate, estimated
from polaris_operator.plan.filters import Restriction, choose_filters
from polaris_operator.plan.recall import BUDGET_SECONDS, LAST_SECONDS, SAMPLES, Measured, choose
from polaris_operator.postgres import Postgres, run
from polaris_operator.steps import MeasureRecall
from polaris_operator.world.index import ClassRecall, RecallDetails

log = logger(__name__)

TOP = 10
# Comparing every row takes nearly all of the time: until when rows, questions and filters may take it.
_ROWS_SHARE, _QUESTIONS_SHARE, _EXACT_SHARE = 0.35, 0.5, 0.7
# Up to so many rows the sample is drawn from all of them, beyond from some blocks: many, as what came in
# together stands together, and may be found better or worse than the rest.
_FEW_ROWS = 20_000
_BLOCK_SAMPLE_ROWS = 10_000
_WITH_FILTER = 64
"""Vectors that are looked for with a filter."""
_ATTRIBUTES = 1000
"""Rows whose attributes are looked at for filters."""
_QUESTION = -1
"""In place of the ordinal of a chunk: that it is a question."""


@dataclass(frozen=True)
class _Query:
    """A vector of the sample, by its key, and how far its nearest others are."""

    document: int
    """Or the slot of a question."""
    ordinal: int
    farthest: float
    found: int


@dataclass
class _Way:
    """One way to ask, with the vectors that were compared with every row."""

    name: str
    source: Sql
    """A query of (document_id, ordinal, embedding)."""
    filter: Restriction | None = None
    queries: list[_Query] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        return sum(query.found for query in self.queries)

    @property
    def where(self) -> Sql:
        return Sql("true") if self.filter is None else self.filter.sql


def measure(postgres: Postgres, action: MeasureRecall) -> Measured:
    """Return what the measurement came to.

    It takes at most about BUDGET_SECONDS; what was compared until then counts. Where a statement alone
    takes longer, it is done again with fewer vectors, and the last time with patience.
    """
    began = time.monotonic()
    rows = writes = 0
    for vectors in SAMPLES:
        seconds = BUDGET_SECONDS if vectors > 1 else LAST_SECONDS
        try:
            with postgres.read() as connection:
                rows, writes = _counts(connection, action)
                return _Measurement(connection, action, rows, writes, seconds).done(vectors)
        except DeadlineExceeded as error:
            log.info("recall takes long", schema=action.schema, vectors=vectors, error=str(error))
    return Measured(action.ef_search, rows, RecallDetails(time.monotonic() - began, writes, 0, ()))


def _counts(connection: Connection, action: MeasureRecall) -> tuple[int, int]:
    """Return rows, and rows written or deleted since PostgreSQL began to count."""
    statement = compose(
        "SELECT CAST(greatest(pg_stat_get_live_tuples(c.oid), c.reltuples, 0) AS bigint) AS rows,"
        " pg_stat_get_tuples_inserted(c.oid) + pg_stat_get_tuples_updated(c.oid)"
        " + pg_stat_get_tuples_deleted(c.oid) AS writes"
        " FROM pg_class c WHERE c.oid = to_regclass({chunks})",
        chunks=literal(_chunks(action)),
    )
    row = run(connection, statement).one_or_none()
    return (0, 0) if row is None else (int(row.rows), int(row.writes))


def _chunks(action: MeasureRecall) -> Sql:
    return identifier(action.schema, names.chunks_table(action.generation))


class _Measurement:
    """One attempt, in one transaction."""

    def __init__(
        self, connection: Connection, action: MeasureRecall, rows: int, writes: int, seconds: float
    ) -> None:
        self._connection = connection
        self._action = action
        self._rows = rows
        self._writes = writes
        self._seconds = seconds
        self._began = time.monotonic()
        self._slowest = 0.0
        self._chunks = _chunks(action)
        self._operator = DISTANCE_OPERATOR[action.embedding.metric]

    def done(self, vectors: int) -> Measured:
        """Return what it comes to with so many vectors, or as many as there is time for."""
        action = self._action
        self._set("statement_timeout", str(int(self._seconds * 1000)))
        sample = self._sample(vectors)
        questions = self._questions()
        ways = self._ways(sample, questions[:vectors])
        # The planner would rather read a small table, or use another index: what this one finds is asked.
        for setting in ("enable_seqscan", "enable_sort", "enable_bitmapscan"):
            self._set(setting, "off")
        by_name = {way.name: way for way in ways if way.wanted}
        ef_search, found = choose(
            action.target_percent / 100,
            {name: way.wanted for name, way in by_name.items()},
            lambda name, ef_search: self._estimate(by_name[name], ef_search),
            action.ef_search,
        )
        classes = [
            _class(by_name[name], estimate)
            for name, estimate in found.items()
            if not self._is_exact(by_name[name], ef_search)
        ]
        took = round(time.monotonic() - self._began, 3)
        details = RecallDetails(took, self._writes, len(questions), tuple(classes))
        return Measured(ef_search, self._rows, details)

    # Ways to ask

    def _ways(self, sample: Sequence[tuple[int, int]], questions: Sequence[tuple[int, int]]) -> list[_Way]:
        rows = _Way("rows", compose("SELECT document_id, ordinal, embedding FROM {c}", c=self._chunks))
        self._look(rows, sample, _ROWS_SHARE)
        asked = _Way("questions", self._asked())
        self._look(asked, questions, _QUESTIONS_SHARE)
        filtered = list(self._filtered(rows.source))
        for place, way in enumerate(filtered, start=1):
            share = _QUESTIONS_SHARE + (_EXACT_SHARE - _QUESTIONS_SHARE) * place / len(filtered)
            self._look(way, sample[:_WITH_FILTER], share)
        return [rows, asked, *filtered]

    def _filtered(self, source: Sql) -> Iterator[_Way]:
        """Yield the filters with which the graph is used at all, at this size."""
        if not self._action.attributes:
            return
        statement = compose(
            "SELECT attributes FROM {c}{block} LIMIT {limit}",
            c=self._chunks,
            block=self._block(_ATTRIBUTES),
            limit=_ATTRIBUTES,
        )
        found = [row.attributes for row in run(self._connection, statement)]
        sample = [json.loads(one) if isinstance(one, str) else one for one in found]
        for name, restriction in choose_filters(self._action.attributes, sample).items():
            way = _Way(name, source, restriction)
            if not self._is_exact(way, self._action.ef_search):
                yield way

    def _strategy(self, way: _Way, ef_search: int) -> routing.Strategy:
        facts = routing.IndexFacts(indexed=True, ef_search=ef_search, rows=self._rows)
        matches = None if way.filter is None else int(way.filter.share * self._rows)
        return routing.choose(facts, TOP, matches)

    def _is_exact(self, way: _Way, ef_search: int) -> bool:
        """Whether the service compares every row that such a filter leaves."""
        return way.filter is not None and self._strategy(way, ef_search).kind == routing.Kind.EXACT

    # The sample

    def _sample(self, vectors: int) -> Sequence[tuple[int, int]]:
        drawn = self._drawn(vectors, self._block(_BLOCK_SAMPLE_ROWS))
        return drawn or self._drawn(vectors, Sql(""))

    def _block(self, rows: int) -> Sql:
        if self._rows <= _FEW_ROWS:
            return Sql("")
        return Sql(f" TABLESAMPLE SYSTEM ({100 * rows / self._rows:.6f})")

    def _drawn(self, vectors: int, block: Sql) -> Sequence[tuple[int, int]]:
        statement = compose(
            "SELECT document_id, ordinal FROM {chunks}{block} ORDER BY random() LIMIT {limit}",
            chunks=self._chunks,
            block=block,
            limit=vectors,
        )
        return [(row.document_id, row.ordinal) for row in run(self._connection, statement)]

    def _asked(self) -> Sql:
        embedding = self._action.embedding
        return compose(
            "SELECT slot AS document_id, {question} AS ordinal,"
            " CAST(vector AS {type}({dimension})) AS embedding FROM polaris.query_vectors"
            " WHERE index_id = {index} AND generation = {generation} AND cardinality(vector) = {dimension}",
            question=_QUESTION,
            type=identifier(embedding.type.value),
            dimension=embedding.dimension,
            index=self._action.index,
            generation=self._action.generation,
        )

    def _questions(self) -> Sequence[tuple[int, int]]:
        statement = compose(
            "SELECT document_id, ordinal FROM ({asked}) q ORDER BY random() LIMIT {limit}",
            asked=self._asked(),
            limit=QUERY_VECTORS,
        )
        return [(row.document_id, row.ordinal) for row in run(self._connection, statement)]

    # Comparing every row

    def _look(self, way: _Way, keys: Sequence[tuple[int, int]], share: float) -> None:
        for document, ordinal in keys:
            passed = self._passed()
            if passed + self._slowest > self._seconds * share and (way.queries or way.name != "rows"):
                return
            way.queries += self._exact(way, document, ordinal)
            self._slowest = max(self._slowest, self._passed() - passed)

    def _passed(self) -> float:
        return time.monotonic() - self._began

    def _exact(self, way: _Way, document: int, ordinal: int) -> list[_Query]:
        """Return the vector with the distance of its farthest neighbour; [] where it has none."""
        # Adding 0 keeps the index out of it.
        statement = compose(
            "WITH q AS MATERIALIZED (SELECT s.embedding FROM ({source}) s"
            " WHERE s.document_id = {document} AND s.ordinal = {ordinal}),"
            " nearest AS (SELECT c.embedding {operator} q.embedding AS distance FROM {chunks} c, q"
            " WHERE NOT (c.document_id = {document} AND c.ordinal = {ordinal}) AND {where}"
            " ORDER BY (c.embedding {operator} q.embedding) + 0 LIMIT {top})"
            " SELECT count(*) AS found, max(distance) AS farthest FROM nearest WHERE distance <> 'NaN'",
            source=way.source,
            chunks=self._chunks,
            document=document,
            ordinal=ordinal,
            operator=self._operator,
            where=way.where,
            top=TOP,
        )
        row = run(self._connection, statement).one()
        return [_Query(document, ordinal, row.farthest, row.found)] if row.found else []

    # As the service finds them

    def _estimate(self, way: _Way, ef_search: int) -> Estimate | None:
        wanted = [query.found for query in way.queries]
        if self._is_exact(way, ef_search):
            return estimated(wanted, wanted)
        if self._passed() > self._seconds:
            return None
        strategy = self._strategy(way, ef_search)
        # An index that is small enough is not used for all rows, but it is what the promise is about.
        ef = ef_search if way.filter is None else strategy.ef or ef_search
        self._set("hnsw.iterative_scan", "off" if way.filter is None else "relaxed_order")
        return estimated(self._found(way, ef), wanted)

    def _found(self, way: _Way, ef_search: int) -> list[int]:
        """Return how many of its nearest others each vector finds.

        That is all of them where so few come that the service looks again, through every row.
        """
        self._set("hnsw.ef_search", str(ef_search))
        values = join(
            ", ",
            (
                Sql(f"({n}, {q.document}, {q.ordinal}, CAST('{q.farthest!r}' AS float8), {q.found})")
                for n, q in enumerate(way.queries)
            ),
        )
        statement = compose(
            "SELECT CASE WHEN n.came < s.found THEN s.found ELSE least(s.found, n.found) END AS found"
            " FROM (VALUES {values}) s(place, document_id, ordinal, farthest, found)"
            " JOIN ({source}) q ON q.document_id = s.document_id AND q.ordinal = s.ordinal"
            " CROSS JOIN LATERAL (SELECT count(*) AS came, count(*) FILTER (WHERE n.distance <= s.farthest"
            " AND NOT (n.document_id = s.document_id AND n.ordinal = s.ordinal)) AS found"
            " FROM (SELECT c.document_id, c.ordinal, c.embedding {operator} q.embedding AS distance"
            " FROM {chunks} c WHERE {where} ORDER BY c.embedding {operator} q.embedding LIMIT {top}) n) n"
            " ORDER BY s.place",
            values=values,
            source=way.source,
            chunks=self._chunks,
            operator=self._operator,
            where=way.where,
            top=TOP + 1,
        )
        return [int(row.found) for row in run(self._connection, statement)]

    def _set(self, setting: str, value: str) -> None:
        statement = compose(
            "SELECT set_config({name}, {value}, true)", name=literal(setting), value=literal(value)
        )
        run(self._connection, statement)


def _class(way: _Way, estimate: Estimate) -> ClassRecall:
    return ClassRecall(
        of=way.name,
        vectors=len(way.queries),
        recall=round(estimate.recall, 6),
        low=round(estimate.low, 6),
        high=round(estimate.high, 6),
        attribute=way.filter.attribute if way.filter else None,
        share=round(way.filter.share, 4) if way.filter else None,
    )
