"""Index hygiene: where many rows were deleted, the graph is built anew before they are vacuumed.

Rows that are dead stay in the graph, and searches find them instead of others: with 90 % of the rows
deleted recall fell to 0.43. VACUUM takes them out one by one and mends what is around each (96 s, where
building the graph anew took 1.6 s), so it comes second, and then has nothing to do in the index.

How it stands is told by the catalogs alone, so any operator goes on where another one ended: dead rows
that PostgreSQL counts until they are vacuumed, and the size of the index, which only building it anew
makes smaller. Nothing waits for this: the index serves all the while.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from polaris import names
from polaris.sql import Sql, compose, literal
from polaris.status import Reason
from polaris_operator.plan import pg_index
from polaris_operator.plan.aim import Aim
from polaris_operator.plan.pg_index import LOOK_AGAIN_SECONDS, Progress, Standing, Wanted
from polaris_operator.plan.preflight import index_bytes
from polaris_operator.steps import BuildIndex, Step
from polaris_operator.world.index import Relation, build_lock

DEAD_SHARE = 0.2
"""Of the rows. From here on autovacuum would begin; at a twentieth already most vertices of the graph have
a dead neighbour, so VACUUM would touch nearly all of them."""
DEAD_ROWS = 1000
"""With fewer, VACUUM takes a moment."""
VACUUM_AGAIN_SECONDS = 600
"""Rows that an old transaction may still see outlive a VACUUM: they alone are no reason for another one."""
_SIZE, _SIZE_BYTES = 1.15, 8 * 8192
"""An index so much larger than what its live rows need has others in it; fresh ones are within 5 %."""


def tend(aim: Aim, wanted: Wanted | None, now: datetime) -> Progress:
    """Return what keeps the serving vector index in order, as steps that nothing waits for."""
    generation, relation = aim.generation, aim.world.relations.get(aim.chunks.name)
    if wanted is None or generation is None or relation is None:
        return Progress()
    if generation.vector_index != wanted.name or pg_index.standing(aim, wanted) != Standing.VALID:
        return Progress()
    if not _is_due(relation, aim.world.now):
        return Progress()
    if pg_index.builds_on(aim, aim.chunks.name) or pg_index.is_building(aim, _vacuum(aim)):
        return Progress((), None, LOOK_AGAIN_SECONDS)
    stale = aim.world.indexes[wanted.name].bytes > _largest(aim, relation)
    name = wanted.name if stale else _vacuum(aim)
    if pg_index.is_waiting(aim.world.failures.get(name), now):
        return Progress((), None, LOOK_AGAIN_SECONDS)
    dead = f"{relation.dead} of {relation.live + relation.dead} rows are deleted"
    step = _reindex(aim, wanted, relation, dead) if stale else _clear(aim, relation, dead)
    return Progress(look_again_seconds=LOOK_AGAIN_SECONDS, aside=(step,))


def _is_due(relation: Relation, now: datetime) -> bool:
    last = relation.vacuumed_at
    rested = last is None or now - last >= timedelta(seconds=VACUUM_AGAIN_SECONDS)
    many = _many(relation)
    return relation.dead >= many and (rested or relation.changed >= many)


def _many(relation: Relation) -> int:
    return max(DEAD_ROWS, int(DEAD_SHARE * (relation.live + relation.dead)))


def _largest(aim: Aim, relation: Relation) -> int:
    """Return up to which size an index holds nothing but live rows."""
    return _SIZE_BYTES + int(_SIZE * index_bytes(relation.live, aim.spec.embedding, aim.spec.index))


def _reindex(aim: Aim, wanted: Wanted, relation: Relation, dead: str) -> Step:
    index = aim.name.relation(wanted.name)
    large = compose(
        "pg_relation_size(to_regclass({index})) > {bytes}",
        index=literal(index),
        bytes=_largest(aim, relation),
    )
    failure = aim.world.failures.get(wanted.name)
    return Step(
        Reason.INDEX_DECAYED,
        f"Build the index {wanted.name} anew beside itself, before rows are vacuumed: {dead}",
        BuildIndex(
            wanted.name,
            aim.name.schema,
            compose("REINDEX INDEX CONCURRENTLY {index}", index=index),
            build_lock(aim.name.schema, wanted.name),
            pg_index.session_settings(aim, pg_index.workers(aim, failure), lock_timeout="0"),
            wanted.index.table,
            (aim.guard, large),
            _clearing(aim),
        ),
    )


def _vacuum(aim: Aim) -> str:
    """Return the name under which the table's VACUUM is known."""
    return names.chunks_table(aim.number)


def _clearing(aim: Aim) -> Sql:
    return compose("VACUUM (ANALYZE) {table}", table=aim.name.relation(aim.chunks.name))


def _clear(aim: Aim, relation: Relation, dead: str) -> Step:
    """Return the step for where a session ended between the two."""
    table = aim.name.relation(aim.chunks.name)
    undone = compose(
        "pg_stat_get_dead_tuples(to_regclass({table})) >= {many}",
        table=literal(table),
        many=_many(relation),
    )
    return Step(
        Reason.INDEX_DECAYED,
        f"Vacuum {aim.chunks.name}: {dead}, and its index holds none of them",
        BuildIndex(
            _vacuum(aim),
            aim.name.schema,
            _clearing(aim),
            build_lock(aim.name.schema, _vacuum(aim)),
            pg_index.session_settings(aim, 0, lock_timeout="0"),
            aim.chunks.name,
            (aim.guard, undone),
        ),
    )
