"""How far a build is and when it may be done: pure, from what PostgreSQL shows and what the status said.

All that is remembered between two looks stands in `status.candidate`, so a restarted operator goes on
with it: since when the pace of the present phase is measured, and from which count.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from polaris.status import CandidateStatus
from polaris_operator.world.index import Build

WRITE_SECONDS = 30.0
"""A status in which nothing changes but these figures is written once in so long,"""
WRITE_PERCENT = 5
"""or once it is so much further."""
GROWTH = 1.1
"""Each row takes longer than those before, as the graph grows: the time for a share s of the rows goes by
s^1.1 (measured over builds of 5,000 to 80,000 rows, that fit into memory: 1.0 to 1.2)."""
SLOWER = 3.0
"""How much longer a row takes once the graph no longer fits into memory."""
_GRAPH = "building index: loading tuples"
_WORK = "building index"
_AFTER = ("index validation", "waiting for writers before validation", "waiting for old snapshots")
# Checking a graph again and waiting take some hundredth of what making it takes, where nobody is in the way.
_WORK_PERCENT = 99
# With less than this behind it, a pace is guesswork.
_LEAST_SHARE = 0.02


def candidate(
    generation: int, build: Build, now: datetime, said: Mapping[str, Any], fitting: float
) -> CandidateStatus:
    """Return what is said of a live build.

    `said` is what the status says of a candidate, {} where nothing; `fitting` is the share of the rows
    whose graph fits into the build's memory, 1 where all do. Times are the database's.
    """
    before = _earlier(generation, build, said)
    since, start = _pace(build, before, now, fitting)
    found = CandidateStatus(
        generation=generation,
        phase=build.phase,
        progress=f"{percent(build)}%" if build.total or build.phase.startswith(_AFTER) else "",
        done=build.done,
        total=build.total,
        estimated_completion=_end(build, since, start, now, fitting),
        blocked_by="; ".join(build.blocked_by),
        observed_at=now,
        pace_since=since,
        pace_from=start,
    )
    return before if before is not None and _as_good_as(before, found) else found


def share(build: Build) -> float:
    """Return how much of its present phase a build has done, 0 to 1."""
    return min(max(build.done / build.total, 0.0), 1.0) if build.total else 0.0


def percent(build: Build) -> int:
    """Return how far the whole build is; of what comes after the graph, that only little is left."""
    if build.phase.startswith(_AFTER):
        return _WORK_PERCENT
    return int(share(build) * _WORK_PERCENT) if build.phase.startswith(_WORK) else 0


def _earlier(generation: int, build: Build, said: Mapping[str, Any]) -> CandidateStatus | None:
    """Return what was said of this very build before; None where that was about another one, or nothing."""
    if not said or said.get("generation") != generation or not said.get("paceSince"):
        return None
    before = CandidateStatus.model_validate(dict(said))
    since, began = before.pace_since, build.started_at
    # A status has whole seconds.
    same = since is not None and began is not None and since >= began - timedelta(seconds=1)
    return before if same else None


def _pace(
    build: Build, before: CandidateStatus | None, now: datetime, fitting: float
) -> tuple[datetime | None, int]:
    """Return since when, and from which count, the pace of this phase is measured."""
    if before is None:
        return build.started_at, 0
    full = before.pace_from < fitting * build.total <= build.done
    if before.phase == build.phase and before.pace_from <= build.done and not full:
        return before.pace_since, before.pace_from
    # What came before, such as waiting for writers, or rows for which there was memory, says nothing about
    # how fast this is.
    return now, build.done


def _end(build: Build, since: datetime | None, start: int, now: datetime, fitting: float) -> datetime | None:
    if since is None or not build.total or build.phase.startswith("waiting"):
        return None
    at, first = share(build), min(start / build.total, 1.0)
    if at - first < _LEAST_SHARE:
        return None
    graph = build.phase == _GRAPH
    passed, begun, whole = (_effort(x, fitting) if graph else x for x in (at, first, 1.0))
    seconds = (now - since).total_seconds()
    return now + timedelta(seconds=seconds * (whole - passed) / (passed - begun))


def _effort(done: float, fitting: float) -> float:
    """Return how much work the first rows are, up to this share of them, in any unit."""
    quick = min(done, fitting)
    effort = float(quick**GROWTH)
    return effort if done <= fitting else effort + SLOWER * float(done**GROWTH - quick**GROWTH)


def _as_good_as(before: CandidateStatus, found: CandidateStatus) -> bool:
    """Whether what was said before still does: to write a status costs the API server and all who watch."""
    if (before.phase, before.blocked_by) != (found.phase, found.blocked_by):
        return False
    if before.observed_at is None or found.observed_at is None:
        return False
    age = (found.observed_at - before.observed_at).total_seconds()
    further = abs(_number(found.progress) - _number(before.progress))
    # A first estimate is news.
    news = before.estimated_completion is None and found.estimated_completion is not None
    return 0 <= age < WRITE_SECONDS and further < WRITE_PERCENT and not news


def _number(progress: str) -> int:
    return int(progress.rstrip("%") or 0)
