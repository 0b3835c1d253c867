"""Whatever is asked for, in whatever order, and whatever breaks: what must never be otherwise never is.

After each step: no document is gone whose removal nobody asked for; nobody can log in whom the ledger does
not know; a status is of no later spec than there is; Ready means that the catalogs agree; the index beside
it is as it was; what waits for an approval is not made true without one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from operator_index.place import catalog_of, fingerprint, said_of
from parts.vault import Administrator
from polaris import layout
from polaris.names import ADOPT_ANNOTATION
from polaris.spec import PolarisIndexSpec, parse_spec
from polaris.sql import identifier
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.objects import Key
from scenes.folder import MAIN, query
from scenes.killed import Effects, Killed, counted
from soak import SOAKING, times
from sweep.stage import BYSTANDER, TEAM, Stage, differences, stage

pytestmark = [pytest.mark.postgres, pytest.mark.soak]

EDITS: dict[str, list[Any]] = {
    "embedding": [
        {"model": "e5", "dimension": 8},
        {"model": "e5", "dimension": 8, "metric": "l2"},
        {"model": "e5", "dimension": 8, "type": "vector"},
        {"model": "other", "dimension": 4},
    ],
    "index": [{"type": "hnsw"}, {"m": 8}, {"type": "exact"}],
    "attributes": [[], [{"name": "lang", "type": "keyword"}], [{"name": "year", "type": "integer"}]],
    "access": [[], [{"name": "reporting"}]],
    "search": [{"targetRecallPercent": 90}, {"targetRecallPercent": 98}],
    "change": [{"retainPreviousSeconds": 0}, {"retainPreviousSeconds": 3600}, {"approval": "All"}],
    "deletionPolicy": ["Retain", "Delete"],
    "undeleteSeconds": [0, 259200],
    "drift": ["Repair", "Report"],
    "suspend": [True, False],
}
HARMS = {
    "grants": "REVOKE ALL ON ALL TABLES IN SCHEMA $schema FROM $writer",
    "view": "DROP VIEW IF EXISTS $schema.documents",
    "vector index": "DO $$ DECLARE found regclass; BEGIN"
    " SELECT indexrelid::regclass INTO found FROM pg_index i"
    " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw'"
    " AND c.relnamespace = to_regnamespace('$schema') LIMIT 1; IF found IS NOT NULL THEN"
    " EXECUTE 'DROP INDEX ' || found; END IF; END $$",
    "sessions": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE 'polaris-operator%%'",
}
_CHANGED = ("embedding", "index", "attributes")
_UNKNOWN = """
SELECT r.rolname, g.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
JOIN pg_roles g ON g.oid = m.roleid
WHERE r.rolcanlogin AND (starts_with(g.rolname, 'polaris_' || %(catalog)s || '_')
  OR g.rolname = 'polaris_operator' AND r.rolname ~ '^v-')
AND NOT EXISTS (SELECT FROM polaris.credentials c WHERE c.username = r.rolname AND c.state <> 'revoked'
  OR c.state = 'requested' AND c.group_role = g.rolname)
