"""An approval, by passes of the operator over a real PostgreSQL."""

from __future__ import annotations

import re
from typing import Any

import pytest

from operator_index.place import Place, index_manifest, said_of

pytestmark = pytest.mark.postgres

FINER: dict[str, Any] = {
    "index": {"m": 8, "efConstruction": 32},
    "attributes": [{"name": "lang", "type": "keyword"}],
}


def test_a_change_is_made_true_by_one_approval_and_nothing_of_it_before(here: Place) -> None:
    key = here.ready(change={"approval": "Destructive"})
    here.fill(key, 30)
    here.go_until(key, "Ready")
    before = here.fingerprint(key)
    here.put(index_manifest(change={"approval": "All"}, **FINER))

    held = here.go(key)

    stalled = said_of(held, "Stalled")
    assert stalled["reason"] == "ApprovalRequired"
    assert said_of(held, "Serving")["status"] == "True"
    assert here.fingerprint(key)["index"] == before["index"]
    name = held["plan"]["hash"]
    assert re.findall(r"sha256:[0-9a-f]{64}", stalled["message"]) == [name]
    here.put(index_manifest(change={"approval": "All", "approvedPlan": name}, **FINER))
    here.go_until(key, "Ready")
    assert here.decide(key).steps == ()
    assert here.fingerprint(key)["index"] != before["index"]


def test_an_index_that_waits_for_its_first_approval_takes_nothing(here: Place) -> None:
    key = here.put(index_manifest("new", change={"approval": "All"}))

    held = here.go(key)

    assert said_of(held, "Stalled")["reason"] == "ApprovalRequired"
    assert here.one("SELECT count(*) FROM polaris.indexes WHERE name = 'new'") == 0
    here.put(index_manifest("new", change={"approval": "All", "approvedPlan": held["plan"]["hash"]}))
    assert said_of(here.go_until(key, "Ready"), "Ready")["status"] == "True"
