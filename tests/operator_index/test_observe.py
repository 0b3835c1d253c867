from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from operator_index.place import Place, index_manifest
from operator_index.worlds import NOW
from polaris_operator.observe.index import gather, gather_own
from polaris_operator.world.index import Claim, IndexWorld

pytestmark = pytest.mark.postgres

NAMES = ("one", "two", "three")


def installation(place: Place) -> uuid.UUID:
    return place.doors.process.installation


def look(place: Place, *claims: Claim, canary: bool = True) -> dict[Claim, IndexWorld]:
    with place.doors.postgres.read() as connection:
        return gather(connection, installation(place), claims, canary=canary)


@contextmanager
def counted(place: Place) -> Iterator[list[str]]:
    statements: list[str] = []
    engine = place.doors.postgres._pooled

    def seen(_: object, __: object, statement: str, *___: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", seen)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", seen)


def lasting(world: IndexWorld) -> IndexWorld:
    """Leave out what changes by itself: the time, and estimates that PostgreSQL makes a moment later."""
    counts: dict[str, Any] = {"rows": 0, "live": 0, "dead": 0, "changed": 0, "vacuumed_at": None}
    relations = {name: replace(relation, **counts) for name, relation in world.relations.items()}
    return replace(world, now=NOW, relations=relations)


def test_one_look_at_many_finds_what_single_looks_find(any_here: Place) -> None:
    place = any_here
    for name in NAMES:
        place.ready(name, attributes=[{"name": name, "type": "keyword"}])
    claims = [Claim("team", name) for name in (*NAMES, "absent")]

    together = look(place, *claims)
    singly = {claim: look(place, claim)[claim] for claim in claims}

    for claim in claims:
        assert lasting(together[claim]) == lasting(singly[claim])
    assert together[claims[-1]].row is None


def test_a_look_costs_as_many_statements_for_many_as_for_one(here: Place) -> None:
    for name in NAMES:
        here.ready(name)
    many = [Claim("team", name) for name in (*NAMES, *(f"absent{n}" for n in range(1000)))]

    with counted(here) as for_one:
        look(here, many[0], canary=False)
    with counted(here) as for_many:
        look(here, *many, canary=False)

    assert len(for_many) == len(for_one)


def test_an_adoption_is_looked_up_by_its_number(here: Place) -> None:
    key = here.ready()
    label = here.resource(key).status["catalog"]

    found = look(here, Claim("team", "another", label))[Claim("team", "another", label)]

    assert found.row is None
    assert found.named is not None
    assert found.named.name == "handbook"
    assert found.schema is not None


@pytest.mark.parametrize("annotation", ["", "/", "x/y", "c/-1", "c/99999999999999999999", "c/1/2"])
def test_an_annotation_that_is_nonsense_finds_nothing(here: Place, annotation: str) -> None:
    claim = Claim("team", "another", annotation)

    assert look(here, claim)[claim].named is None


def test_a_worker_that_says_nothing_any_more_offers_nothing(here: Place) -> None:
    claim = Claim("team", "handbook")
    assert len(look(here, claim)[claim].models) == 1

    here.sql("UPDATE polaris.models SET reported_at = now() - interval '91 seconds'")

    assert look(here, claim)[claim].models == frozenset()


def test_where_it_is_served_is_what_the_service_said_last(here: Place) -> None:
    claim = Claim("team", "handbook")
    for name, seconds in (("old", 60), ("new", 5), ("gone", 91)):
        here.sql(
            "INSERT INTO polaris.consumers (id, kind, username, epoch, query_url, version, catalog_level,"
            " reported_at) VALUES (%s, 'query', 'u', 1, %s, '0', 1, now() - make_interval(secs => %s))",
            name,
            f"http://{name}",
            seconds,
        )

    assert look(here, claim)[claim].query_url == "http://new"


def test_whether_documents_wait_is_looked_at_while_it_loads(here: Place) -> None:
    key = here.ready()
    here.sql("UPDATE polaris.generations SET load_requested_at = now()")
    here.go(key)
    here.fill(key, 3)
    claim = Claim("team", "handbook")

    def behind() -> bool:
        generation = look(here, claim)[claim].generation
        assert generation is not None
        return generation.behind > 0

    assert not behind()
    here.sql(f"UPDATE {here.schema(key)}.stored_documents SET sequence = 9 WHERE id = 1")
    assert behind()
    here.sql(f"UPDATE {here.schema(key)}.g1_applied SET failed_sequence = 9 WHERE document_id = 1")
    assert not behind()
    here.sql(f"UPDATE {here.schema(key)}.stored_documents SET sequence = 10 WHERE id = 2")
    here.sql("UPDATE polaris.generations SET low_water = 10")
    assert not behind()


def test_only_our_own_indexes_are_collected(here: Place) -> None:
    here.ready("one")
    there = here.neighbour("there")
    there.put(index_manifest("two"))
    there.go()

    with here.doors.postgres.read() as connection:
        _, mine = gather_own(connection, installation(here))

    assert [row.name for row in mine] == ["one"]
