"""Migrations on real servers: they lead to the declared schema, up and down, once, and offline too."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, Engine, NullPool, create_engine, inspect, make_url, text

import polaris
import polaris_migrations
from parts.servers import Database
from polaris import layout
from polaris.attributes import expression
from polaris.catalog import Base
from polaris.errors import Conflict, Unsupported
from polaris.names import CATALOG_SCHEMA
from polaris.spec import Attribute, AttributeType, Embedding, Metric, VectorIndex, VectorType
from polaris.sql import compose, literal
from polaris_cli.up.postgres import LocalPostgres

pytestmark = pytest.mark.postgres


@pytest.fixture
def engine(
    vector_postgres: LocalPostgres, fresh_database: Callable[[LocalPostgres], Database]
) -> Iterator[Engine]:
    """A database with nothing in it but pgvector, on each server in turn."""
    url = make_url(fresh_database(vector_postgres).dsn).set(drivername="postgresql+psycopg2")
    made = create_engine(url, poolclass=NullPool)
    yield made
    made.dispose()


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(
        connection,
        opts={
            "version_table_schema": CATALOG_SCHEMA,
            "include_schemas": True,
            "include_name": lambda name, kind, _: kind != "schema" or name == CATALOG_SCHEMA,
            "compare_server_default": True,
        },
    )
    return list(compare_metadata(context, Base.metadata))


def test_migrations_lead_to_exactly_the_declared_schema(engine: Engine) -> None:
    with engine.begin() as connection:
        polaris_migrations.upgrade(connection)
        assert polaris_migrations.current_revision(connection) == polaris_migrations.HEAD
        assert _differences(connection) == []
        # Alembic does not compare check constraints.
        declared = {
            str(constraint.name)
            for table in Base.metadata.tables.values()
            for constraint in table.constraints
            if isinstance(constraint, CheckConstraint)
        }
        found = connection.execute(
            text(
                "SELECT conname FROM pg_constraint WHERE contype='c' AND connamespace='polaris'::regnamespace"
            )
        )
        assert set(found.scalars()) == declared


def test_the_catalog_says_which_migration_was_the_last(engine: Engine) -> None:
    known = sorted(revision for revision in polaris_migrations.known_revisions() if revision)
    assert int(known[-1]) == polaris.CATALOG_LEVEL
    for revision in known[1:]:  # The first one did not say so yet.
        with engine.begin() as connection:
            polaris_migrations.upgrade(connection, revision)
            assert connection.execute(text("SELECT level FROM polaris.catalog")).scalar_one() == int(revision)


def test_every_migration_goes_down_again_and_leaves_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        polaris_migrations.upgrade(connection)
        polaris_migrations.downgrade(connection, "base")
        assert set(inspect(connection).get_table_names(CATALOG_SCHEMA)) <= {"alembic_version"}
        polaris_migrations.upgrade(connection)
        assert _differences(connection) == []


@pytest.mark.parametrize(
    ("runs", "who"),
    [
        (
            (
                "INSERT INTO polaris.installations (id, name, heartbeat_at)"
                " VALUES (gen_random_uuid(), 'here', now() - interval '{} seconds')"
            ),
            "the operator of here",
        ),
        (
            (
                "INSERT INTO polaris.consumers"
                " (id, kind, username, epoch, version, catalog_level, reported_at)"
                " VALUES ('pod-1', 'worker', 'x', 1, '0.1', 1, now() - interval '{} seconds')"
            ),
            "worker pod-1 (POLARIS 0.1, level 1)",
        ),
    ],
)
def test_nothing_goes_down_while_code_runs_that_needs_it(engine: Engine, runs: str, who: str) -> None:
    with engine.begin() as connection:
        polaris_migrations.upgrade(connection)
        connection.execute(text(runs.format(1)))
    with pytest.raises(Conflict, match=re.escape(who)), engine.begin() as connection:
        polaris_migrations.downgrade(connection, "base")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM polaris.installations; DELETE FROM polaris.consumers"))
        connection.execute(text(runs.format(300)))
        polaris_migrations.downgrade(connection, "base")
        assert polaris_migrations.current_revision(connection) is None


def test_the_sql_for_administrators_leads_to_the_same(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        raw = connection.connection.cursor()
        raw.execute(polaris_migrations.offline_sql())
        assert _differences(connection) == []
        assert polaris_migrations.current_revision(connection) == polaris_migrations.HEAD


def test_two_operators_that_start_together_migrate_once(engine: Engine) -> None:
    ids: list[str] = []
    ready = threading.Barrier(4)

    def migrate() -> None:
        ready.wait()
        with engine.begin() as connection:
            polaris_migrations.upgrade(connection)
            ids.append(connection.execute(text("SELECT id FROM polaris.catalog")).scalar_one())

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4
    assert len(set(ids)) == 1


def test_two_databases_are_migrated_at_the_same_time_each_its_own(
    vector_postgres: LocalPostgres, fresh_database: Callable[[LocalPostgres], Database]
) -> None:
    urls = [make_url(fresh_database(vector_postgres).dsn) for _ in range(3)]
    engines = [create_engine(url.set(drivername="postgresql+psycopg2"), poolclass=NullPool) for url in urls]
    ready = threading.Barrier(len(engines))

    def migrate(engine: Engine) -> str:
        ready.wait()
        with engine.begin() as connection:
            polaris_migrations.upgrade(connection)
            return str(connection.execute(text("SELECT id FROM polaris.catalog")).scalar_one())

    with ThreadPoolExecutor() as threads:
        assert len(set(threads.map(migrate, engines))) == len(engines)
    for engine in engines:
        with engine.begin() as connection:
            assert _differences(connection) == []
        engine.dispose()


def test_code_that_is_too_old_is_refused_and_told_both_levels(engine: Engine) -> None:
    with engine.begin() as connection:
        polaris_migrations.upgrade(connection)
        polaris_migrations.check_code(connection)
        connection.execute(text("UPDATE polaris.catalog SET oldest_code = 7"))
        with pytest.raises(Unsupported, match=rf"level {polaris.CATALOG_LEVEL}\).*level 7 or newer"):
            polaris_migrations.check_code(connection)


def test_a_catalog_of_a_newer_version_is_left_as_it_is(engine: Engine) -> None:
    with engine.begin() as connection:
        polaris_migrations.upgrade(connection)
        connection.execute(text("UPDATE polaris.alembic_version SET version_num = '9999'"))
        polaris_migrations.upgrade(connection)
        assert polaris_migrations.current_revision(connection) == "9999"


# --- the layout that stands on it


@pytest.mark.parametrize("kind", VectorType)
@pytest.mark.parametrize("metric", Metric)
def test_the_layout_of_an_index_can_be_made(engine: Engine, kind: VectorType, metric: Metric) -> None:
    embedding = Embedding(model="m", dimension=8, type=kind, metric=metric)
    index = layout.vector_index(1, embedding, VectorIndex())
    assert index is not None
    tables = (
        layout.STORED_DOCUMENTS,
        layout.STORED_VERSIONS,
        layout.CLOCK,
        layout.chunks(1, embedding),
        layout.applied(1),
    )
    with engine.begin() as connection:
        polaris_migrations.upgrade(connection)
        connection.execute(text("CREATE SCHEMA x"))
        for table in tables:
            connection.exec_driver_sql(table.create("x"))
        connection.exec_driver_sql(layout.set_embedding_storage("x", 1, embedding))
        connection.exec_driver_sql(index.create("x"))
        connection.exec_driver_sql(layout.documents_view("x"))
        connection.exec_driver_sql(layout.chunks_view("x", 1))
        for table in tables:
            rows = connection.execute(
                text(
                    "SELECT attname, format_type(atttypid, atttypmod) AS type, attnotnull"
                    " FROM pg_attribute"
                    " WHERE attrelid = to_regclass(:table) AND attnum > 0 ORDER BY attnum"
                ),
                {"table": f"x.{table.name}"},
            )
            key = set(table.primary_key)
            assert [(r.attname, r.type, r.attnotnull) for r in rows] == [
                (c.name, c.type, c.not_null or c.name in key) for c in table.columns
            ]


# Longer than a btree takes, and it does not compress.
_LONG = '"' + "".join(hashlib.sha256(bytes([n])).hexdigest() for n in range(80)) + '"'
# JSON takes them; double precision ends at 1.8e308 and begins at 4.9e-324.
_BEYOND = ["1e400", "-1e400", "1e-400", "-1e-400", "9" * 2000, "1.7976931348623159e308"]
_AT_THE_BORDER = ["1.7976931348623157e308", "-1.7976931348623157e308", "5e-324", "-5e-324", "0", "0e-400"]
VALUES = [
    _LONG,
    *_BEYOND,
    *_AT_THE_BORDER,
    '"pt"',
    '""',
    "3",
    "3.5",
    "-9223372036854775808",
    "9223372036854775808",
    "1e30",
    "true",
    "null",
    '[1, "a"]',
    '{"a": 1}',
    '"2026-11-22T18:00:00Z"',
    '"2026-11-22T15:00:00-03:00"',
    '"2026-02-31T00:00:00Z"',
    '"9999-12-31T23:59:59Z"',
    '"2026-11-22"',
    '"1e400"',
]


@pytest.mark.parametrize("kind", AttributeType)
def test_an_attribute_can_be_declared_whatever_was_stored_under_its_name(
    engine: Engine, kind: AttributeType
) -> None:
    embedding = Embedding(model="m", dimension=2)
    with engine.begin() as connection:
        polaris_migrations.upgrade(connection)
        connection.execute(text("CREATE SCHEMA x"))
        connection.exec_driver_sql(layout.chunks(1, embedding).create("x"))
        for number, value in enumerate(VALUES):
            attributes = literal('{"it": ' + value + "}")
            connection.exec_driver_sql(
                compose(
                    "INSERT INTO x.g1_chunks VALUES ({n}, 1, 0, 0, 1, '', {attributes}, '[1,2]')",
                    n=number,
                    attributes=attributes,
                )
            )
        index = layout.attribute_index(1, Attribute(name="it", type=kind))
        connection.exec_driver_sql(index.create("x"))
        found = connection.exec_driver_sql(
            compose(
                "SELECT document_id FROM x.g1_chunks WHERE {value} IS NOT NULL ORDER BY 1",
                value=expression("it", kind),
            )
        )
        taken = [VALUES[row.document_id] for row in found]
        # A filter computes it for each row too, whatever the planner does first.
        connection.exec_driver_sql("SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off")
        rows = connection.exec_driver_sql(
            compose("SELECT {value} AS value FROM x.g1_chunks ORDER BY 1", value=expression("it", kind))
        ).all()
        assert len(rows) == len(VALUES)
    assert taken == [value for value in VALUES if value in _TAKEN[kind]]


_DATES = [
    '"2026-11-22T18:00:00Z"',
    '"2026-11-22T15:00:00-03:00"',
    '"2026-02-31T00:00:00Z"',
    '"9999-12-31T23:59:59Z"',
]
_NUMBERS = ["3", "3.5", "-9223372036854775808", "9223372036854775808", "1e30"]
_TAKEN = {
    AttributeType.KEYWORD: [value for value in VALUES if value.startswith('"') and value != _LONG],
    AttributeType.INTEGER: ["0", "0e-400", "3", "-9223372036854775808"],
    AttributeType.NUMBER: [*_AT_THE_BORDER, *_NUMBERS],
    AttributeType.BOOLEAN: ["true"],
    AttributeType.DATETIME: _DATES,
}


def test_one_instant_written_with_two_offsets_is_one_instant(engine: Engine) -> None:
    with engine.begin() as connection:
        polaris_migrations.upgrade(connection)
        same = connection.execute(
            text(
                "SELECT polaris.as_datetime('\"2026-11-22T18:00:00Z\"')"
                " = polaris.as_datetime('\"2026-11-22T15:00:00-03:00\"')"
            )
        ).scalar_one()
    assert same is True
