"""Indexes by name: absent, building, valid or dead, and what to do about each.

A build belongs to PostgreSQL. One that lives (its session holds the advisory lock, or PostgreSQL
shows its progress) is waited for, whoever began it; a second is never begun. `IF NOT EXISTS` is not
used: it says yes to whatever bears the name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from polaris import layout, names
from polaris.sql import Sql, compose, join, literal
from polaris.status import Reason
from polaris_operator.plan.aim import Aim
from polaris_operator.steps import Blocked, BuildIndex, ExecuteAlone, Hindrance, Step
from polaris_operator.world.index import Build, BuildFailure, IndexSeen, build_lock

LOOK_AGAIN_SECONDS = 5.0
"""Between two looks at a build; the end of one that we began wakes us earlier."""
DROP_GRACE_SECONDS = 30
"""How long an index that was valid stays after queries were pointed elsewhere."""
_DROP_LOCK_TIMEOUT = "5s"
_FIRST_RETRY_SECONDS = 30
_LAST_RETRY_SECONDS = 3600
_FAILURES_UNTIL_STALLED = 3
# A build that only came too late: those who work with the table end some day.
_LAST_LATE_SECONDS = 300
# What PostgreSQL calls an index that REINDEX CONCURRENTLY makes, and the one that it replaces; numbered
# where there is one of that name already.
_REINDEX_NAMES = ("_ccnew", "_ccold")


class Standing(Enum):
    """How it stands with the name of an index."""

    ABSENT = auto()
    BUILDING = auto()
    VALID = auto()
    DEAD = auto()
    """Left over by a build that died, or not what its name says."""


@dataclass(frozen=True)
class Wanted:
    """An index that there shall be, and how to tell that one of its name is it."""

    index: layout.Index
    right: Callable[[IndexSeen], bool]
    reason: Reason = Reason.INDEX_MISSING
    hindrances: Callable[[bool], tuple[Hindrance, ...]] = lambda _: ()
    """What will make its build slow; of one beside writers, or not."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.index.name


@dataclass(frozen=True)
class Progress:
    """Steps to do now, and what is waited for after them."""

    steps: tuple[Step, ...] = ()
    blocked: Blocked | None = None
    look_again_seconds: float | None = None
    aside: tuple[Step, ...] = ()
    """What nothing waits for."""
    withheld: tuple[Step, ...] = ()
    """What would have to be done and waits for somebody: shown, never carried out."""


def standing(aim: Aim, wanted: Wanted) -> Standing:
    """Return the state of the index's name."""
    seen = aim.world.indexes.get(wanted.name)
    if seen is not None and seen.valid and seen.table == wanted.index.table and wanted.right(seen):
        return Standing.VALID
    if is_building(aim, wanted.name):
        return Standing.BUILDING
    return Standing.ABSENT if seen is None else Standing.DEAD


def is_building(aim: Aim, index: str) -> bool:
    """Whether a live session builds an index of this name."""
    lock = build_lock(aim.name.schema, index)
    return lock in aim.world.locks or any(build.index == index for build in aim.world.builds)


def builds_on(aim: Aim, table: str) -> frozenset[str]:
    """Return the names of the indexes of a table that live sessions build, or build anew."""
    names_ = {base(index) for index, seen in aim.world.indexes.items() if seen.table == table}
    if table == names.chunks_table(aim.number):
        names_ |= {wanted.name for wanted in attribute_indexes(aim)}
    shown = {build.index or table for build in aim.world.builds if build.table == table}
    return frozenset({name for name in names_ if is_building(aim, name)} | {base(name) for name in shown})


def base(index: str) -> str:
    """Return the name of the index that a REINDEX makes anew under this one."""
    plain = index.rstrip("0123456789")
    return next((plain.removesuffix(end) for end in _REINDEX_NAMES if plain.endswith(end)), index)


def build_of(aim: Aim, index: str) -> Build | None:
    """Return the live build of this name, where PostgreSQL shows its progress."""
    lock = build_lock(aim.name.schema, index)
    for build in aim.world.builds:
        if build.index == index or lock in build.locks:
            return build
    return None


