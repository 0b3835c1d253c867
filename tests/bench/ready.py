"""From `apply` of an empty index to Ready, on a real API server, with the operator as a process.

The clock starts before the request that makes the object (kubectl's own start is not counted) and ends
when a watch says Ready. Beside it, in the same round: the same schema, tables and vector index made by
hand in one session.
"""

from __future__ import annotations

import time
from contextlib import closing

from bench.cluster import NAMESPACE, Clustered, is_ready
from bench.figures import Figure, Goal, Report, ratios
from bench.local import BenchError, index_manifest
from parts.servers import connect
from polaris import layout
from polaris.spec import PolarisIndexSpec, parse_spec

BENCH = "ready"
GOAL = Goal("≤", 2.0)


def run(system: Clustered, repetitions: int, report: Report) -> None:
    """Measure, one index after the other."""
    ours, bare = [], []
    for number in range(repetitions):
        bare.append(_by_hand(system, number))
        ours.append(_apply(system, f"ready-{number}"))
    system.delete_indexes()
    report.add(
        Figure(BENCH, "by hand: schema, tables, vector index", "s", tuple(bare)),
        Figure(BENCH, "POLARIS: apply to Ready", "s", tuple(ours), GOAL, by_most=True),
        Figure(BENCH, "POLARIS / by hand", "ratio", ratios(ours, bare)),
    )


def _by_hand(system: Clustered, number: int) -> float:
    spec = parse_spec(PolarisIndexSpec, index_manifest("bare", NAMESPACE)["spec"])
    schema = f"bare_{number}"
    index = layout.vector_index(1, spec.embedding, spec.index)
    statements = [
        f"CREATE SCHEMA {schema}",
        *(
            table.create(schema)
            for table in (
                layout.STORED_DOCUMENTS,
                layout.STORED_VERSIONS,
                layout.CLOCK,
                layout.chunks(1, spec.embedding),
                layout.applied(1),
            )
        ),
        layout.DOCUMENTS_BY_SEQUENCE.create(schema),
        *([index.create(schema)] if index else []),
        layout.documents_view(schema),
        layout.chunks_view(schema, 1),
    ]
    with closing(connect(system.database.dsn)) as connection, connection.cursor() as cursor:
        begun = time.perf_counter()
        for statement in statements:
            cursor.execute(statement)
        took = time.perf_counter() - begun
        cursor.execute(f"DROP SCHEMA {schema} CASCADE")
    return took


def _apply(system: Clustered, name: str) -> float:
    begun = time.perf_counter()
    with system.applied(index_manifest(name, NAMESPACE)) as versions:
        for version in versions:
            if is_ready(version):
                return time.perf_counter() - begun
    raise BenchError(f"the watch of {name} ended before it was Ready")
