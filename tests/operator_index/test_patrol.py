from __future__ import annotations

from datetime import UTC, datetime

import pytest

from operator_index.place import MAIN, Place, index_manifest
from polaris_operator.objects import Key
from polaris_operator.patrol import patrol

pytestmark = pytest.mark.postgres


def woken(place: Place) -> set[str]:
    place.woken.clear()
    patrol(place.resource(MAIN), place.doors, datetime.now(UTC))
    return {key.name for key in place.woken}


@pytest.fixture
def three(here: Place) -> Place:
    for name in ("one", "two", "three"):
        here.ready(name)
    return here


def key(name: str) -> Key:
    return Key("PolarisIndex", "team", name)


def test_indexes_that_are_as_they_should_be_are_left_to_rest(three: Place) -> None:
    assert woken(three) == set()


def test_only_what_drifted_gets_a_pass(three: Place) -> None:
    three.sql(f"DROP VIEW {three.schema(key('two'))}.documents")

    assert woken(three) == {"two"}


def test_what_there_is_news_of_gets_a_pass(three: Place) -> None:
    three.fill(key("one"), 40)

    assert woken(three) == {"one"}
    three.go(key("one"))
    assert woken(three) == set()


def test_what_is_to_be_measured_gets_a_pass(three: Place) -> None:
    three.sql("UPDATE polaris.generations SET recall_at = NULL WHERE index_id = 3")

    assert woken(three) == {"three"}


def test_an_index_with_logins_has_passes_of_its_own(three: Place) -> None:
    three.ready("four", access=[{"name": "reporting", "secretName": "four"}])
    three.sql(f"DROP VIEW {three.schema(key('four'))}.documents")

    assert woken(three) == set()


def test_an_index_that_waits_for_a_person_is_not_looked_at_again_and_again(three: Place) -> None:
    three.put(index_manifest("one", embedding={"model": "other", "dimension": 8}))
    three.go(key("one"))

    assert woken(three) == set()
