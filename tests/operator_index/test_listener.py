from __future__ import annotations

import time

import pytest

from operator_index.place import MAIN, PATIENCE_SECONDS, Place
from polaris_operator.objects import Key

pytestmark = pytest.mark.postgres


def woken(place: Place) -> set[Key]:
    """What somebody's word in the catalog woke, once it did."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not place.woken:
        assert time.monotonic() < end
        time.sleep(0.01)
    found = set(place.woken)
    place.woken.clear()
    return found


def ask(place: Place, value: str) -> None:
    place.sql(
        f"UPDATE polaris.generations SET load_requested_at = {value} WHERE index_id = 1;"
        "SELECT pg_notify('polaris_catalog', '1')"
    )


def test_a_wish_for_a_bulk_load_is_heard_and_so_is_its_end(here: Place) -> None:
    key = here.ready()
    here.ready("other")

    ask(here, "now()")
    assert woken(here) == {key}
    here.go(key)
    here.fill(key, 10)
    ask(here, "NULL")

    assert woken(here) == {key}


def test_a_listener_that_lost_its_session_has_the_database_looked_at_and_hears_again(here: Place) -> None:
    key = here.ready()
    here.sql(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE '%/listen/%'"
    )
    assert woken(here) == {MAIN}
    assert woken(here) == {MAIN}  # It has a session again.

    ask(here, "now()")

    assert woken(here) == {key}


def test_our_own_word_wakes_nobody(here: Place) -> None:
    here.ready()
    here.ready("other")

    here.sql("SELECT pg_notify('polaris_catalog', '1')")
    ask(here, "now()")

    assert {key.name for key in woken(here)} == {"handbook"}
