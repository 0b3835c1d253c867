"""The queue of keys: once each, one worker a key, later and later after failures."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_operator.queue import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, Queue, delay

pytestmark = pytest.mark.unit


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make() -> tuple[Queue[str], Clock]:
    clock = Clock()
    return Queue(clock, lambda: 0.0), clock


def take(queue: Queue[str]) -> str | None:
    return queue.take(timeout=0)


def test_a_key_that_was_added_often_is_handed_out_once() -> None:
    queue, _ = make()
    for _time in range(3):
        queue.add("a")
    assert take(queue) == "a"
    assert take(queue) is None


def test_a_key_is_not_handed_out_while_somebody_has_it() -> None:
    queue, _ = make()
    queue.add("a")
    take(queue)
    queue.add("a")
    assert take(queue) is None


def test_a_key_added_meanwhile_is_looked_at_once_more() -> None:
    queue, _ = make()
    queue.add("a")
    take(queue)
    queue.add("a")
    queue.done("a")
    assert take(queue) == "a"


def test_a_key_comes_back_when_it_is_due_and_not_before() -> None:
    queue, clock = make()
    queue.add("a")
    take(queue)
    queue.done("a", again_after=60)
    clock.now = 59.9
    assert take(queue) is None
    clock.now = 60.0
    assert take(queue) == "a"


def test_an_event_brings_forward_what_was_due_later() -> None:
    queue, _ = make()
    queue.add_after("a", 60)
    queue.add("a")
    assert take(queue) == "a"
    queue.done("a")
    assert take(queue) is None


def test_the_earliest_of_two_wishes_wins_for_a_key_that_somebody_has() -> None:
    queue, clock = make()
    queue.add("a")
    take(queue)
    queue.add_after("a", 5)
    queue.done("a", again_after=60)
    clock.now = 5.0
    assert take(queue) == "a"


def test_a_failed_key_comes_back_after_a_delay_that_a_success_resets() -> None:
    queue, clock = make()
    queue.add("a")
    for failures in (1, 2, 3):
        assert take(queue) == "a"
        queue.failed("a")
        assert queue.failing == 1
        assert take(queue) is None
        clock.now += delay(failures, 0.0)
    take(queue)
    queue.done("a", again_after=0)
    assert queue.failing == 0
    take(queue)
    queue.failed("a")
    clock.now += delay(1, 0.0)
    assert take(queue) == "a"


def test_a_failed_key_comes_back_when_it_has_to_be_looked_at_whatever_its_delay() -> None:
    queue, clock = make()
    queue.add("a")
    for _ in range(10):
        take(queue)
        queue.failed("a", longest=0.5)
        assert take(queue) is None
        clock.now += 0.5
    assert take(queue) == "a"


def test_a_waiting_worker_is_woken_by_a_key_and_by_the_end() -> None:
    queue: Queue[str] = Queue()
    taken: list[str | None] = []
    worker = threading.Thread(target=lambda: taken.extend([queue.take(), queue.take()]))
    worker.start()
    queue.add("a")
    queue.close()
    worker.join(10)
    assert not worker.is_alive()
    assert set(taken) <= {"a", None}
    assert queue.take() is None


@given(st.integers(1, 200), st.floats(0, 1, exclude_max=True))
def test_delays_grow_stay_within_bounds_and_are_spread(failures: int, jitter: float) -> None:
    found = delay(failures, jitter)
    assert FIRST_DELAY_SECONDS / 2 <= found <= LONGEST_DELAY_SECONDS
    assert delay(failures + 1, jitter) >= found


_ACTIONS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abc"), st.floats(0, 10)),
    st.tuples(st.just("take"), st.just(""), st.just(0.0)),
    st.tuples(st.just("done"), st.sampled_from("abc"), st.floats(0, 10)),
    st.tuples(st.just("failed"), st.sampled_from("abc"), st.just(0.0)),
    st.tuples(st.just("wait"), st.just(""), st.floats(0, 20)),
)


@given(st.lists(_ACTIONS, max_size=60))
def test_no_key_is_lost_none_is_with_two_workers_and_none_comes_early(
    actions: list[tuple[str, str, float]],
) -> None:
    """A key that was added after it was last taken is handed out in the end, at its time."""
    queue, clock = make()
    held: set[str] = set()
    owed: dict[str, float] = {}
    for action, key, seconds in actions:
        if action == "add":
            queue.add_after(key, seconds)
            owed[key] = min(owed.get(key, float("inf")), clock.now + seconds)
        elif action == "take" and (got := take(queue)) is not None:
            assert got not in held
            assert clock.now >= owed.pop(got)
            held.add(got)
        elif action == "done" and key in held:
            held.remove(key)
            queue.done(key, seconds)
            owed[key] = min(owed.get(key, float("inf")), clock.now + seconds)
        elif action == "failed" and key in held:
            held.remove(key)
            queue.failed(key)
            owed[key] = min(owed.get(key, float("inf")), clock.now)
        elif action == "wait":
            clock.now += seconds
    for key in list(held):
        queue.done(key)
    clock.now += 1000
    found = set()
    while (got := take(queue)) is not None:
        found.add(got)
    assert found == set(owed)
