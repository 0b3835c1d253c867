"""An index that somebody damaged: that is seen at the next look at the catalogs, and mended or told.

A look is what the database's pass does once in `resync_seconds` (60 by default): `go(MAIN)`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from operator_index.place import MAIN, Place, said_of
from polaris.routing import Kind
from polaris.status import Reason
from polaris_operator.objects import Key
from polaris_service.search.statements import Shape, search
from soak import times

pytestmark = pytest.mark.postgres


@dataclass(frozen=True)
class Drift:
    """One kind of damage: how it is done, what is said of it, and what a person then does."""

    harm: str
    stalled: Reason | None = None
    """None: it is repaired by itself."""
    told: str = ""
    """Words of the message."""
    remedy: str = ""
    of: Key | None = None
    """The object that says so; None: the index itself."""
    whole: bool = True
    """Whether all is as it was afterwards, to the last column."""


_OTHER_GRAPH = (
    "DROP INDEX {s}.{v}; CREATE INDEX {v} ON {s}.g1_chunks USING hnsw (embedding {opclass})"
    " WITH (m = {m}, ef_construction = 64)"
)
KINDS = {
    "the index dropped": Drift("DROP INDEX {s}.{v}"),
    "the index invalid": Drift(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass('{s}.{v}')"
    ),
    "another operator class": Drift(_OTHER_GRAPH.replace("{opclass}", "halfvec_l2_ops").replace("{m}", "16")),
    "another m": Drift(_OTHER_GRAPH.replace("{opclass}", "halfvec_cosine_ops").replace("{m}", "4")),
    "the index renamed": Drift("ALTER INDEX {s}.{v} RENAME TO mine"),
    "a grant revoked": Drift("REVOKE INSERT ON {s}.g1_applied FROM {r}_writer"),
    "the owner changed": Drift("ALTER TABLE {s}.g1_chunks OWNER TO polaris_operator"),
    "a second index of the same column": Drift(
        "CREATE INDEX mine ON {s}.g1_chunks USING hnsw (embedding halfvec_cosine_ops) WITH (m = 4)",
        Reason.DRIFTED,
        "DROP INDEX CONCURRENTLY {s}.mine",
        "DROP INDEX {s}.mine",
    ),
    "the planner forbidden to use indexes, in the database": Drift(
        "ALTER DATABASE {d} SET enable_indexscan = off",
        Reason.DRIFTED,
        "ALTER DATABASE {d} RESET enable_indexscan",
        "ALTER DATABASE {d} RESET enable_indexscan",
    ),
    "the planner forbidden to use indexes, for a login of the service": Drift(
        "CREATE ROLE {r}_visitor LOGIN IN ROLE polaris_{c}_query;"
        "ALTER ROLE {r}_visitor IN DATABASE {d} SET enable_indexscan = off",
        Reason.DRIFTED,
        "ALTER ROLE {r}_visitor IN DATABASE {d} RESET enable_indexscan",
        "DROP ROLE {r}_visitor",
    ),
    "an older extension": Drift(
        "UPDATE pg_extension SET extversion = '0.8.0' WHERE extname = 'vector'",
        Reason.VERSION_UNSUPPORTED,
        "0.8.0",
        "UPDATE pg_extension SET extversion = (SELECT default_version FROM pg_available_extensions"
        " WHERE name = 'vector') WHERE extname = 'vector'",
        of=MAIN,
    ),
    "the documents' versions emptied": Drift(
        "CREATE TABLE kept AS TABLE {s}.stored_versions; TRUNCATE {s}.stored_versions",
        Reason.DRIFTED,
        "table stored_versions lost rows",
        "INSERT INTO {s}.stored_versions TABLE kept; DROP TABLE kept",
    ),
    "a column dropped": Drift(
        "ALTER TABLE {s}.g1_chunks DROP COLUMN span_end CASCADE",
        Reason.DRIFTED,
        "column g1_chunks.span_end is gone: restore it from a backup, or drop g1_chunks",
        "DROP TABLE {s}.g1_chunks",
        whole=False,
    ),
}


class Patient:
    """An index that is damaged in many ways, one after the other."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.key = place.ready()
        place.fill(self.key, 40)
        place.go_until(self.key, "Ready")
        role = place.role(self.key, "").removesuffix("_")
        self._words = {
            "s": place.schema(self.key),
            "r": role,
            "c": str(place.one("SELECT id FROM polaris.catalog")),
            "d": place.database.name,
            "v": str(place.one("SELECT vector_index FROM polaris.generations")),
        }

    def text(self, template: str) -> str:
        return template.format(**self._words)

    def sql(self, template: str) -> None:
        self.place.sql(self.text(template))

    def look(self) -> dict[str, Any]:
        """Make the look at the catalogs that is due, and the passes that come of it."""
        self.place.go(MAIN)
        return dict(self.place.resource(self.key).status)


