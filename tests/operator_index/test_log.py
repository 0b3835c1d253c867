"""What a plan shows is what is executed, byte for byte, by the word of PostgreSQL's own log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operator_index.place import Place, index_manifest
from operator_index.test_convergence import EDITS
from operator_index.test_passes import DRIFT, damage
from operator_index.watch import builds, eventually
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.objects import Key
from polaris_operator.steps import BuildIndex, Step, statements
from soak import times

pytestmark = [pytest.mark.postgres, pytest.mark.soak]

_ENTRY = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.MULTILINE)
_OTHERS = ("SELECT ", "WITH ", "BEGIN", "COMMIT", "ROLLBACK", "SET ", "RESET ", "EXPLAIN ", "\n")
"""How statements begin by which the operator looks, locks and tells."""
_MOST_ROUNDS = 12


class Log:
    """What the operator's login has written in a database since a moment, statement by statement."""

    def __init__(self, place: Place, postgres: LocalPostgres) -> None:
        self._file, self._from = postgres.log_file, postgres.log_file.stat().st_size
        self._who = f"{place.login}@{place.database.name} "
        place.sql(f"ALTER DATABASE {place.database.name} SET log_statement = 'all'")
        place.restart()

    def taken(self) -> list[str]:
        """The statements since the last time."""
        with self._file.open(encoding="utf-8", errors="replace") as log:
            log.seek(self._from)
            text = log.read()
            self._from = log.tell()
        starts = [*(found.start() for found in _ENTRY.finditer(text)), len(text)]
        entries = (text[one:following] for one, following in pairwise(starts))
        mine = (entry.partition("statement: ")[2] for entry in entries if self._who in entry)
        found = (statement.replace("\n\t", "\n").removesuffix("\n") for statement in mine)
        return [statement for statement in found if statement and not statement.startswith(_OTHERS)]


def writes(steps: tuple[Step, ...]) -> Iterator[str]:
    """The statements that steps show, but for those that only read or tell."""
    for step in steps:
        text = statements(step.action)
        whole = [text] if isinstance(step.action, BuildIndex) else text.split(";\n")
        yield from (one for one in whole if one and not one.startswith(_OTHERS))


def carried_out(place: Place, key: Key, log: Log) -> None:
    """Carry out plan after plan until there is nothing to do; each does what it showed, and no more."""
    for _ in range(_MOST_ROUNDS):
        place.objects.look()
        plan = place.decide(key)
        if not plan.steps:
            return
        log.taken()
        place.act(key, plan.steps)
        eventually(lambda: not builds(place))
        assert log.taken() == list(writes(plan.steps))
    raise AssertionError(f"it does not come to an end: {plan.steps[0].sentence}")


@given(
    changes=st.lists(st.fixed_dictionaries({}, optional=EDITS), min_size=1, max_size=3),
    harm=st.lists(st.sampled_from(sorted(DRIFT)), max_size=2, unique=True),
)
@settings(
    max_examples=times(5, 200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_shown_is_executed_byte_for_byte_and_then_there_is_nothing_to_do(
    here: Place, postgres: LocalPostgres, changes: list[dict[str, Any]], harm: list[str]
) -> None:
    log = Log(here, postgres)
    here.go()
    key = here.put(index_manifest("shown", **changes[0]))
    carried_out(here, key, log)
    for one in harm:
        with suppress(psycopg2.Error):
            damage(here, key, one)
    for change in changes:
        here.put(index_manifest("shown", **change))
        carried_out(here, key, log)
        assert here.decide(key).steps == ()
