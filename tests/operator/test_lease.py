"""Which operator leads: what decides, the thread that asks, and the Lease of a real API server."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube.cluster import Cluster
from polaris.errors import ClusterUnavailable, Conflict, Prerequisite
from polaris_operator.kubernetes_api import KubernetesLease, KubernetesObjects, load_configuration
from polaris_operator.lease import (
    DURATION_SECONDS,
    GIVE_UP_SECONDS,
    RENEW_SECONDS,
    Candidate,
    Lease,
    Record,
    Seen,
    Term,
    given_back,
    lease_name,
    renewed,
    seen,
    taken,
    wait,
)
from polaris_operator.objects import Resource
from scenes.cluster import OPERATOR_ACCOUNT, OPERATOR_NAMESPACE, apply, eventually, get, lease_path, path

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RECORD = taken(None, "other", NOW)


# --- what decides


@pytest.mark.unit
def test_a_lease_that_nobody_holds_is_free_and_so_is_one_s_own() -> None:
    assert wait(None, "me", 100) == 0
    assert wait(Seen(given_back(RECORD, NOW), 100), "me", 100) == 0
    assert wait(Seen(taken(None, "me", NOW), 100), "me", 100) == 0


@pytest.mark.unit
def test_a_holder_is_dead_once_its_record_stood_still_for_so_long_as_it_says() -> None:
    known = seen(None, RECORD, 100)
    known = seen(known, RECORD, 110)
    assert wait(known, "me", 110) == DURATION_SECONDS - 10
    assert wait(known, "me", 100 + DURATION_SECONDS) == 0
    known = seen(known, renewed(RECORD, datetime.now(UTC)), 114)
    assert wait(known, "me", 114) == DURATION_SECONDS
    assert wait(seen(None, replace(RECORD, duration_seconds=60), 100), "me", 100) == 60


@pytest.mark.unit
def test_what_the_holder_s_clock_says_is_of_no_account() -> None:
    long_ago = renewed(RECORD, datetime(1970, 1, 1, tzinfo=UTC))
    assert wait(seen(None, long_ago, 100), "me", 100) == DURATION_SECONDS


@pytest.mark.unit
def test_a_label_that_somebody_puts_on_it_is_no_sign_of_life() -> None:
    known = seen(seen(None, RECORD, 100), replace(RECORD, version="2"), 110)
    assert (known.since, known.record.version) == (100, "2")


@pytest.mark.unit
def test_a_term_that_is_over_stays_over() -> None:
    clock = [0.0]
    term = Term(10, lambda: clock[0])
    term.go_on(12)
    clock[0] = 11.9
    term.check()
    clock[0] = 12
    with pytest.raises(Conflict):
        term.check()
    term.go_on(20)
    assert not term.held


@pytest.mark.unit
def test_installations_with_a_name_have_a_lease_of_their_own() -> None:
    names = [lease_name(installation) for installation in ("", "one", "two", "x" * 253)]
    assert len(set(names)) == 4
    assert max(map(len, names)) <= 63


# --- the Lease: a double, and a real one


@dataclass
class LeaseInMemory:
    """A Lease without a cluster; `away` is what becomes of the next calls."""

    record: Record | None = None
    version: int = 0
    away: str = ""

    def read(self) -> Record | None:
        if self.away:
            raise ClusterUnavailable("away")
        return self.record

    def write(self, record: Record) -> Record:
        if self.away == "before":
            raise ClusterUnavailable("away")
        if record.version != ("" if self.record is None else self.record.version):
            raise Conflict("no longer what was read")
        self.version += 1
        self.record = replace(record, version=str(self.version))
        if self.away == "after":
            raise ClusterUnavailable("the answer is lost")
        return self.record


@pytest.fixture(scope="session")
def reach(installed_cluster: Cluster) -> KubernetesObjects:
    config = installed_cluster.kubeconfig_for(OPERATOR_NAMESPACE, OPERATOR_ACCOUNT)
    return KubernetesObjects(load_configuration(str(config)))


@pytest.fixture
def real(installed_cluster: Cluster, reach: KubernetesObjects) -> Iterator[Lease]:
    yield KubernetesLease(reach, OPERATOR_NAMESPACE, lease_name(""))
    installed_cluster.api("DELETE", lease_path())


@pytest.fixture(params=["in memory", pytest.param("real", marks=pytest.mark.kubernetes)])
def lease(request: pytest.FixtureRequest) -> Lease:
    found: Lease = LeaseInMemory() if request.param == "in memory" else request.getfixturevalue("real")
    return found


def test_a_lease_is_what_was_written_last_and_only_who_read_that_may_write(lease: Lease) -> None:
    assert lease.read() is None
    first = lease.write(RECORD)
    assert lease.read() == first == replace(RECORD, version=first.version)
    second = lease.write(renewed(first, datetime.now(UTC)))
    assert lease.read() == second
    assert second.version != first.version
    for late in (RECORD, first):
        with pytest.raises(Conflict):
            lease.write(late)
    assert lease.read() == second
    back = lease.write(given_back(second, datetime.now(UTC)))
    found = lease.read()
    assert found is not None
    assert found.holder == ""
    assert lease.write(taken(Seen(found, 0), "me", NOW)).transitions == back.transitions + 1


@pytest.mark.kubernetes
def test_the_operator_may_have_no_lease_but_its_own(real: Lease, reach: KubernetesObjects) -> None:
    assert real.read() is None
    with pytest.raises(Prerequisite):
        KubernetesLease(reach, OPERATOR_NAMESPACE, "another").read()
    with pytest.raises(Prerequisite):
        KubernetesLease(reach, "default", lease_name("")).write(RECORD)


@pytest.fixture
def owner(installed_cluster: Cluster) -> Iterator[Resource]:
    """An object that is there: what is owned by one that is not, Kubernetes collects at any moment."""
    key = apply(
        installed_cluster,
        {
            "apiVersion": "polaris.dev/v1alpha1",
            "kind": "PolarisDatabase",
            "metadata": {"name": "owner", "namespace": OPERATOR_NAMESPACE},
            "spec": {"host": "db", "database": "polaris", "credentials": {"secretRef": {"name": "admin"}}},
        },
    )
    found = get(installed_cluster, key)
    assert found is not None
    metadata = found["metadata"]
    yield Resource(key, metadata["uid"], 1, metadata["resourceVersion"], found["spec"])
    installed_cluster.api("DELETE", path(key))


@pytest.mark.kubernetes
def test_who_leads_no_more_writes_nothing_and_still_reads(owner: Resource, reach: KubernetesObjects) -> None:
    term = Term(float("inf"))
    ours = reach.during(term.check)
    where = (OPERATOR_NAMESPACE, f"made-{secrets.token_hex(4)}")
    ours.write_secret(*where, {"a": "1"}, owner)
    term.end()
    for write in (
        lambda: ours.write_status(owner, {}),
        lambda: ours.set_finalizer(owner, present=True),
        lambda: ours.write_secret(*where, {"a": "2"}, owner),
        lambda: ours.delete_secret(*where, owner),
        lambda: ours.service_account_token(OPERATOR_NAMESPACE, OPERATOR_ACCOUNT, "vault"),
    ):
        with pytest.raises(Conflict, match="does not lead"):
            write()
    found = ours.secret(*where)
    assert found is not None
    assert found.data == {"a": "1"}
    reach.delete_secret(*where, owner)


# --- who asks


@dataclass
class Replica:
    """A candidate that a test steps, with a clock that began at another time than everybody else's."""

    lease: Lease
    name: str
    true: Callable[[], float]
    skew: float = 0.0
    terms: list[Term] = field(default_factory=list)
    left: int = 0

    def __post_init__(self) -> None:
        self.candidate = Candidate(self.lease, self.name, self.terms.append, self.leave, self.now)

    def now(self) -> float:
        return self.true() + self.skew

    def leave(self) -> None:
        self.left += 1

    def step(self) -> float:
        try:
            return self.candidate.step()
        except ClusterUnavailable:
            return RENEW_SECONDS