@pytest.fixture
def patient(here: Place) -> Patient:
    return Patient(here)


def test_every_kind_of_drift_is_seen_at_the_next_look_and_repaired_or_told(patient: Patient) -> None:
    place, key = patient.place, patient.key
    before = place.fingerprint(key)

    for kind, drift in KINDS.items():
        patient.sql(drift.harm)
        status = patient.look()

        if drift.stalled is None:
            assert place.errors == [], kind
        else:
            assert said_of(status, "Ready")["status"] == "False", kind
            stalled = said_of(dict(place.resource(drift.of or key).status), "Stalled")
            assert (stalled.get("reason"), kind) == (drift.stalled, kind)
            assert patient.text(drift.told) in stalled["message"].replace('"', "")
            patient.sql(drift.remedy)
            patient.look()
        place.go_until(key, "Ready")
        assert not drift.whole or place.fingerprint(key) == before, kind


def test_an_index_that_was_renamed_gets_its_name_back_and_is_not_built_again(patient: Patient) -> None:
    built = patient.place.one(patient.text("SELECT to_regclass('{s}.{v}')::oid"))
    patient.sql("ALTER INDEX {s}.{v} RENAME TO mine")

    status = patient.look()

    assert said_of(status, "Ready")["status"] == "True"
    assert patient.place.one(patient.text("SELECT to_regclass('{s}.{v}')::oid")) == built


@pytest.mark.parametrize("more", [0, 3])
def test_chunks_that_were_emptied_are_made_again_also_where_others_came_since(
    patient: Patient, more: int
) -> None:
    place = patient.place
    patient.sql("UPDATE polaris.generations SET low_water = 40; TRUNCATE {s}.g1_chunks")
    if more:
        place.sql(patient.text("UPDATE {s}.stored_documents SET sequence = sequence + 100 WHERE id > 37"))
        patient.sql(
            "INSERT INTO {s}.g1_chunks SELECT id, 1, 0, 0, 4, '', '{{}}', '[1,2,3,4,5,6,7,8]'"
            " FROM {s}.stored_documents WHERE id > 37"
        )

    patient.look()
    place.go_until(patient.key, "Ready")

    assert place.one("SELECT low_water FROM polaris.generations") == 0
    assert place.one(patient.text("SELECT count(*) FROM {s}.g1_applied")) == 0
    assert place.one(patient.text("SELECT count(*) FROM {s}.stored_versions")) == 40


def test_documents_that_were_deleted_are_no_damage(patient: Patient) -> None:
    patient.sql(
        "UPDATE {s}.stored_documents SET deleted = true; DELETE FROM {s}.stored_versions;"
        "DELETE FROM {s}.g1_chunks; UPDATE {s}.g1_applied SET chunks = 0"
    )

    patient.look()

    assert said_of(patient.place.go_until(patient.key, "Ready"), "Stalled") == {}


