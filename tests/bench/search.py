"""Search over HTTP against the same statement by pgbench and by asyncpg, and the recall of both.

All of them ask the same questions of the same tables, with the ef_search that the operator chose to
keep the promise of the manifest. Rounds are interleaved, and a ratio is made within each round.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench import corpus
from bench.corpus import Corpus
from bench.figures import Figure, Goal, Report, ratios
from bench.load import Asyncpg, Load, PgBench, Target, http
from bench.local import NAMESPACE, BenchError, Local, wait_for
from bench.statement import QUESTIONS, Statement
from bench.timing import Timing
from polaris.routing import Kind
from polaris_service.indexes import FRESH_SECONDS

BENCH = "search"
THROUGHPUT = Goal("≥", 0.5)
LATENCY = Goal("≤", 1.6)
RECALL = Goal("≥", 0.99)
K = 10
CONNECTIONS = 4


@dataclass(frozen=True)
class Sizes:
    """How long and how often."""

    rounds: int
    seconds: float
    """Of each generator in each round."""


def run(local: Local, name: str, documents: Corpus, sizes: Sizes, report: Report) -> None:
    """Measure on an index that holds the documents."""
    path = f"/v1/indexes/{NAMESPACE}/{name}/search"
    _settle(local, name)
    questions = _Questions(local, path, documents)
    statement = questions.statement(name)
    _fill_table(local, documents)
    pgbench = PgBench(local.server, local.database.name, statement.pgbench(documents.queries))
    _check_plan(local, name, statement)
    report.add(
        Figure(BENCH, f"recall@{K} over HTTP", "share", (questions.recall_over_http(),), RECALL),
        Figure(BENCH, f"recall@{K} of bare SQL", "share", (questions.recall_of_sql(statement),), RECALL),
    )
    service = load_of(local, path, documents)
    vectors = local.folder / "questions.npy"
    np.save(vectors, documents.questions)
    asyncpg = Asyncpg(local.database.dsn, statement.text, statement.ef, vectors)
    report.notes.append(
        f"search: {statement.kind}"
        + (f" with ef_search {statement.ef}" if statement.ef else "")
        + f" on both sides, k = {K}; load over HTTP by {service.name}; POLARIS_AUTH=none on the loopback"
    )
    _report(_rounds(service, pgbench, asyncpg, sizes), report)


def load_of(local: Local, path: str, documents: Corpus) -> Load:
    """Return what asks the questions of a corpus over HTTP, as fast as it is answered."""
    bodies = local.folder / "bodies"
    bodies.write_text("".join(f"{body}\n" for body in documents.bodies(K)))
    return http(Target(local.service.host, local.service.port, path, bodies))


# --- what is asked ---------------------------------------------------------------------------------


def _settle(local: Local, name: str) -> None:
    """Wait until the operator has chosen ef_search; have autovacuum's work done, for both sides."""
    row = local.catalog_row(name)
    if row is None:
        raise BenchError(f"there is no index {name}")
    schema = row["schema_name"]
    with local.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema])
        for (table,) in cursor.fetchall():
            cursor.execute(f'VACUUM (ANALYZE) "{schema}"."{table}"')
    rows = local.service.ask("GET", f"/v1/indexes/{NAMESPACE}/{name}")[1]["chunks"]

    def measured() -> bool:
        now = local.catalog_row(name)
        return bool(now and now["recall_at"] and now["recall_rows"] >= 0.9 * rows)

    wait_for("the operator to measure recall", measured)
    time.sleep(2 * FRESH_SECONDS)  # The service asks the catalog once in so long what ef_search is.


class _Questions:
    """The questions of a corpus, asked once each."""

    def __init__(self, local: Local, path: str, documents: Corpus) -> None:
        self._local, self._path, self._documents = local, path, documents
        self._nearest = documents.nearest(K)

    def statement(self, name: str) -> Statement:
        """Return the statement that the service runs, by what it says of itself."""
        body = {"vector": self._documents.questions[0].tolist(), "k": K, "explain": True}
        status, answer = self._local.service.ask("POST", self._path, body)
        row = self._local.catalog_row(name)
        if status != 200 or row is None:
            raise BenchError(f"a search was answered with {status}: {answer}")
        ran = answer["explain"]["tried"][-1]
        return Statement.of(row, Kind(ran["strategy"]), ran["ef"], K)

    def recall_over_http(self) -> float:
        """Ask all over HTTP."""
        found = []
        for vector in self._documents.questions:
            status, answer = self._local.service.ask("POST", self._path, {"vector": vector.tolist(), "k": K})
            if status != 200:
                raise BenchError(f"a search was answered with {status}: {answer}")
            found.append([corpus.number(hit["document"]) for hit in answer["hits"]])
        return corpus.recall(found, self._nearest)

    def recall_of_sql(self, statement: Statement) -> float:
        """Ask all with the statement of pgbench."""
        found = []
        with self._local.cursor() as cursor:
            for number in range(self._documents.queries):
                cursor.execute(statement.drawing(str(number)))
                found.append([corpus.number(row[0]) for row in cursor.fetchall()])
        return corpus.recall(found, self._nearest)


