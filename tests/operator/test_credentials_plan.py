"""What is decided about logins, as sentences, and for any world that can be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris import names
from polaris.status import Reason
from polaris_operator import ledger
from polaris_operator.conditions.credentials import fresh, lines, unfit
from polaris_operator.plan.credentials import REQUEST_SECONDS, current_login, plan_credentials
from polaris_operator.steps import (
    Execute,
    IssueLogin,
    RedirectLogin,
    RevokeLease,
    RevokeLogin,
    Step,
    WriteVaultRole,
)
from polaris_operator.world.credentials import (
    ConsumerSeen,
    CredentialsWorld,
    Login,
    SecretSeen,
    State,
    VaultSeen,
    Wanted,
)

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LIFE = timedelta(hours=24)
OWNER, UID = "database/rag/main", "uid-1"
QUERY = Wanted("query", "polaris_c_query", ("rag", "polaris-query"))
ROLE = names.vault_role("c", QUERY.group_role)


HOUR = timedelta(hours=1)


def hours(number: float) -> timedelta:
    return timedelta(hours=number)


def login(epoch: int = 1, state: State = "published", age: timedelta = HOUR, **other: object) -> Login:
    issued = state != "requested"
    made = Login(
        id=epoch,
        name="query",
        epoch=epoch,
        group_role=QUERY.group_role,
        source="vault",
        state=state,
        secret=QUERY.secret,
        requested_at=NOW - age,
        username=f"v-{epoch}" if issued else None,
        lease_id=f"lease-{epoch}" if issued else None,
        issued_at=NOW - age if issued else None,
        expires_at=NOW - age + LIFE if issued else None,
        role_exists=issued,
    )
    return replace(made, **other)  # type: ignore[arg-type]


def world(*logins: Login, holds: int | None = None, **other: object) -> CredentialsWorld:
    """A world in which the Secret holds an epoch, and Vault has the role."""
    secrets = {} if holds is None else {QUERY.secret: SecretSeen(UID, holds, intact=True)}
    made = CredentialsWorld(
        owner=OWNER,
        owner_uid=UID,
        catalog="c",
        logins=logins,
        last_epochs={"query": max((one.epoch for one in logins), default=0)},
        secrets=secrets,
        vault=VaultSeen(frozenset({ROLE})),
    )
    return replace(made, **other)  # type: ignore[arg-type]


def says(step: Step) -> str:
    """A step in a few words."""
    match step.action:
        case IssueLogin(epoch=epoch):
            said = f"issue {epoch}"
        case RedirectLogin(epoch=epoch):
            said = f"redirect {epoch}"
        case RevokeLogin(credential=credential, drop_secret=drop):
            said = f"revoke {credential}{' with its Secret' if drop else ''}"
        case RevokeLease(lease_id=lease):
            said = f"revoke lease {lease}"
        case WriteVaultRole():
            said = "write role"
        case Execute(statements=(statement,)):
            said = statement
        case _:
            said = "mark published"
    return said


def superseded(epoch: int, since: timedelta, **other: object) -> Login:
    return login(epoch, "superseded", hours(13), superseded_at=NOW - since, **other)


SENTENCES: list[tuple[str, CredentialsWorld, list[str], Reason | None]] = [
    ("none there: the first is issued", world(), ["issue 1"], Reason.LOGIN_MISSING),
    ("a fresh one, published: nothing", world(login(), holds=1), [], None),
    (
        "Vault has no role: it is written before",
        world(vault=VaultSeen()),
        ["write role", "issue 1"],
        Reason.ROLE_MISSING,
    ),
    (
        "at half of its life: the next is issued",
        world(login(age=hours(12)), holds=1),
        ["issue 2"],
        Reason.LOGIN_EXPIRING,
    ),
    ("a moment before: nothing", world(login(age=hours(11.99)), holds=1), [], None),
    ("an epoch is never used twice", world(last_epochs={"query": 7}), ["issue 8"], Reason.LOGIN_MISSING),
    ("the Secret is gone: anew", world(login()), ["issue 2"], Reason.SECRET_MISSING),
    (
        "the Secret was altered: anew",
        world(login(), secrets={QUERY.secret: SecretSeen(UID, 1, intact=False)}),
        ["issue 2"],
        Reason.DRIFTED,
    ),
    (
        "only where it leads has changed: the same login is written again",
        world(login(), secrets={QUERY.secret: SecretSeen(UID, 1, intact=False, elsewhere=True)}),
        ["redirect 1"],
        Reason.SPEC_CHANGED,
    ),
    (
        "that has changed and it is past half of its life: the next is issued",
        world(login(age=hours(12)), secrets={QUERY.secret: SecretSeen(UID, 1, intact=False, elsewhere=True)}),
        ["issue 2"],
        Reason.LOGIN_EXPIRING,
    ),
    (
        "the role was dropped: anew",
        world(login(role_exists=False), holds=1),
        ["issue 2"],
        Reason.LOGIN_MISSING,
    ),
    (
        "another Secret is wanted: anew, and the old login goes with its Secret after the overlap",
        world(login(secret=("rag", "other"))),
        ["issue 2"],
        Reason.SPEC_CHANGED,
    ),
    (
        "Vault instead of the operator: anew",
        world(login(source="operator"), holds=1),
        ["issue 2"],
        Reason.SPEC_CHANGED,
    ),
    (
        "crashed after the Secret was written: only the ledger learns",
        world(login(2, "issued"), login(1), holds=2),
        ["mark published"],
        Reason.LOGIN_MISSING,
    ),
    (
        "crashed before the Secret was written: the next epoch, and what nobody knows goes",
        world(login(2, "issued"), login(1, age=hours(12)), holds=1),
        ["issue 3", "revoke 2"],
        Reason.LOGIN_EXPIRING,
    ),
    (
        "crashed while Vault was asked, a moment ago: the next epoch; whether a lease came is seen later",
        world(login(1, "requested", timedelta(seconds=5))),
        ["issue 2"],
        Reason.LOGIN_MISSING,
    ),
    (
        "crashed while Vault was asked, long ago, leases not looked for: the row stays open",
        world(login(2), login(1, "requested"), holds=2),
        [],
        None,
    ),
    (
        "crashed while Vault was asked: the lease that nobody knows goes, then the row is closed",
        world(
            login(2),
            login(1, "requested"),
            holds=2,
            vault=VaultSeen(frozenset({ROLE}), orphans=("x",)),
        ),
        ["revoke lease x", "revoke 1"],
        Reason.LOGIN_SUPERSEDED,
    ),
    (
        "crashed while Vault was asked, and Vault forgot the login: it is dropped",
        world(
            login(2),
            login(1, "requested"),
            holds=2,
            vault=VaultSeen(frozenset({ROLE}), orphans=(), strays=("v-lost",)),
        ),
        ['DROP ROLE IF EXISTS "v-lost"', "revoke 1"],
        Reason.LOGIN_SUPERSEDED,
    ),
    (
        "crashed while the operator made a login itself: it is known by its name and goes at once",
        world(
            login(2, source="operator"),
            login(1, "requested", timedelta(seconds=1), source="operator"),
            holds=2,
            vault=None,
        ),
        ["revoke 1"],
        Reason.LOGIN_SUPERSEDED,
    ),
    (
        "superseded, within the overlap: it stays",
        world(login(2), superseded(1, timedelta(seconds=299)), holds=2),
        [],
        None,
    ),
    (
        "superseded, and nobody uses it: it goes",
        world(login(2), superseded(1, timedelta(seconds=300)), holds=2),
        ["revoke 1"],
        Reason.LOGIN_SUPERSEDED,
    ),
    (
        "superseded, and somebody still uses it: it stays beyond the overlap",
        world(
            login(2),
            superseded(1, hours(5)),
            holds=2,
            consumers=(ConsumerSeen("query", "v-1", 1), ConsumerSeen("query", "v-2", 2)),
        ),
        [],
        None,
    ),
    (
        "expired while somebody still claims to use it: the row is closed",
        world(
            login(2),
            superseded(1, hours(5), expires_at=NOW - hours(1)),
            holds=2,
            consumers=(ConsumerSeen("query", "v-1", 1),),
        ),
        ["revoke 1"],
        Reason.LOGIN_SUPERSEDED,
    ),
    (
        "superseded, and its role is gone already: the row is closed",
        world(login(2), superseded(1, timedelta(0), role_exists=False), holds=2),
        ["revoke 1"],
        Reason.LOGIN_SUPERSEDED,
    ),
    (
        "nobody wants the login any more: it goes with its Secret",
        world(login(), login(2, name="other", secret=("rag", "old")), holds=1),
        ["revoke 2 with its Secret"],
        Reason.LOGIN_REMOVED,
    ),
    (
        "issued by a Vault that the spec no longer names: it stays until its lease ends",
        world(
            login(2, source="operator"),
            superseded(1, hours(5)),
            holds=2,
            vault=None,
        ),
        [],
        None,
    ),
]


@pytest.mark.parametrize(
    ("found", "steps", "reason"), [case[1:] for case in SENTENCES], ids=[case[0] for case in SENTENCES]
)
def test_what_is_done_about_a_login(found: CredentialsWorld, steps: list[str], reason: Reason | None) -> None:
    plan = plan_credentials([QUERY], found, NOW)
    assert [says(step) for step in plan.steps] == steps
    assert plan.blocked is None
    if plan.steps:
        assert plan.steps[0].reason == reason


def test_a_secret_of_somebody_else_is_never_overwritten_and_a_person_is_told() -> None:
    found = world(secrets={QUERY.secret: SecretSeen(None, None, intact=False)})
    plan = plan_credentials([QUERY], found, NOW)
    assert plan.steps == ()
    assert plan.blocked is not None
    assert (plan.blocked.reason, plan.blocked.stalled) == (Reason.SECRET_NOT_OURS, True)
    assert "rag/polaris-query" in plan.blocked.message


def test_one_secret_of_somebody_else_does_not_keep_the_other_login_from_being_issued() -> None:
    worker = Wanted("worker", "polaris_c_worker", ("rag", "polaris-worker"))
    found = world(secrets={QUERY.secret: SecretSeen("theirs", None, intact=False)})
    plan = plan_credentials([QUERY, worker], found, NOW)
    assert [step.action.name for step in plan.steps if isinstance(step.action, IssueLogin)] == ["worker"]


def test_while_vault_is_away_nothing_is_issued_or_revoked_and_it_is_looked_again_soon() -> None:
    found = world(
        login(2, age=hours(13)), superseded(1, hours(1)), holds=2, vault=VaultSeen(unavailable="sealed")
    )
    plan = plan_credentials([QUERY], found, NOW)
    assert plan.steps == ()
    assert plan.blocked is not None
    assert (plan.blocked.reason, plan.blocked.stalled) == (Reason.VAULT_UNAVAILABLE, False)
    assert plan.look_again_seconds == 10


def test_while_vault_is_away_and_nothing_is_due_nothing_is_in_the_way() -> None:
    found = world(login(), holds=1, vault=VaultSeen(unavailable="sealed"))
    assert plan_credentials([QUERY], found, NOW).blocked is None


def test_it_is_looked_again_when_the_first_thing_is_due() -> None:
    found = world(login(2, age=hours(11)), superseded(1, timedelta(seconds=100)), holds=2)
    assert plan_credentials([QUERY], found, NOW).look_again_seconds == 200
    assert plan_credentials([QUERY], world(login(age=hours(11)), holds=1), NOW).look_again_seconds == 3600


# --- what is said


def test_a_login_that_works_and_is_not_due_is_fresh() -> None:
    assert fresh([QUERY], world(login(), holds=1), NOW).status == "True"


def test_past_half_of_its_life_a_login_is_fit_and_not_fresh() -> None:
    found = world(login(age=hours(13)), holds=1, vault=VaultSeen(unavailable="Vault is sealed"))
    assert unfit(QUERY, found, NOW) is None
    said = fresh([QUERY], found, NOW)
    assert (said.status, said.reason) == ("False", Reason.VAULT_UNAVAILABLE)
    assert "sealed" in said.message


@pytest.mark.parametrize(
    "found",
    [
        world(),
        world(login()),
        world(login(role_exists=False), holds=1),
        world(login(age=hours(25)), holds=1),
        world(login(), secrets={QUERY.secret: SecretSeen("theirs", 1, intact=True)}),
    ],
    ids=["none", "no Secret", "no role", "expired", "Secret of somebody else"],
)
def test_a_login_that_nobody_can_use_is_unfit(found: CredentialsWorld) -> None:
    assert unfit(QUERY, found, NOW) is not None


def test_the_line_of_a_login_counts_who_has_followed() -> None:
    consumers = (
        ConsumerSeen("query", "v-2", 2),
        ConsumerSeen("query", "v-1", 1),
        ConsumerSeen("worker", "w-2", 2),
    )
    (line,) = lines([QUERY], world(login(2), holds=2, consumers=consumers))
    assert (line.epoch, line.acknowledged, line.consumers) == (2, 1, 2)


# --- any world that can be


@dataclass
class Simulated:
    """What `apply` would make of the world."""

    world: CredentialsWorld
    now: datetime
    asked: int = 100

    def apply(self, steps: Iterable[Step]) -> None:
        for step in steps:
            match step.action:
                case IssueLogin() as action:
                    self._issue(action)
                case RedirectLogin(epoch=epoch, secret_namespace=namespace, secret_name=name):
                    secret = {(namespace, name): SecretSeen(UID, epoch, intact=True)}
                    self.world = replace(self.world, secrets={**self.world.secrets, **secret})
                case RevokeLogin(credential=credential, drop_secret=drop):
                    self._keep(one for one in self.world.logins if one.id != credential)
                    secrets = {k: v for k, v in self.world.secrets.items() if k != drop}
                    self.world = replace(self.world, secrets=secrets)
                case RevokeLease(lease_id=lease):
                    assert self.world.vault is not None
                    left = tuple(x for x in self.world.vault.orphans or () if x != lease)
                    self.world = replace(self.world, vault=replace(self.world.vault, orphans=left))
                case WriteVaultRole(role=role):
                    assert self.world.vault is not None
                    vault = replace(self.world.vault, roles=self.world.vault.roles | {role})
                    self.world = replace(self.world, vault=vault)
                case Execute(statements=(drop,)):
                    assert self.world.vault is not None
                    strays = tuple(x for x in self.world.vault.strays if f'"{x}"' not in drop)
                    self.world = replace(self.world, vault=replace(self.world.vault, strays=strays))
                case Execute() as action:
                    self._publish(self._named(action))
                case other:
                    raise AssertionError(other)

    def _named(self, action: Execute) -> Login:
        return next(
            one for one in self.world.logins if ledger.published(one.id, OWNER, one.name) == action.statements
        )

    def _issue(self, action: IssueLogin) -> None:
        self.asked += 1
        assert action.epoch > self.world.last_epochs.get(action.name, 0)
        made = Login(
            self.asked,
            action.name,
            action.epoch,
            action.group_role,
            "operator" if self.world.vault is None else "vault",
            "issued",
            (action.secret_namespace, action.secret_name),
            self.now,
            f"v-{self.asked}",
            f"lease-{self.asked}",
            self.now,
            self.now + LIFE,
            overlap_seconds=action.overlap_seconds,
        )
        self._keep([*self.world.logins, made])
        self.world = replace(
            self.world,
            secrets={**self.world.secrets, made.secret: SecretSeen(UID, made.epoch, intact=True)},
            last_epochs={**self.world.last_epochs, made.name: made.epoch},
        )
        self._publish(made)

    def _publish(self, made: Login) -> None:
        self._keep(
            replace(one, state="published")
            if one.id == made.id
            else replace(one, state="superseded", superseded_at=self.now)
            if (one.name, one.state) == (made.name, "published")
            else one
            for one in self.world.logins
        )

    def _keep(self, logins: Iterable[Login]) -> None:
        self.world = replace(self.world, logins=tuple(logins))


_WANTED = st.lists(
    st.builds(
        lambda name, secret, overlap: Wanted(name, f"polaris_c_{name}", ("rag", f"{name}-{secret}"), overlap),
        st.sampled_from(["query", "worker", "third"]),
        st.sampled_from(["old", "new"]),
        st.sampled_from([0, 300]),
    ),
    unique_by=lambda wanted: wanted.name,
    max_size=3,
)


@st.composite
def worlds(draw: st.DrawFn) -> CredentialsWorld:
    """Ledgers as crashes leave them: any states, at most one published a name, Secrets of any epoch."""
    logins: list[Login] = []
    secrets = {}
    for name in ("query", "worker", "third"):
        states = draw(st.lists(st.sampled_from(["requested", "issued", "superseded"]), max_size=3))
        states += draw(st.sampled_from([[], ["published"], ["published", "issued"]]))
        for epoch, state in enumerate(states, start=1):
            age = draw(st.sampled_from([timedelta(seconds=3), hours(1), hours(13), hours(30)]))
            secret = ("rag", f"{name}-{draw(st.sampled_from(['old', 'new']))}")
            made = login(
                epoch,
                state,  # type: ignore[arg-type]
                age,
                id=len(logins) + 1,
                name=name,
                group_role=f"polaris_c_{name}",
                secret=secret,
                source=draw(st.sampled_from(["vault", "operator"])),
                superseded_at=NOW - age / 2 if state == "superseded" else None,
                overlap_seconds=draw(st.sampled_from([0, 300])),
            )
            made = replace(made, username=made.username and f"v-{name}-{epoch}")
            if state != "requested":
                made = replace(made, role_exists=draw(st.booleans()))
            logins.append(made)
            if draw(st.booleans()):
                intact, elsewhere = draw(st.sampled_from([(True, False), (False, True), (False, False)]))
                secrets[secret] = SecretSeen(UID, epoch, intact, elsewhere)
    lost = st.lists(st.sampled_from("xyz"), unique=True).map(tuple)
    vault = VaultSeen(orphans=draw(lost), strays=draw(lost))
    used = draw(st.lists(st.sampled_from([one.username for one in logins] or [None]), max_size=3))
    return world(
        *logins,
        secrets=secrets,
        last_epochs={
            name: max((one.epoch for one in logins if one.name == name), default=0)
            for name in ("query", "worker", "third")
        },
        consumers=tuple(ConsumerSeen("query", name, 1) for name in used if name),
        vault=draw(st.sampled_from([vault, None])),
    )


@given(_WANTED, worlds())
def test_for_any_world_a_few_rounds_settle_it_and_nobody_is_cut_off(
    wanted: list[Wanted], found: CredentialsWorld
) -> None:
    simulated = Simulated(found, NOW)
    names_ = {one.name for one in wanted}
    used = {consumer.username for consumer in found.consumers}
    for _ in range(4):
        plan = plan_credentials(wanted, simulated.world, NOW)
        assert plan.blocked is None
        if not plan.steps:
            break
        for step in plan.steps:
            if isinstance(step.action, RevokeLogin):
                (gone,) = (x for x in simulated.world.logins if x.id == step.action.credential)
                live = gone.role_exists and (gone.expires_at is None or gone.expires_at > NOW)
                assert not (gone.username in used and live and gone.name in names_ and gone.state != "issued")
        simulated.apply(plan.steps)
    else:
        raise AssertionError(f"does not settle: {[step.sentence for step in plan.steps]}")
    for one in wanted:
        current = current_login(one, simulated.world)
        assert current is not None
        assert unfit(one, simulated.world, NOW) is None
        published = [x for x in simulated.world.logins if (x.name, x.state) == (one.name, "published")]
        assert published == [current]
    assert fresh(wanted, simulated.world, NOW).status == "True"


@given(worlds())
def test_for_any_world_when_nothing_is_wanted_nothing_but_what_has_to_be_waited_for_is_left(
    found: CredentialsWorld,
) -> None:
    simulated = Simulated(found, NOW)
    simulated.apply(plan_credentials((), found, NOW).steps)
    assert plan_credentials((), simulated.world, NOW).steps == ()
    for left in simulated.world.logins:
        assert left.source == "vault"
        assert simulated.world.vault is None
        assert left.role_exists


def test_a_row_waits_no_longer_than_a_request_may_take() -> None:
    asked = login(1, "requested", timedelta(seconds=REQUEST_SECONDS - 10))
    assert plan_credentials([QUERY], world(login(2), asked, holds=2), NOW).look_again_seconds == 10