def test_an_extension_that_was_dropped_is_told_and_so_is_what_it_took_along(patient: Patient) -> None:
    place, key = patient.place, patient.key
    patient.sql("DROP EXTENSION vector CASCADE")

    told = patient.look()
    database = dict(place.resource(MAIN).status)
    patient.sql("CREATE EXTENSION vector")
    patient.look()
    then = dict(place.resource(key).status)
    patient.sql("DROP TABLE {s}.g1_chunks")
    patient.look()

    assert said_of(database, "Stalled")["reason"] == Reason.PREREQUISITE_MISSING
    assert "CREATE EXTENSION" in said_of(database, "Stalled")["message"]
    assert said_of(told, "Ready")["status"] == "False"
    assert said_of(then, "Stalled").get("reason") == Reason.DRIFTED, (then, place.errors)
    assert "column g1_chunks.embedding is gone" in said_of(then, "Stalled")["message"]
    place.go_until(key, "Ready")
    assert place.one(patient.text("SELECT count(*) FROM {s}.stored_versions")) == 40


def test_drift_that_is_only_reported_is_told_at_the_next_look(here: Place) -> None:
    key = here.ready(drift="Report")
    schema = here.schema(key)
    here.sql(f"ALTER TABLE {schema}.g1_chunks OWNER TO polaris_operator")

    here.go(MAIN)

    assert said_of(dict(here.resource(key).status), "Stalled")["reason"] == Reason.DRIFTED
    here.sql(f"ALTER TABLE {schema}.g1_chunks OWNER TO {here.role(key, 'owner')}")
    here.go(MAIN)
    assert said_of(dict(here.resource(key).status), "Ready")["status"] == "True"


@pytest.mark.parametrize("column", ["stored_documents.deleted", "clock.sequence", "g1_applied.tries"])
def test_what_is_wrong_with_one_index_keeps_nobody_from_seeing_what_is_with_another(
    patient: Patient, column: str
) -> None:
    place = patient.place
    other = place.ready("other")
    table, _, name = column.partition(".")
    patient.sql(f"ALTER TABLE {{s}}.{table} DROP COLUMN {name} CASCADE")
    place.sql(f"DROP VIEW {place.schema(other)}.documents")

    status = patient.look()

    assert place.errors == []
    assert f"column {column} is gone" in said_of(status, "Stalled")["message"]
    assert place.one("SELECT to_regclass(%s) IS NOT NULL", f"{place.schema(other)}.documents")


@pytest.mark.soak
def test_of_stable_objects_there_is_no_false_alarm_and_nothing_is_written(here: Place) -> None:
    stable = [here.ready(f"stable{number}") for number in range(times(5, 100))]
    for key in stable[::2]:
        here.fill(key, 40)
    # Passes over the folder's objects until all was measured and nothing is left to be said.
    here.go()
    here.go()
    objects = {key: here.resource(key).resource_version for key in (MAIN, *stable)}
    rows = written(here)

    for _ in range(times(4, 10)):
        here.go()

    assert {key: here.resource(key).resource_version for key in objects} == objects
    assert written(here) == rows


def written(place: Place) -> dict[str, str]:
    """Which transactions wrote the rows that the operator may write, but for the beat that says it lives."""
    tables = place.sql(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = c.relnamespace WHERE c.relkind = 'r'"
        " AND (n.nspname LIKE 'polaris%' OR n.nspname = 'pg_catalog')"
        " AND c.relname NOT IN ('installations', 'pg_statistic', 'pg_statistic_ext_data')"
    )
    return {
        table: place.one(f"SELECT md5(string_agg(xmin::text, ',' ORDER BY xmin::text)) FROM {table}")
        for (table,) in tables
    }


@pytest.mark.parametrize("rows", [40, 3000])
def test_the_canary_is_planned_as_what_the_service_sends(here: Place, rows: int) -> None:
    key = here.ready()
    here.fill(key, rows)
    of = here.look(key)[1].embedding
    shape = Shape(
        *(here.schema(key), 1, of.type, of.dimension, of.metric, "public", Kind.HNSW),
        k=10,
        condition=None,
    )
    sent = search(shape).replace("$1", "'[1,2,3,4,5,6,7,8]'").replace("$2", "'64'")

    plan = json.dumps(here.one(f"EXPLAIN (FORMAT JSON) {sent}"))

    pointer = here.one("SELECT vector_index FROM polaris.generations")
    assert (here.look(key)[2].index.canary == pointer) == (pointer in plan) == (rows > 40)
