"""What is decided about a PolarisDatabase, as sentences, and what is said about it."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import polaris
from polaris.names import FINALIZER
from polaris.spec import PolarisDatabaseSpec, parse_spec
from polaris.status import DatabaseStatus, Reason
from polaris_operator.bootstrap import Grant
from polaris_operator.conditions.database import database_status
from polaris_operator.conditions.shared import condition, plain
from polaris_operator.objects import Key, Resource
from polaris_operator.plan.database import plan_database, version, wanted_acl
from polaris_operator.steps import Execute, Migrate, Plan, RevokeLogin, SetFinalizer, TakeOver
from polaris_operator.world.credentials import CredentialsWorld, Login, SecretSeen, VaultSeen
from polaris_operator.world.database import (
    PUBLIC,
    CatalogSeen,
    DatabaseWorld,
    FenceSeen,
    Group,
    OwnLogin,
    OwnSeen,
    Process,
)

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEY = Key("PolarisDatabase", "rag", "main")
PROCESS = Process(uuid.UUID(int=1), "cluster", "pod-1")
HEAD = "0002"
GROUPS = ("polaris_c_query", "polaris_c_worker")


def spec(**other: Any) -> PolarisDatabaseSpec:
    made = {"host": "db", "database": "polaris", "credentials": {"secretRef": {"name": "admin"}}, **other}
    return parse_spec(PolarisDatabaseSpec, made)


def resource(**other: Any) -> Resource:
    return Resource(KEY, "uid-1", 3, "1", {}, finalizers=(FINALIZER,), **other)


def login(name: str, number: int) -> Login:
    return Login(
        id=number,
        name=name,
        epoch=1,
        group_role=f"polaris_c_{name}",
        source="operator",
        state="published",
        secret=("rag", f"polaris-{name}"),
        requested_at=NOW,
        username=f"u-{name}",
        issued_at=NOW,
        expires_at=NOW + timedelta(hours=24),
    )


CATALOG = CatalogSeen(
    id="c",
    revision=HEAD,
    known=True,
    oldest_code=polaris.CATALOG_LEVEL,
    fence=FenceSeen(4, "pod-1"),
    groups=dict.fromkeys(GROUPS, Group()),
    acl=wanted_acl("c"),
    indexes=2,
)
CREDENTIALS = CredentialsWorld(
    owner="database/rag/main",
    owner_uid="uid-1",
    catalog="c",
    logins=(login("query", 1), login("worker", 2)),
    last_epochs={"query": 1, "worker": 1},
    secrets={("rag", f"polaris-{name}"): SecretSeen("uid-1", 1, intact=True) for name in ("query", "worker")},
)
SETTLED = DatabaseWorld(
    process=PROCESS,
    head=HEAD,
    server_version="18.6",
    server_version_number=180006,
    vector_version="0.8.6",
    vector_available="0.8.6",
    catalog=CATALOG,
    credentials=CREDENTIALS,
    fence=FenceSeen(4, "pod-1"),
)


def world(catalog: dict[str, Any] | None = None, **other: Any) -> DatabaseWorld:
    return replace(SETTLED, catalog=replace(CATALOG, **(catalog or {})), **other)


def decide(found: DatabaseWorld, wanted: PolarisDatabaseSpec | None = None) -> Plan:
    return plan_database(resource(), wanted or spec(), found, NOW)


def test_a_database_that_is_as_it_should_be_needs_nothing() -> None:
    plan = decide(SETTLED)
    assert (plan.steps, plan.blocked) == ((), None)
    assert plan.look_again_seconds == timedelta(hours=12).total_seconds()


def test_what_is_made_first_comes_alone() -> None:
    assert [step.action for step in decide(world(), spec()).steps] == []
    nothing = replace(SETTLED, catalog=None, credentials=None, fence=None)
    assert [type(step.action) for step in decide(nothing).steps] == [Migrate]
    behind = world({"revision": "0001"})
    assert [type(step.action) for step in decide(behind).steps] == [Migrate]
    not_taken = world(fence=None, credentials=None)
    assert [step.action for step in decide(not_taken).steps] == [TakeOver(PROCESS.installation, "cluster")]


@pytest.mark.parametrize("seen", [None, FenceSeen(3, "pod-0"), FenceSeen(3, "pod-1")])
def test_a_catalog_that_was_restored_from_a_backup_is_taken_over_again(seen: FenceSeen | None) -> None:
    restored = decide(world({"fence": seen}))
    assert restored.blocked is None
    assert [step.action for step in restored.steps] == [TakeOver(PROCESS.installation, "cluster")]


def test_the_catalog_of_a_newer_version_is_used_as_it_is() -> None:
    assert decide(world({"revision": "0009", "known": False})).steps == ()


BLOCKED: list[tuple[str, DatabaseWorld, dict[str, Any], Reason, list[str]]] = [
    (
        "an old server",
        world(server_version="12.3", server_version_number=120003),
        {},
        Reason.VERSION_UNSUPPORTED,
        ["12.3", "13"],
    ),
    (
        "an old pgvector that can be updated",
        world(vector_version="0.8.1"),
        {},
        Reason.VERSION_UNSUPPORTED,
        ["0.8.1", "0.8.4", "ALTER EXTENSION vector UPDATE"],
    ),
    (
        "an old pgvector, and the server has no newer",
        world(vector_version="0.7.0", vector_available="0.7.0"),
        {},
        Reason.VERSION_UNSUPPORTED,
        ["0.7.0", "0.8.4", "install"],
    ),
    (
        "no extension",
        world(vector_version=None, missing=(Grant.EXTENSION,)),
        {},
        Reason.PREREQUISITE_MISSING,
        ["CREATE EXTENSION IF NOT EXISTS vector;"],
    ),
    (
        "several grants missing, each with its text",
        world(missing=(Grant.STATISTICS, Grant.SIGNALS, Grant.ISSUER_ADMIN)),
        {},
        Reason.PREREQUISITE_MISSING,
        [
            "pg_read_all_stats",
            'GRANT pg_signal_backend TO "polaris_operator";',
            'GRANT "polaris_operator" TO "polaris_issuer" WITH ADMIN OPTION;',
        ],
    ),
    (
        "a catalog that is too new",
        world({"oldest_code": 99}),
        {},
        Reason.CATALOG_TOO_NEW,
        ["99", polaris.__version__],
    ),
    (
        "no catalog, and a person migrates",
        replace(SETTLED, catalog=None, credentials=None),
        {"migrations": "Manual"},
        Reason.MIGRATION_NEEDED,
        ["polaris migrate", HEAD],
    ),
    (
        "an old catalog, and a person migrates",
        world({"revision": "0001"}),
        {"migrations": "Manual"},
        Reason.MIGRATION_NEEDED,
        ["0001", HEAD],
    ),
    (
        "another operator took over",
        world({"fence": FenceSeen(5, "pod-2")}),
        {},
        Reason.NOT_OWNER,
        ["pod-2", "epoch 5"],
    ),
    (
        "another operator has the same epoch in another server",
        world({"fence": FenceSeen(4, "pod-2")}),
        {},
        Reason.NOT_OWNER,
        ["pod-2", "epoch 4"],
    ),
    ("a standby", world(standby=True), {}, Reason.DATABASE_UNAVAILABLE, ["standby"]),
    ("a pooler", world(pooled=True), {}, Reason.PREREQUISITE_MISSING, ["direct connection"]),
]


@pytest.mark.parametrize(
    ("found", "changed", "reason", "words"), [c[1:] for c in BLOCKED], ids=[c[0] for c in BLOCKED]
)
def test_what_stands_in_the_way_is_said_and_nothing_is_done(
    found: DatabaseWorld, changed: dict[str, Any], reason: Reason, words: list[str]
) -> None:
    plan = decide(found, spec(**changed))
    assert plan.steps == ()
    assert plan.blocked is not None
    assert plan.blocked.reason == reason
    for word in words:
        assert word in plan.blocked.message
    status = said(found, plan, spec(**changed))
    assert status["Ready"] == ("False", reason)
    assert status["Stalled" if plan.blocked.stalled else "Reconciling"] == ("True", reason)


def statements(plan: Plan) -> list[str]:
    return [
        statement
        for step in plan.steps
        if isinstance(step.action, Execute)
        for statement in step.action.statements
    ]


REPAIRS: list[tuple[str, dict[str, Any], bool, list[str]]] = [
    (
        "a group is missing",
        {"groups": {GROUPS[1]: Group()}},
        True,
        [
            'CREATE ROLE "polaris_c_query" NOLOGIN',
            'GRANT CONNECT ON DATABASE "polaris" TO "polaris_c_query"',
            'GRANT "polaris_c_query" TO "polaris_issuer" WITH ADMIN OPTION',
        ],
    ),
    (
        "a group is missing, without Vault",
        {"groups": {GROUPS[1]: Group()}},
        False,
        [
            'CREATE ROLE "polaris_c_query" NOLOGIN',
            'GRANT CONNECT ON DATABASE "polaris" TO "polaris_c_query"',
        ],
    ),
    (
        "somebody made a group a login and took CONNECT away",
        {"groups": {GROUPS[0]: Group(login=True, connects=False), GROUPS[1]: Group()}},
        False,
        [
            'ALTER ROLE "polaris_c_query" NOLOGIN',
            'GRANT CONNECT ON DATABASE "polaris" TO "polaris_c_query"',
        ],
    ),
    (
        "a privilege is missing, on a column",
        {"acl": {k: v for k, v in wanted_acl("c").items() if k[1:] != ("generations", "low_water")}},
        False,
        ['GRANT UPDATE ("low_water") ON "polaris"."generations" TO "polaris_c_worker"'],
    ),
    (
        "somebody let everybody, and the service, read the ledger",
        {
            "acl": {
                **wanted_acl("c"),
                (PUBLIC, "credentials", ""): frozenset({"SELECT"}),
                (GROUPS[0], "credentials", ""): frozenset({"SELECT", "DELETE"}),
            }
        },
        False,
        [
            'REVOKE SELECT ON "polaris"."credentials" FROM PUBLIC',
            'REVOKE DELETE, SELECT ON "polaris"."credentials" FROM "polaris_c_query"',
        ],
    ),
    (
        "nobody may use the schema",
        {"acl": {k: v for k, v in wanted_acl("c").items() if k[1]}},
        False,
        [
            'GRANT USAGE ON SCHEMA "polaris" TO "polaris_c_query"',
            'GRANT USAGE ON SCHEMA "polaris" TO "polaris_c_worker"',
        ],
    ),
]


@pytest.mark.parametrize(("catalog", "vault", "text"), [c[1:] for c in REPAIRS], ids=[c[0] for c in REPAIRS])
def test_roles_and_grants_that_differ_are_repaired(
    catalog: dict[str, Any], vault: bool, text: list[str]
) -> None:
    assert statements(decide(world(catalog, vault=vault))) == text


def test_the_ledger_of_credentials_is_for_nobody_but_the_operator() -> None:
    tables = {relation for _, relation, _ in wanted_acl("c")}
    assert tables.isdisjoint({"credentials", "installations", "fences", "alembic_version"})


# --- the operator's own login

OWN = OwnLogin("v-2", "lease-2", NOW - timedelta(hours=1), NOW + timedelta(hours=23))
BEFORE = OwnSeen(1, 1, "v-1", "lease-1", builds=False)
PRESENT = OwnSeen(2, 2, "v-2", "lease-2", builds=False)


def with_vault(*own: OwnSeen, now: OwnLogin = OWN, **vault: Any) -> DatabaseWorld:
    seen = VaultSeen(frozenset({"polaris-c-query", "polaris-c-worker"}), **vault)
    logins = tuple(replace(one, source="vault") for one in CREDENTIALS.logins)
    return replace(
        world({"own_logins": own, "last_own_epoch": max((o.epoch for o in own), default=0)}),
        own=now,
        vault=True,
        credentials=replace(CREDENTIALS, logins=logins, vault=seen),
    )


def test_the_own_login_is_written_down_once() -> None:
    (text,) = statements(decide(with_vault()))
    assert "'operator', 1" in text
    assert "'lease-2'" in text
    assert decide(with_vault(PRESENT)).steps == ()


def test_the_own_login_of_before_is_revoked_when_its_last_work_has_had_time_to_end() -> None:
    (step,) = decide(with_vault(BEFORE, PRESENT)).steps
    assert step.action == RevokeLogin(1, "v-1", "lease-1")
    young = replace(OWN, issued_at=NOW - timedelta(seconds=20))
    plan = decide(with_vault(BEFORE, PRESENT, now=young))
    assert (plan.steps, plan.look_again_seconds) == ((), 40)


def test_the_own_login_of_before_stays_while_a_build_runs_in_a_session_of_it() -> None:
    assert decide(with_vault(replace(BEFORE, builds=True), PRESENT)).steps == ()


def test_while_vault_is_away_no_own_login_is_revoked() -> None:
    plan = decide(with_vault(BEFORE, PRESENT, unavailable="sealed"))
    assert plan.steps == ()


def test_it_is_looked_again_when_the_own_login_is_to_be_renewed() -> None:
    short = OwnLogin("v-2", "lease-2", NOW - timedelta(seconds=10), NOW + timedelta(seconds=30))
    assert decide(with_vault(PRESENT, now=short)).look_again_seconds == 10


# --- deletion


def deleted(seconds: float, finalizers: tuple[str, ...] = (FINALIZER,)) -> Resource:
    return replace(resource(), deleted_at=NOW - timedelta(seconds=seconds), finalizers=finalizers)


def end(found: DatabaseWorld, seconds: float = 1) -> Plan:
    return plan_database(deleted(seconds), spec(), found, NOW)


def test_the_object_is_held_before_a_login_is_issued() -> None:
    nothing = world(credentials=replace(CREDENTIALS, logins=(), secrets={}))
    plan = plan_database(replace(resource(), finalizers=()), spec(), nothing, NOW)
    kinds = [type(step.action).__name__ for step in plan.steps]
    assert kinds == ["SetFinalizer", "IssueLogin", "IssueLogin"]


def test_a_database_with_indexes_waits_however_long_they_stay() -> None:
    plan = end(world({"in_use_by": ("team/a",)}), 100_000)

    assert SetFinalizer(present=False) not in [step.action for step in plan.steps]
    assert plan.blocked is not None
    assert plan.blocked.reason == Reason.IN_USE


def test_a_deleted_database_with_indexes_waits_and_goes_on_serving() -> None:
    plan = end(world({"in_use_by": ("team/a", "team/b")}))
    assert plan.steps == ()
    assert plan.blocked is not None
    assert (plan.blocked.reason, plan.blocked.stalled) == (Reason.IN_USE, False)
    assert "team/a, team/b" in plan.blocked.message


def test_a_deleted_database_revokes_its_logins_and_then_goes() -> None:
    plan = end(SETTLED)
    assert {type(step.action) for step in plan.steps} == {RevokeLogin}
    assert [step.action.drop_secret for step in plan.steps if isinstance(step.action, RevokeLogin)] == [
        ("rag", "polaris-query"),
        ("rag", "polaris-worker"),
    ]
    plan = end(world(credentials=replace(CREDENTIALS, logins=())))
    assert [step.action for step in plan.steps] == [SetFinalizer(present=False)]


def test_a_deleted_database_takes_the_own_logins_of_before_with_it_without_waiting() -> None:
    young = replace(OWN, issued_at=NOW - timedelta(seconds=2))
    settled = with_vault(BEFORE, PRESENT, now=young)
    assert settled.credentials is not None
    plan = end(replace(settled, credentials=replace(settled.credentials, logins=())))
    ended, *_roles, last = [step.action for step in plan.steps]
    assert ended == RevokeLogin(1, "v-1", "lease-1")
    assert last == SetFinalizer(present=False)


def test_a_deleted_database_whose_logins_cannot_be_revoked_goes_after_its_deadline() -> None:
    vault = with_vault(PRESENT, unavailable="sealed")
    plan = end(vault, 599)
    assert plan.steps == ()
    assert plan.blocked is not None
    assert [step.action for step in end(vault, 600).steps] == [SetFinalizer(present=False)]


def test_a_deleted_database_for_which_nothing_was_made_goes_at_once() -> None:
    nothing = replace(SETTLED, catalog=None, credentials=None, fence=None)
    assert [step.action for step in end(nothing).steps] == [SetFinalizer(present=False)]
    assert plan_database(deleted(1, ()), spec(), nothing, NOW).steps == ()


# --- what is said


def said(
    found: DatabaseWorld, plan: Plan, wanted: PolarisDatabaseSpec | None = None, **status: Any
) -> dict[str, tuple[str, str]]:
    made = database_status(resource(status=status), wanted or spec(), found, plan, NOW)
    return {one.type: (one.status, one.reason) for one in made.conditions}


def test_a_settled_database_is_ready_and_nothing_else() -> None:
    assert said(SETTLED, decide(SETTLED)) == {
        "Ready": ("True", "Ready"),
        "CredentialsFresh": ("True", "Fresh"),
    }


def test_status_says_versions_catalog_and_logins() -> None:
    made = plain(database_status(resource(), spec(), SETTLED, Plan(), NOW))
    assert made["observedGeneration"] == 3
    assert (made["serverVersion"], made["vectorVersion"]) == ("18.6", "0.8.6")
    assert (made["catalog"], made["catalogRevision"], made["indexes"]) == ("c", HEAD, 2)
    assert made["credentials"][0] == {
        "name": "query",
        "epoch": 1,
        "expiresAt": "2026-11-23T12:00:00Z",
        "sealToleranceSeconds": 43200,
        "acknowledged": 0,
        "consumers": 0,
        "late": [],
    }
    assert DatabaseStatus.model_validate(made)


def test_while_vault_is_away_and_the_logins_live_the_database_stays_ready() -> None:
    late = NOW + timedelta(hours=13)
    found = with_vault(PRESENT, unavailable="Vault is sealed")
    plan = plan_database(resource(), spec(), found, late)
    made = database_status(resource(), spec(), found, plan, late)
    assert {one.type: one.status for one in made.conditions} == {"Ready": "True", "CredentialsFresh": "False"}
    dead = NOW + timedelta(hours=25)
    plan = plan_database(resource(), spec(), found, dead)
    made = database_status(resource(), spec(), found, plan, dead)
    assert {one.type: one.status for one in made.conditions} == {
        "Ready": "False",
        "CredentialsFresh": "False",
        "Reconciling": "True",
    }


def test_the_time_of_a_condition_moves_only_with_its_status() -> None:
    first = plain(database_status(resource(), spec(), SETTLED, Plan(), NOW))
    later = NOW + timedelta(hours=1)
    same = plain(database_status(resource(status=first), spec(), SETTLED, Plan(), later))
    assert same == first
    broken = world(missing=(Grant.EXTENSION,))
    plan = decide(broken)
    changed = plain(database_status(resource(status=first), spec(), broken, plan, later))
    assert condition(changed, "Ready")["lastTransitionTime"] == "2026-11-22T13:00:00Z"


@pytest.mark.parametrize(
    ("said", "numbers"),
    [("0.8.10", (0, 8, 10)), ("0.8", (0, 8)), ("0.8.4-dev", (0, 8, 4)), ("18.6 (Debian)", (18, 6))],
)
def test_versions_compare_as_numbers(said: str, numbers: tuple[int, ...]) -> None:
    assert version(said) == numbers