"""


class Life(RuleBasedStateMachine):
    """One index, its database, and everything that can happen to it."""

    on: ClassVar[Stage]
    beside: ClassVar[Any]
    numbers: ClassVar[Iterator[int]] = itertools.count(1)

    def __init__(self) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {}
        self.wanted = False
        self.kept: set[str] = set()
        """Documents whose removal nobody has asked for."""
        self.fresh = False
        """Whether a round of passes has been made over all that there is."""
        self.approved: list[Any] = []
        """What somebody agreed to, ever."""
        self.made: Any = None
        """What was made true when that was looked at last, and"""
        self.guarded = False
        """whether each change of it had to be agreed to."""
        self.key = Key("PolarisIndex", TEAM, f"life{next(self.numbers)}")

    @initialize(
        policy=st.sampled_from(EDITS["deletionPolicy"]), undelete=st.sampled_from(EDITS["undeleteSeconds"])
    )
    def begin(self, policy: str, undelete: int) -> None:
        self.create(policy, undelete)
        self.look()
        if self._schema():
            self.put(5)

    # What is asked for

    @precondition(lambda self: not self.wanted)
    @rule(policy=st.sampled_from(EDITS["deletionPolicy"]), undelete=st.sampled_from(EDITS["undeleteSeconds"]))
    def create(self, policy: str, undelete: int) -> None:
        self.spec = {
            "embedding": EDITS["embedding"][0],
            "deletionPolicy": policy,
            "undeleteSeconds": undelete,
        }
        self._ask()

    @precondition(lambda self: not self.wanted and self._labels())
    @rule()
    def have_it_back(self) -> None:
        self.spec = {**self.spec, "suspend": False}
        self._ask({ADOPT_ANNOTATION: self._labels()[0]})

    @precondition(lambda self: self.wanted)
    @rule(data=st.data(), field=st.sampled_from(sorted(EDITS)))
    def edit(self, data: st.DataObject, field: str) -> None:
        self.spec = {**self.spec, field: data.draw(st.sampled_from(EDITS[field]), label=field)}
        self._ask()

    @precondition(lambda self: self.wanted and self._waiting())
    @rule()
    def approve(self) -> None:
        self.spec = {**self.spec, "change": {"approval": "All", "approvedPlan": self._waiting()}}
        self.approved.append(self._asked())
        self._ask()

    @precondition(lambda self: self.wanted)
    @rule()
    def delete(self) -> None:
        kept = self.spec["deletionPolicy"] == "Retain" or self.spec.get("suspend")
        if not kept and self.spec.get("undeleteSeconds") == 0:
            self.kept -= self._documents(f"name = '{self.key.name}'")
        self.on.remove(self.key)
        self.wanted = self.fresh = False

    # What others do, and what breaks

    @precondition(lambda self: self._lives() and self._schema())
    @rule(many=st.integers(1, 12))
    def put(self, many: int) -> None:
        documents = [f"d{next(self.numbers)}" for _ in range(many)]
        self.on.fill(self.key, documents)
        self.kept |= set(documents)

    @rule()
    def wait(self) -> None:
        self.kept -= self._documents("drop_after IS NOT NULL")
        self.on.age()
        self.fresh = False

    @rule()
    def look(self) -> None:
        self.fresh = self.on.round()

    @rule(number=st.integers(1, 40))
    def be_killed(self, number: int) -> None:
        self.fresh = False
        with counted(Effects(number)) as effects:
            try:
                self.on.round()
            except Killed:
                self.on.die(effects)

    @precondition(lambda self: self._schema())
    @rule(harm=st.sampled_from(sorted(HARMS)))
    def be_harmed(self, harm: str) -> None:
        schema = self._schema()
        number = schema.split("_")[1]
        writer = f"polaris_{catalog_of(self.on.vault.database)}_{number}_writer"
        self.fresh = False
        if self.on.sql("SELECT 1 FROM pg_roles WHERE rolname = %(writer)s", writer=writer):
            statement = HARMS[harm].replace("$schema", schema).replace("$writer", writer)
            self.on.sql(statement, nothing=None)

    # What must never be otherwise

    @invariant()
    def no_document_is_gone_that_nobody_let_go(self) -> None:
        assert self.kept <= self._documents("true")

    @invariant()
    def nobody_can_log_in_whom_the_ledger_does_not_know(self) -> None:
        entry = self.on.scene.operator.databases._entries.get(MAIN)
        own = {entry.own.username} if entry and entry.own else set()
        found = self.on.sql(_UNKNOWN, catalog=catalog_of(self.on.vault.database))
        assert [role for role in found if role[0] not in own] == []

    @invariant()
    def no_status_is_of_a_later_spec_than_there_is(self) -> None:
        for key in (MAIN, BYSTANDER, self.key):
            found = self.on.scene.objects.get(key)
            if found is None or not found.status:
                continue
            seen = found.status["observedGeneration"]
            assert seen <= found.generation
            assert all(one["observedGeneration"] <= seen for one in found.status["conditions"])
            if self.fresh and found.deleted_at is None:
                assert seen == found.generation

    @invariant()
    def ready_means_that_the_catalogs_agree(self) -> None:
        found = self.on.scene.objects.get(self.key)
        if not self.fresh or found is None or said_of(dict(found.status), "Ready").get("status") != "True":
            return
        spec = parse_spec(PolarisIndexSpec, found.spec)
        schema = self._schema()
        seen = fingerprint(self.on.vault.database, schema)
        serving = seen["index"][0][-1]
        ((made,),) = self.on.sql(
            "SELECT embedding FROM polaris.generations g JOIN polaris.indexes i ON i.id = g.index_id"
            " AND g.number = i.serving WHERE i.schema_name = %(schema)s",
            schema=schema,
        )
        assert made == spec.embedding.model_dump(mode="json", by_alias=True)
        wanted = layout.vector_index(serving, spec.embedding, spec.index)
        valid = [text for text, *fit in seen["indexes"] if f"g{serving}_chunks" in text and all(fit)]
        graphs = [text for text in valid if "USING hnsw" in text]
        # What it replaced stays until no query can be using it.
        kind, parameter = f"{layout.operator_class(spec.embedding)})", f"m='{spec.index.m}'"
        assert wanted is None or any(kind in text and parameter in text for text in graphs)
        assert {name for name, *_ in seen["relations"]} >= {"documents", "chunks", f"g{serving}_chunks"}
        for one in spec.access:
            secret = self.on.scene.objects.secret(TEAM, one.secret_name)
            assert secret is not None
            assert query(secret.data, f"SELECT count(*) FROM {identifier(schema)}.chunks")

    @invariant()
    def nothing_changes_without_the_approval_that_it_needs(self) -> None:
        rows = self.on.sql(
            f"SELECT spec FROM polaris.indexes WHERE name = '{self.key.name}' AND state = 'active'"
            " AND spec IS NOT NULL"
        )
        made = _content(rows[0][0]) if rows else None
        if self.guarded and None not in (made, self.made) and made != self.made:
            assert made in self.approved
        self.made = made
        self.guarded = self.spec.get("change", {}).get("approval") == "All"

    @invariant()
    def nothing_of_another_object_was_touched(self) -> None:
        assert list(differences(self.beside, beside(self.on))) == []

    def teardown(self) -> None:
        """Whatever it was, it comes true; and it can be ended."""
        if self.wanted:
            self.spec = {**self.spec, "suspend": False, "drift": "Repair", "change": {}}
            self._ask()
        self.on.stand()
        self.fresh = True
        self.no_document_is_gone_that_nobody_let_go()
        self.ready_means_that_the_catalogs_agree()
        if self.wanted:
            self.spec = {**self.spec, "deletionPolicy": "Delete", "undeleteSeconds": 0}
            self._ask()
            self.on.stand()
            self.delete()
            self.on.stand()
            assert self._documents(f"name = '{self.key.name}'") == set()

    # Underneath

    def _ask(self, annotations: dict[str, str] | None = None) -> None:
        spec = {
            **self.spec,
            "access": [
                {**one, "secretName": f"{self.key.name}-reporting"} for one in self.spec.get("access", ())
            ],
        }
        self.on.index(self.key, annotations, **spec)
        self.wanted, self.fresh = True, False

    def _asked(self) -> Any:
        """Return what the object asks for, with what it leaves out."""
        return _content(self.on.scene.read(self.key).spec)

    def _waiting(self) -> str:
        """Return the hash of the plan that waits for an approval, as the status says it."""
        found = self.on.scene.objects.get(self.key)
        status = dict(found.status) if found else {}
        waits = said_of(status, "Stalled").get("reason") == "ApprovalRequired"
        if not waits or found is None or status["observedGeneration"] != found.generation:
            return ""
        return str(status["plan"]["hash"])

    def _lives(self) -> bool:
        """Whether the object is there to stay: what is put while it is on its way out goes with it."""
        found = self.on.scene.objects.get(self.key)
        return found is not None and found.deleted_at is None

    def _schema(self) -> str:
        rows = self.on.sql(
            f"SELECT schema_name FROM polaris.indexes WHERE name = '{self.key.name}' AND state = 'active'"
            " AND serving IS NOT NULL AND to_regclass(quote_ident(schema_name) || '.clock') IS NOT NULL"
        )
        return str(rows[0][0]) if rows else ""

    def _labels(self) -> list[str]:
        """What can be had back, the newest first."""
        found = self.on.scene.read(MAIN).status.get("deleted", ())
        return [one["id"] for one in found if one["index"] == f"{TEAM}/{self.key.name}"]

    def _documents(self, where: str) -> set[str]:
        schemas = self.on.sql(
            f"SELECT schema_name FROM polaris.indexes WHERE ({where}) AND name <> '{BYSTANDER.name}'"
            " AND to_regclass(quote_ident(schema_name) || '.stored_documents') IS NOT NULL"
        )
        statement = "SELECT external_id FROM {place}.stored_documents"
        return {
            document
            for (schema,) in schemas
            for (document,) in self.on.sql(statement.format(place=identifier(schema)))
        }


def _content(spec: Any) -> Any:
    whole = parse_spec(PolarisIndexSpec, {"databaseRef": {"name": "any"}, **spec})
    plain = whole.model_dump(mode="json", by_alias=True)
    return {field: plain[field] for field in _CHANGED}


def beside(on: Stage) -> Any:
    """All that there is of the index that nobody touches."""
    schema = on.schema(BYSTANDER)
    rows = on.sql(f"SELECT document_id, md5(embedding::text) FROM {identifier(schema)}.g1_chunks ORDER BY 1")
    return fingerprint(on.vault.database, schema), rows


@pytest.mark.timeout(7200 if SOAKING else 300)
def test_whatever_happens_to_an_index_what_must_hold_does(
    postgres: LocalPostgres, vault_administrator: Administrator
) -> None:
    with stage(postgres, vault_administrator) as on:
        on.database()
        on.index(BYSTANDER, embedding=EDITS["embedding"][0])
        on.stand()
        on.fill(BYSTANDER, ["a", "b", "c"])
        on.settle()
        Life.on, Life.beside = on, beside(on)
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=times(5, 100),
                stateful_step_count=times(8, 40),
                deadline=None,
                # Anew each time where there is time for it; the same in each run of the short form.
                derandomize=not SOAKING,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            ),
        )