def waiting(aim: Aim, index: str) -> Progress:
    """Return that a live build is waited for."""
    build = build_of(aim, index)
    message = f"{index} is being built"
    if build is not None:
        message += (
            f": {build.phase}"  # How far it is stands in `status.candidate`, which is written less often.
        )
    # Before a plain build has its lock PostgreSQL shows no progress of it.
    waits_for = build.blocked_by if build else aim.world.waits.get(build_lock(aim.name.schema, index), ())
    message += "".join(f", waiting for {who}" for who in waits_for)
    return Progress((), Blocked(Reason.BUILDING_INDEX, message, stalled=False), LOOK_AGAIN_SECONDS)


def build(
    aim: Aim, wanted: Wanted, now: datetime, *, sentence: str, together_with: tuple[Sql, ...] | None = None
) -> Progress:
    """Return what leads from an absent or dead index to a build of it: CONCURRENTLY, beside writers.

    `together_with` makes it a plain one, in one transaction with these statements: PostgreSQL ends it
    as it was meant to end, also where nobody is there any more to look.
    """
    if busy := builds_on(aim, wanted.index.table):
        # Of two builds on one table each may come to wait for the other.
        message = f"{wanted.name} is built after {', '.join(sorted(busy))}"
        return Progress((), Blocked(Reason.BUILDING_INDEX, message, stalled=False), LOOK_AGAIN_SECONDS)
    seen = aim.world.indexes.get(wanted.name)
    other = seen is not None and seen.valid
    why = "it is another one than its name says" if other else "it is invalid and nobody builds it"
    dead = (
        (drop(aim, wanted.name, Reason.INDEX_INVALID, why, wanted),)
        if standing(aim, wanted) == Standing.DEAD
        else ()
    )
    failure = aim.world.failures.get(wanted.name)
    if failure is not None and (wait := _retry_in(failure, now)) > 0:
        return Progress(dead, build_failed(wanted.name, failure), wait)
    hindered = wanted.hindrances(together_with is None)
    step = Step(
        wanted.reason, sentence, _build_action(aim, wanted, failure, together_with), hindrances=hindered
    )
    message = "; ".join([f"{wanted.name} is being built", *(one.message for one in hindered)])
    return Progress((*dead, step), Blocked(Reason.BUILDING_INDEX, message, stalled=False), LOOK_AGAIN_SECONDS)


def _build_action(
    aim: Aim, wanted: Wanted, failure: BuildFailure | None, together_with: tuple[Sql, ...] | None
) -> BuildIndex:
    concurrently = together_with is None
    return BuildIndex(
        wanted.name,
        aim.name.schema,
        join(
            ";\n", (wanted.index.create(aim.name.schema, concurrently=concurrently), *(together_with or ()))
        ),
        build_lock(aim.name.schema, wanted.name),
        session_settings(aim, workers(aim, failure), lock_timeout="0" if concurrently else "30s"),
        wanted.index.table,
    )


def workers(aim: Aim, failure: BuildFailure | None) -> int:
    """Return how many parallel workers a build asks for."""
    # They share memory that a container may not have (/dev/shm): after a failure, none.
    return aim.spec.build.parallel_workers if failure is None or failure.late else 0


def session_settings(aim: Aim, parallel: int, *, lock_timeout: str) -> dict[str, str]:
    """Return the settings of a session that builds.

    CONCURRENTLY waits for old snapshots, in nobody's way; a plain build, which has a lock timeout, stops
    writers.
    """
    options = aim.spec.build
    return {
        "maintenance_work_mem": options.maintenance_work_mem.replace("i", "B"),
        "max_parallel_maintenance_workers": str(parallel),
        "statement_timeout": f"{options.deadline_seconds}s",
        "lock_timeout": lock_timeout,
    }