@dataclass
class World:
    lease: LeaseInMemory = field(default_factory=LeaseInMemory)
    at: float = 0.0

    def replica(self, name: str, skew: float = 0.0) -> Replica:
        return Replica(self.lease, name, lambda: self.at, skew)


@pytest.mark.unit
def test_one_leads_the_other_stands_by_and_goes_on_once_the_first_is_silent() -> None:
    world = World()
    one, two = world.replica("one"), world.replica("two", skew=1e6)
    one.step()
    for _ in range(20):
        two.step()
        world.at += RENEW_SECONDS
        one.step()
    assert (one.candidate.leads(), two.candidate.leads()) == (True, False)
    silent = world.at
    while not two.candidate.leads():
        world.at += two.step()
    assert DURATION_SECONDS <= world.at - silent <= DURATION_SECONDS + RENEW_SECONDS + 0.01
    assert not one.candidate.leads()
    assert one.left == 0
    one.step()  # It wakes.
    assert one.left == 1
    one.step()
    assert len(one.terms) == 1


@pytest.mark.unit
def test_what_is_given_back_is_taken_at_the_next_look() -> None:
    world = World()
    one, two = world.replica("one"), world.replica("two")
    one.step()
    two.step()
    one.candidate.retire()
    world.at += RENEW_SECONDS
    one.step()
    assert one.candidate.leads(), "kept until the work has ended"
    one.candidate.release()
    assert not one.candidate.leads()
    two.step()
    assert two.candidate.leads()
    one.step()
    assert len(one.terms) == 1


