from __future__ import annotations

from collections.abc import Iterator

import pytest

from operator_index.place import MAIN, Place, place_in
from polaris_cli.up.postgres import LocalPostgres


@pytest.fixture
def place(postgres: LocalPostgres) -> Iterator[Place]:
    """An installation at work in a database of its own, on PostgreSQL 18."""
    with place_in(postgres) as made:
        yield made


@pytest.fixture
def here(place: Place) -> Place:
    """The same, where the database is ready and a worker offers the model."""
    place.go(MAIN)
    place.offer()
    return place


@pytest.fixture
def any_here(vector_postgres: LocalPostgres) -> Iterator[Place]:
    """The same on each server that has pgvector."""
    with place_in(vector_postgres) as made:
        made.go(MAIN)
        made.offer()
        yield made
