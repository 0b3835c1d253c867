"""What is known of a build before its first byte: held against a server, and told to people."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace

import pytest

from operator_index.place import Place
from operator_index.test_plan import SPEC, VECTOR, plan
from operator_index.worlds import made, with_generation, without
from parts import servers
from parts.servers import make_database
from polaris.spec import Embedding, VectorIndex
from polaris.status import Reason
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.observe import index as observe
from polaris_operator.plan.preflight import graph_bytes, hindrances, index_bytes

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


def test_a_graph_that_does_not_fit_is_told_with_where_it_stops_to_fit() -> None:
    (hindrance,) = hindrances(1_000_000, SPEC, None, concurrently=True)

    assert hindrance.reason == Reason.MEMORY_TOO_SMALL
    needed = graph_bytes(1_000_000, SPEC.embedding, SPEC.index)
    assert f"takes {-(-needed // 2**20)} MiB" in hindrance.message
    assert "maintenanceWorkMem is 256Mi" in hindrance.message
    edge = int(re.findall(r"from the (\d+)th row", hindrance.message)[0])
    assert hindrances(edge, SPEC, None, concurrently=True) == ()
    assert hindrances(edge + 1, SPEC, None, concurrently=True) != ()


def test_only_a_build_beside_writers_waits_for_an_old_transaction() -> None:
    (hindrance,) = hindrances(5, SPEC, "anna (pid 42)", concurrently=True)

    assert hindrance.reason == Reason.OLD_TRANSACTION
    assert "anna (pid 42)" in hindrance.message
    assert hindrances(5, SPEC, "anna (pid 42)", concurrently=False) == ()


def test_what_hinders_a_build_is_said_while_it_is_begun_and_by_warnings() -> None:
    world = without(made(SPEC, rows=5), indexes=(VECTOR,))
    world = replace(world, old_transaction="anna (pid 42)")

    decided = plan(with_generation(world, vector_index=None))

    (step,) = decided.steps
    assert [hindrance.reason for hindrance in step.hindrances] == [Reason.OLD_TRANSACTION]
    assert decided.blocked is not None
    assert decided.blocked.reason == Reason.BUILDING_INDEX
    assert "anna (pid 42)" in decided.blocked.message


@pytest.mark.postgres
def test_a_transaction_that_has_long_been_open_is_seen_and_one_that_builds_is_not(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = here.ready()
    for application, seen in (("report", True), ("polaris-operator/0/build/1/2", False)):
        with closing(servers.connect(here.database.dsn)) as other, other.cursor() as cursor:
            cursor.execute(f"SET application_name = '{application}'; BEGIN; SELECT 1")
            monkeypatch.setattr(observe, "OLD_TRANSACTION_SECONDS", 600)
            assert here.look(key)[2].index.old_transaction is None
            monkeypatch.setattr(observe, "OLD_TRANSACTION_SECONDS", 0)
            assert (application in (here.look(key)[2].index.old_transaction or "")) == seen