@pytest.mark.unit
def test_an_api_server_that_is_away_for_a_moment_ends_no_term_and_for_longer_it_does() -> None:
    world = World()
    one = world.replica("one")
    one.step()
    (term,) = one.terms
    for away in ("before", "after"):
        world.lease.away = away
        for _ in range(3):
            world.at += RENEW_SECONDS
            one.step()
        world.lease.away = ""
        one.step()
        one.step()
        assert term.held
    world.lease.away = "before"
    world.at += GIVE_UP_SECONDS
    assert not term.held, "whether or not it was noticed"
    one.step()
    assert one.left == 1
    world.lease.away = ""
    one.step()
    assert len(one.terms) == 2, "nobody else took it meanwhile"
    assert not term.held


@pytest.mark.unit
def test_a_lease_that_somebody_else_wrote_or_removed_ends_the_term_at_once() -> None:
    for removed in (True, False):
        world = World()
        one = world.replica("one")
        one.step()
        world.lease.record = None if removed else replace(RECORD, version="9")
        one.step()
        assert one.left == 1
        assert not one.terms[0].held


ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([0.0, RENEW_SECONDS, GIVE_UP_SECONDS, DURATION_SECONDS + 0.5, 40.0]),
        st.sampled_from(["", "", "", "before", "after"]),
    ),
    max_size=60,
)


@pytest.mark.unit
@given(ACTIONS)
def test_at_no_moment_do_two_lead(actions: list[tuple[int, float, str]]) -> None:
    """However long each is frozen, whatever its clock says, and whichever calls or answers are lost."""
    world = World()
    replicas = [world.replica(str(number), skew=number * 1e5) for number in range(3)]
    for who, passes, away in actions:
        world.at += passes
        world.lease.away = away
        replicas[who].step()
        assert sum(replica.candidate.leads() for replica in replicas) <= 1
        assert sum(term.held for replica in replicas for term in replica.terms) <= 1


@pytest.mark.kubernetes
def test_two_threads_and_a_real_lease(real: Lease) -> None:
    leads: list[str] = []
    over = threading.Event()
    one = Candidate(real, f"one_{secrets.token_hex(2)}", lambda _: leads.append("one"), over.set)
    two = Candidate(real, f"two_{secrets.token_hex(2)}", lambda _: leads.append("two"), over.set)
    one.start()
    eventually("the first to lead", one.leads)
    two.start()
    eventually("the second to ask", lambda: two.answered)
    assert leads == ["one"]
    one.release()
    eventually("the second to lead", two.leads)
    two.release()
    assert leads == ["one", "two"]
    assert not over.is_set(), "nobody lost it"