def _retry_in(failure: BuildFailure, now: datetime) -> float:
    if failure.reason == Reason.SHARED_MEMORY_TOO_SMALL and failure.count == 1:
        return 0.0  # Without workers it needs none.
    longest = _LAST_LATE_SECONDS if failure.late else _LAST_RETRY_SECONDS
    pause = min(_FIRST_RETRY_SECONDS * 2.0 ** min(failure.count - 1, 16), longest)
    return math.ceil((failure.at + timedelta(seconds=pause) - now).total_seconds())


def is_waiting(failure: BuildFailure | None, now: datetime) -> bool:
    """Whether a failed build is not to be tried again yet."""
    return failure is not None and _retry_in(failure, now) > 0


def build_failed(index: str, failure: BuildFailure) -> Blocked:
    """Return that the build failed; after some failures in a row, that a person has to look.

    Not so for a build that only came too late: it is tried again until it finds the table free.
    """
    if failure.late:
        message = f"{index} waits to be built (tried {failure.count} times): {failure.message}"
        return Blocked(Reason.BUILDING_INDEX, message, stalled=False)
    return Blocked(
        failure.reason,
        f"the build of {index} failed ({failure.count} in a row): {failure.message}",
        stalled=failure.count >= _FAILURES_UNTIL_STALLED,
    )


def drop(aim: Aim, index: str, reason: Reason, why: str, wanted: Wanted | None = None) -> Step:
    """Return the step that drops an index that no query uses."""
    seen = aim.world.indexes.get(index)
    unused = compose(
        "NOT EXISTS (SELECT FROM polaris.generations WHERE index_id = {number} AND vector_index = {index})",
        number=aim.name.number,
        index=literal(index),
    )
    invalid = compose(
        "NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass({index}) AND indisvalid)",
        index=literal(aim.name.relation(index)),
    )
    # What was seen invalid may have been finished since: then it is not ours to drop any more.
    ended = wanted is not None and seen is not None and not seen.valid
    return Step(
        reason,
        f"Drop the index {index}: {why}",
        ExecuteAlone(
            compose("DROP INDEX CONCURRENTLY {index}", index=aim.name.relation(index)),
            {"lock_timeout": _DROP_LOCK_TIMEOUT},
            build_lock(aim.name.schema, base(index)),
            (aim.guard, invalid) if ended else (aim.guard, unused),
        ),
    )


# --- attributes ----------------------------------------------------------------------------------


def document_indexes() -> tuple[Wanted, ...]:
    """Return the indexes of the tables of documents that workers use."""
    return (Wanted(layout.DOCUMENTS_BY_SEQUENCE, _is_btree_on("sequence")),)


def attribute_indexes(aim: Aim) -> tuple[Wanted, ...]:
    """Return the indexes of the generation that filters use, beside the vectors'."""
    declared = {attribute.name: attribute for attribute in aim.made.attributes} if aim.made else {}
    wanted = []
    for attribute in aim.spec.attributes:
        known = declared.get(attribute.name) == attribute
        wanted.append(
            Wanted(
                layout.attribute_index(aim.number, attribute),
                _is_btree_of(attribute.name),
                Reason.INDEX_MISSING if known else Reason.ATTRIBUTE_ADDED,
            )
        )
    return tuple(wanted)


def _is_btree_on(column: str) -> Callable[[IndexSeen], bool]:
    return lambda seen: seen.method == "btree" and seen.columns == (column,) and not seen.partial


def _is_btree_of(attribute: str) -> Callable[[IndexSeen], bool]:
    place = f"(attributes -> '{attribute}'::text)"
    return lambda seen: (
        seen.method == "btree"
        and place in (seen.expression or "")
        and seen.keys == 1
        and not (seen.partial or seen.unique or seen.outdated)
    )


