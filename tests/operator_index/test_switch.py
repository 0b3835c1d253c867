"""The switch between generations, in PostgreSQL: when it happens, and what it leaves."""

from __future__ import annotations

from contextlib import closing

import pytest

from mission.system import wait_for
from operator_index.place import DIMENSION, Place, index_manifest, said_of
from parts import servers
from polaris import names
from polaris.errors import Conflict
from polaris.sql import identifier
from polaris_operator.objects import Key
from polaris_operator.steps import Step

pytestmark = pytest.mark.postgres

OTHER = {"model": "other", "dimension": 4}


def apply_in(here: Place, key: Key, generation: int, *, dimension: int) -> None:
    """Bring a generation level with the documents, as workers do."""
    place = identifier(here.schema(key))
    here.sql(
        f"WITH d AS (SELECT id, version, sequence FROM {place}.stored_documents d WHERE NOT EXISTS"
        f" (SELECT FROM {place}.g{generation}_applied a WHERE a.document_id = d.id)), a AS ("
        f"INSERT INTO {place}.g{generation}_applied (document_id, version, sequence, chunks)"
        " SELECT id, version, sequence, 1 FROM d)"
        f" INSERT INTO {place}.g{generation}_chunks SELECT d.id, d.version, 0, 0, 4,"
        " sha256(convert_to('text', 'UTF8')), '{}',"
        " (SELECT array_agg(random() + 0 * (g + d.id))"
        f" FROM generate_series(1, {dimension}) g)::real[]::halfvec FROM d;"
        f"UPDATE polaris.generations SET low_water = (SELECT sequence FROM {place}.clock)"
        f" WHERE number = {generation}"
    )


def write(here: Place, key: Key) -> None:
    """Put a document that only the serving generation has applied so far."""
    place = identifier(here.schema(key))
    here.sql(
        f"WITH c AS (UPDATE {place}.clock SET sequence = sequence + 1 RETURNING sequence), d AS ("
        f"INSERT INTO {place}.stored_documents (external_id, version, sequence, content_hash)"
        " SELECT 'late', 1, sequence, '' FROM c RETURNING id, sequence)"
        f" INSERT INTO {place}.stored_versions (document_id, version, sequence, content_hash, text)"
        " SELECT id, 1, sequence, '', 'text' FROM d"
    )
    apply_in(here, key, 1, dimension=DIMENSION)


@pytest.fixture
def key(here: Place) -> Key:
    """An index whose next generation is through the gates."""
    made = here.ready()
    here.fill(made, 50)
    here.offer("other", 4)
    here.put(index_manifest(embedding=OTHER))
    assert said_of(here.go(made), "Ready")["reason"] == "Filling"
    apply_in(here, made, 2, dimension=4)
    return made


def switch(here: Place, key: Key) -> Step:
    """The step that switches, once everything before it is done."""
    found: list[Step] = []

    def offered() -> bool:
        plan = here.decide(key)
        found[:] = [step for step in plan.steps if step.sentence.startswith("Switch")]
        if not found:
            here.act(key, plan.steps)
        return bool(found)

    wait_for("the switch", offered)
    return found[0]


def test_nobody_loses_sight_of_a_document_that_the_next_generation_has_not_applied_yet(
    here: Place, key: Key
) -> None:
    step = switch(here, key)
    write(here, key)
    with pytest.raises(Conflict, match="no longer true"):
        here.act(key, [step])
    assert here.one("SELECT serving FROM polaris.indexes") == 1
    apply_in(here, key, 2, dimension=4)
    here.act(key, [step])
    assert here.one("SELECT serving FROM polaris.indexes") == 2


def test_while_a_worker_writes_what_it_has_embedded_nothing_is_switched(here: Place, key: Key) -> None:
    step = switch(here, key)
    lock = names.switch_lock(here.schema(key), 1)
    with closing(servers.connect(here.database.dsn)) as worker, worker.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock_shared(%s)", (lock,))
        with pytest.raises(Conflict):
            here.act(key, [step])
    here.act(key, [step])
    assert here.one("SELECT serving FROM polaris.indexes") == 2
