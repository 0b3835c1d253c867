from __future__ import annotations

import re
from contextlib import closing

import pytest

from parts import servers
from parts.servers import make_database
from polaris.spec import Embedding, VectorIndex
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.plan.preflight import graph_bytes, index_bytes

ROWS = 2200


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("dimension", "kind", "m"),
    [(8, "halfvec", 16), (32, "halfvec", 8), (128, "vector", 32)],
)
def test_what_a_graph_takes_in_memory_and_on_disk_is_known(
    postgres: LocalPostgres, dimension: int, kind: str, m: int
) -> None:
    embedding = Embedding(model="e5", dimension=dimension, type=kind)
    index = VectorIndex(m=m, ef_construction=64)
    database = make_database(postgres)
    with closing(servers.connect(database.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TABLE t (e {kind}({dimension})); INSERT INTO t"
            " SELECT (SELECT array_agg(random() + 0 * (g + n))"
            f" FROM generate_series(1, {dimension}) g)::real[]::{kind} FROM generate_series(1, {ROWS}) n;"
            "SET max_parallel_maintenance_workers = 0; SET maintenance_work_mem = '1MB'"
        )
        cursor.execute(f"CREATE INDEX i ON t USING hnsw (e {kind}_l2_ops) WITH (m = {m})")
        fitted = re.search(r"after (\d+) tuples", " ".join(connection.notices))
        cursor.execute("SELECT pg_relation_size('i')")
        (size,) = cursor.fetchone() or (0,)
        cursor.execute("DROP TABLE t")
    servers.drop_database(database)

    assert fitted is not None
    assert graph_bytes(int(fitted[1]), embedding, index) == pytest.approx(1 << 20, rel=0.1)
    assert index_bytes(ROWS, embedding, index) == pytest.approx(size, rel=0.1)