def attain(aim: Aim, now: datetime) -> Progress:
    """Return what leads to the indexes beside the vectors', one build at a time."""
    inline: list[Step] = []
    for wanted in (*document_indexes(), *attribute_indexes(aim)):
        match standing(aim, wanted):
            case Standing.VALID:
                continue
            case Standing.BUILDING:
                progress = waiting(aim, wanted.name)
            case Standing.ABSENT if _is_empty(aim, wanted):
                create = wanted.index.create(aim.name.schema)
                inline.append(aim.step(wanted.reason, f"Make the index {wanted.name}", create))
                continue
            case _:
                progress = build(aim, wanted, now, sentence=f"Build the index {wanted.name}")
        return Progress((*inline, *progress.steps), progress.blocked, progress.look_again_seconds)
    return Progress(tuple(inline))


def _is_empty(aim: Aim, wanted: Wanted) -> bool:
    table = aim.world.relations.get(wanted.index.table)
    return table is None or table.bytes == 0


# --- what nobody wants any more ------------------------------------------------------------------


def is_ours(aim: Aim, index: str, seen: IndexSeen) -> bool:
    """Whether POLARIS named this index, so that it may drop it."""
    prefixes = (f"g{aim.number}_chunks_vector_", f"g{aim.number}_by_")
    return (
        seen.table == names.chunks_table(aim.number)
        and not seen.constraint
        and (index.startswith(prefixes) or base(index) != index)
    )


def leftovers(aim: Aim, keep: frozenset[str]) -> Progress:
    """Return the steps that drop what is wanted no more, once no query can still be using it."""
    steps: list[Step] = []
    wait: float | None = None
    for index, seen in sorted(aim.world.indexes.items()):
        if index in keep or not is_ours(aim, index, seen) or is_building(aim, base(index)):
            continue
        left = _grace(aim) if seen.valid else 0.0
        if left > 0:
            wait = left
            continue
        of_attribute = index.startswith(f"g{aim.number}_by_")
        reason = Reason.ATTRIBUTE_REMOVED if of_attribute else Reason.INDEX_REPLACED
        why = "the spec asks for it no more" if seen.valid else "a build that died left it behind"
        steps.append(drop(aim, index, reason, why))
    return Progress(tuple(steps), None, wait)


def _grace(aim: Aim) -> float:
    if aim.world.subject is None:
        return 0.0
    over = aim.world.subject.updated_at + timedelta(seconds=DROP_GRACE_SECONDS)
    return (over - aim.world.now).total_seconds()


def unwanted_builds(aim: Aim, keep: frozenset[str]) -> list[Step]:
    """Return the step that ends builds of ours that an edit has made useless."""
    wanted = {build_lock(aim.name.schema, index) for index in keep}
    table = names.chunks_table(aim.number)
    useless = [
        build
        for build in aim.world.builds
        if build.table == table and build.locks and not build.locks & wanted and build.index not in keep
    ]
    if not useless:
        return []
    return [
        aim.step(
            Reason.SPEC_CHANGED,
            f"End the build of {useless[0].index or 'an index'}: the spec asks for it no more",
            cancel_builds(aim, keep),
        )
    ]


def cancel_builds(aim: Aim, keep: frozenset[str] = frozenset()) -> Sql:
    """Return the statement that cancels POLARIS' own builds on this table, but for those to keep.

    Sessions that hold no advisory lock are other people's, and left alone.
    """
    held = (
        "SELECT FROM pg_locks l WHERE l.pid = p.pid AND l.locktype = 'advisory' AND l.granted"
        " AND l.objsubid = 1"
    )
    statement = compose(
        "SELECT pg_cancel_backend(p.pid) FROM pg_stat_progress_create_index p"
        " WHERE p.datname = current_database() AND p.relid = to_regclass({table}) AND EXISTS ({held})",
        table=literal(aim.name.relation(names.chunks_table(aim.number))),
        held=Sql(held),
    )
    for index in sorted(keep):
        key = build_lock(aim.name.schema, index) & (2**64 - 1)
        statement = compose(
            "{statement} AND NOT EXISTS ({held} AND l.classid = {high}::oid AND l.objid = {low}::oid)",
            statement=statement,
            held=Sql(held),
            high=key >> 32,
            low=key & 0xFFFFFFFF,
        )
    return statement