def _fill_table(local: Local, documents: Corpus) -> None:
    lines = (
        f"{number}\t[{','.join(map(str, vector.tolist()))}]\n"
        for number, vector in enumerate(documents.questions)
    )
    with local.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {QUESTIONS}")
        cursor.execute(
            f"CREATE TABLE {QUESTIONS}"
            f" (number int PRIMARY KEY, vector halfvec({corpus.DIMENSION}) STORAGE PLAIN)"
        )
        cursor.copy_expert(f"COPY {QUESTIONS} FROM STDIN", io.StringIO("".join(lines)))
        cursor.execute(f"VACUUM (ANALYZE) {QUESTIONS}")


def _check_plan(local: Local, name: str, statement: Statement) -> None:
    """Make sure that the baseline is what it says: that it goes through the vector index."""
    if statement.kind == Kind.EXACT:
        return
    row = local.catalog_row(name)
    with local.cursor() as cursor:
        cursor.execute(f"EXPLAIN {statement.drawing('0')}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    if row is None or row["vector_index"] not in plan:
        raise BenchError(f"the bare statement does not use the vector index:\n{plan}")


# --- rounds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Round:
    pgbench_many: Timing
    service_many: Timing
    pgbench_one: Timing
    service_one: Timing
    asyncpg_one: Timing


def _rounds(service: Load, pgbench: Load, asyncpg: Load, sizes: Sizes) -> list[_Round]:
    # What is cached and prepared once is so for all of them.
    for load, connections in ((pgbench, CONNECTIONS), (service, CONNECTIONS), (asyncpg, 1)):
        load.run(connections, min(2.0, sizes.seconds))
    return [
        _Round(
            pgbench.run(CONNECTIONS, sizes.seconds),
            service.run(CONNECTIONS, sizes.seconds),
            pgbench.run(1, sizes.seconds),
            service.run(1, sizes.seconds),
            asyncpg.run(1, sizes.seconds),
        )
        for _ in range(sizes.rounds)
    ]


def _report(rounds: Sequence[_Round], report: Report) -> None:
    def figures(name: str, unit: str, samples: Sequence[float], goal: Goal | None = None) -> Figure:
        return Figure(BENCH, name, unit, tuple(samples), goal)

    def throughput(of: str) -> list[float]:
        return [getattr(each, of).per_second for each in rounds]

    def p50(of: str) -> list[float]:
        return [getattr(each, of).p50_ms for each in rounds]

    def p99(of: str) -> list[float]:
        return [getattr(each, of).p99_ms for each in rounds]

    many = f"{CONNECTIONS} connections"
    report.add(
        figures(f"{many}: pgbench", "1/s", throughput("pgbench_many")),
        figures(f"{many}: POLARIS", "1/s", throughput("service_many")),
        figures(
            f"{many}: throughput, POLARIS / pgbench",
            "ratio",
            ratios(throughput("service_many"), throughput("pgbench_many")),
            THROUGHPUT,
        ),
        figures(f"{many}: p99 of pgbench", "ms", p99("pgbench_many")),
        figures(f"{many}: p99 of POLARIS", "ms", p99("service_many")),
        figures("1 connection: p50 of pgbench", "ms", p50("pgbench_one")),
        figures("1 connection: p50 of asyncpg", "ms", p50("asyncpg_one")),
        figures("1 connection: p50 of POLARIS", "ms", p50("service_one")),
        figures(
            "1 connection: p50, POLARIS / pgbench",
            "ratio",
            ratios(p50("service_one"), p50("pgbench_one")),
            LATENCY,
        ),
        figures(
            "1 connection: p50, POLARIS / asyncpg",
            "ratio",
            ratios(p50("service_one"), p50("asyncpg_one")),
            LATENCY,
        ),
    )


__all__ = ["Sizes", "load_of", "run"]
