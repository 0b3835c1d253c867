from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from operator_index.place import PATIENCE_SECONDS, Place
from operator_index.worlds import NOW
from polaris.status import CandidateStatus
from polaris_operator.conditions import index, progress, shared
from polaris_operator.objects import Key
from polaris_operator.world.index import Build
from soak import SOAKING, times

LOADING = "building index: loading tuples"
WAITING = "waiting for writers before build"


def build(done: int, total: int = 1000, phase: str = LOADING, **changes: Any) -> Build:
    made = Build(42, "g1_chunks", None, frozenset(), phase, done, total, NOW)
    return replace(made, **changes)


def plain(found: CandidateStatus) -> dict[str, Any]:
    """As it stands in a status."""
    return dict(shared._seconds(found.model_dump(mode="python", by_alias=True, exclude_none=True)))


def seen(*looks: tuple[float, Build], fitting: float = 1.0) -> CandidateStatus:
    """What is said after looks at a build, each so many seconds after it began; by a new operator each."""
    said: dict[str, Any] = {}
    for seconds, one in looks:
        found = progress.candidate(1, one, NOW + timedelta(seconds=seconds), said, fitting)
        said = plain(found)
    return found


def end(found: CandidateStatus) -> float:
    """Seconds from the beginning of the build to its estimated end."""
    assert found.estimated_completion is not None
    return (found.estimated_completion - NOW).total_seconds()


@pytest.mark.unit
class TestWhatIsSaid:
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
    @pytest.mark.parametrize("growth", [1.0, 1.2])
    def test_the_end_is_known_within_a_quarter_from_a_fifth_on(self, share: float, growth: float) -> None:
        found = seen((1000 * share**growth, build(int(1000 * share))))

        assert 750 < end(found) < 1250

    def test_what_it_waited_for_says_nothing_about_how_fast_it_is(self) -> None:
        found = seen(
            (5, build(0, 0, WAITING)), (3600, build(0)), (3605, build(10)), (3800, build(250)), fitting=1.0
        )

        assert end(found) == pytest.approx(3600 + 200 * 4**1.1, rel=0.02)

    def test_rows_whose_graph_has_no_room_in_memory_take_longer(self) -> None:
        roomy, tight = (seen((100, build(300)), fitting=fitting) for fitting in (1.0, 0.5))

        assert end(tight) > 1.5 * end(roomy)

    def test_once_memory_is_full_the_pace_is_measured_anew(self) -> None:
        looks = ((100, build(300)), (200, build(500)), (700, build(700)))

        assert end(seen(*looks, fitting=0.5)) > 1300
        assert end(seen(*looks, fitting=1.0)) < 1300

    def test_a_new_operator_goes_on_with_what_the_status_says(self) -> None:
        before = seen((5, build(0, 0, WAITING)), (600, build(0)), (700, build(200)))
        unknown = progress.candidate(1, build(300), NOW + timedelta(seconds=750), {}, 1.0)
        known = progress.candidate(1, build(300), NOW + timedelta(seconds=750), plain(before), 1.0)

        assert end(known) < 1400 < end(unknown)

    def test_what_was_said_of_another_build_is_forgotten(self) -> None:
        old = plain(seen((100, build(900))))
        later = replace(build(10), started_at=NOW + timedelta(hours=1))

        found = progress.candidate(1, later, NOW + timedelta(hours=1, seconds=3), old, 1.0)

        assert found.pace_since == NOW + timedelta(hours=1)
        assert found.progress == "0%"

    def test_nobody_knows_when_a_wait_ends(self) -> None:
        found = seen((100, build(400)), (500, build(0, 0, "waiting for old snapshots", blocked_by=("anna",))))

        assert found.estimated_completion is None
        assert found.progress == "99%"
        assert found.blocked_by == "anna"

    def test_a_status_changes_every_thirty_seconds_or_five_percent(self) -> None:
        said, written = plain(seen((60, build(200)))), 0
        for second in range(61, 361):
            done = 200 + (second - 60) * 10 // 30  # Of a percent in thirty seconds one.
            now = NOW + timedelta(seconds=second)
            found = plain(progress.candidate(1, build(done), now, said, 1.0))
            written += found != said
            said = found
        assert written == 10
        for share, new in ((31, False), (36, True), (37, False), (42, True)):
            found = plain(progress.candidate(1, build(share * 10), NOW + timedelta(seconds=361), said, 1.0))
            assert (found != said) == new, share
            said = found

    def test_who_holds_it_up_is_said_at_once(self) -> None:
        before = plain(seen((100, build(400))))

        for now_said in (build(401, blocked_by=("anna",)), build(0, 0, WAITING)):
            found = progress.candidate(1, now_said, NOW + timedelta(seconds=101), before, 1.0)
            assert plain(found) != before


# --- real builds

SIZES = (20_000, 60_000, 150_000)


@dataclass(frozen=True)
class Look:
    at: datetime
    share: float
    end: datetime | None


def watched(place: Place, key: Key) -> tuple[list[Look], datetime, datetime]:
    """Look at a build as passes do, from its beginning to its end."""
    looks: list[Look] = []
    began: datetime | None = None
    said: dict[str, Any] = {}
    stop = time.monotonic() + PATIENCE_SECONDS * times(1, 30)
    place.go(key)
    while time.monotonic() < stop:
        _, spec, facts = place.look(key)
        world = facts.index
        live = next((b for b in world.builds if b.phase == LOADING), None)
        if live is None and looks:
            return looks, began or world.now, world.now
        if live is not None:
            began = began or live.started_at
            found = index.candidate(world, spec, {"candidate": said})
            assert found is not None
            said = plain(found)
            looks.append(Look(world.now, progress.share(live), found.estimated_completion))
        time.sleep(0.1)
    raise AssertionError("the build does not end")


@pytest.mark.postgres
@pytest.mark.soak
@pytest.mark.parametrize("rows", SIZES if SOAKING else (6000,))
def test_the_end_of_a_real_build_is_foretold(here: Place, rows: int) -> None:
    """Within 25 % of its time, from a fifth on; a short one on a busy machine proves less."""
    dimension = 128
    here.offer("wide", dimension)
    key = here.ready(embedding={"model": "wide", "dimension": dimension})
    here.sql("UPDATE polaris.generations SET load_requested_at = now()")
    here.go(key)
    here.fill(key, rows, dimension=dimension)
    here.sql("UPDATE polaris.generations SET load_requested_at = NULL")

    looks, began, ended = watched(here, key)

    whole = (ended - began).total_seconds()
    errors = [
        abs((look.end - ended).total_seconds()) / whole
        for look in looks
        if look.end is not None and look.share >= 0.2
    ]
    assert errors, looks
    errors.sort()
    print(
        f"{rows} rows, {whole:.1f} s, {len(errors)} looks: error of the end"
        f" median {errors[len(errors) // 2]:.0%}, worst {errors[-1]:.0%} of the build's time"
    )
    if SOAKING:
        assert errors[-1] <= 0.25
    here.go_until(key, "Ready")
