"""The vector index of a generation: beside the present one, or after a load.

=========  ====================================================================================
serving    queries go by `generations.vector_index`. Another one is built CONCURRENTLY beside it;
           then one transaction moves the pointer (and the metric, where that changed)
loading    no vector index until the load is over: by a worker's wish, when every search is exact
           meanwhile; or while a generation that does not serve is filled
building   a plain CREATE INDEX, one scan; workers leave the table alone until it is done. The same
           transaction says so, so nobody waits for an operator that died meanwhile
=========  ====================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from polaris import layout, names
from polaris.names import CATALOG_CHANNEL
from polaris.spec import Part
from polaris.sql import Sql, compose, identifier, join, literal
from polaris.status import Reason
from polaris_operator.plan import pg_index, preflight
from polaris_operator.plan.aim import Aim
from polaris_operator.plan.naming import tell
from polaris_operator.plan.pg_index import LOOK_AGAIN_SECONDS, Progress, Standing, Wanted, standing
from polaris_operator.steps import Blocked, Hindrance, Step
from polaris_operator.world.index import GenerationRow, IndexSeen

SMALL_ROWS = 10_000
"""Up to so many chunks, dropping the index for a bulk load costs seconds to make good."""
LOAD_QUIET_SECONDS = 600
"""A load that nobody has asked for again since then is over, once nothing waits to be applied."""


def wanted_index(aim: Aim) -> Wanted | None:
    """Return the vector index that the spec asks for; None where search is exact by the spec."""
    index = layout.vector_index(aim.number, aim.spec.embedding, aim.spec.index)
    if index is None:
        return None
    opclass = layout.operator_class(aim.spec.embedding)
    options = {"m": str(aim.spec.index.m), "ef_construction": str(aim.spec.index.ef_construction)}

    def right(seen: IndexSeen) -> bool:
        return (
            (seen.method, seen.opclass, seen.columns) == ("hnsw", opclass, ("embedding",))
            and dict(seen.options) == options
            and not seen.partial
        )

    def hindrances(concurrently: bool) -> tuple[Hindrance, ...]:
        relation, spec = aim.world.relations.get(aim.chunks.name), aim.spec
        rows = relation.rows if relation else 0
        return preflight.hindrances(rows, spec, aim.world.old_transaction, concurrently=concurrently)

    made = aim.made is None or (aim.made.index, aim.made.embedding) == (aim.spec.index, aim.spec.embedding)
    return Wanted(index, right, Reason.INDEX_MISSING if made else Reason.INDEX_REPLACED, hindrances)


def kept(aim: Aim) -> frozenset[str]:
    """Return the names of the generation's indexes that are wanted, or that queries use."""
    wanted = wanted_index(aim)
    pointer = aim.generation.vector_index if aim.generation else None
    attributes = (index.name for index in pg_index.attribute_indexes(aim))
    return frozenset(name for name in (wanted.name if wanted else None, pointer, *attributes) if name)


def json_literal(value: Part | Mapping[str, Any]) -> Sql:
    """Return a JSON constant, by the outside names."""
    plain = value.model_dump(mode="json", by_alias=True) if isinstance(value, Part) else dict(value)
    return literal(json.dumps(plain, ensure_ascii=False, sort_keys=True))


def set_generation(aim: Aim, **values: Sql) -> Sql:
    """Return the statement that changes the generation's row."""
    pairs = [
        compose("{column} = {value}", column=Sql(column), value=value) for column, value in values.items()
    ]
    return compose(
        "UPDATE polaris.generations SET {pairs} WHERE index_id = {index} AND number = {generation}",
        pairs=join(", ", pairs),
        index=aim.name.number,
        generation=aim.number,
    )


NULL = Sql("NULL")
_UNKNOWN = dict.fromkeys(("recall", "recall_rows", "recall_at", "recall_details"), NULL)


def not_measured(*, complete: bool) -> dict[str, Sql]:
    """Return what the row says of recall before it is measured; `complete`: there is nothing to miss."""
    if complete:
        return {**_UNKNOWN, "recall": Sql("1"), "recall_rows": Sql("0"), "recall_at": Sql("now()")}
    return _UNKNOWN


def settle(aim: Aim, now: datetime) -> Progress:
    """Return what leads from the generation as it is to one whose vector index the spec asks for."""
    generation = aim.generation
    if generation is None:
        return Progress()
    wanted = wanted_index(aim)
    match generation.state:
        case "serving":
            return _serving(aim, generation, wanted, now)
        case "loading":
            return _loading(aim, generation, wanted, now)
        case "building":
            return _building(aim, wanted, now)


def agrees(aim: Aim, generation: GenerationRow) -> bool:
    """Whether the catalog tells queries what the spec says."""
    wanted = wanted_index(aim)
    return generation.vector_index == (wanted.name if wanted else None) and dict(
        generation.embedding
    ) == aim.spec.embedding.model_dump(mode="json", by_alias=True)


# --- serving -------------------------------------------------------------------------------------


def _serving(aim: Aim, generation: GenerationRow, wanted: Wanted | None, now: datetime) -> Progress:
    if wanted is None:
        return Progress(() if agrees(aim, generation) else (_switch(aim, None),))
    state = standing(aim, wanted)
    if state == Standing.VALID and agrees(aim, generation):
        return _begin_loading(aim, wanted) if _load_wished(aim, generation) else Progress()
    if state == Standing.VALID:
        return Progress((_switch(aim, wanted),))
    if state == Standing.ABSENT and aim.empty:
        return Progress((_switch(aim, wanted, wanted.index.create(aim.name.schema)),))
    if state == Standing.ABSENT and (renamed := _renamed(aim, wanted)) is not None:
        return Progress((_rename(aim, renamed, wanted),))
    honest = _forget_lost(aim, generation, wanted)
    if state == Standing.BUILDING:
        progress = pg_index.waiting(aim, wanted.name)
    else:
        sentence = f"Build the vector index {wanted.name} beside what serves"
        progress = pg_index.build(aim, wanted, now, sentence=sentence)
    return Progress((*honest, *progress.steps), progress.blocked, progress.look_again_seconds)


def _renamed(aim: Aim, wanted: Wanted) -> str | None:
    """Return an index of the table that is the wanted one but for its name: no hours for another build."""
    used = {one.vector_index for one in aim.world.generations}
    for index, seen in sorted(aim.world.indexes.items()):
        right = seen.valid and seen.table == wanted.index.table and wanted.right(seen)
        if right and index not in used and not pg_index.is_building(aim, index):
            return index
    return None


def _rename(aim: Aim, index: str, wanted: Wanted) -> Step:
    return aim.step(
        Reason.DRIFTED,
        f"Give the vector index {index} its name back: {wanted.name}",
        compose(
            "ALTER INDEX {index} RENAME TO {name}",
            index=aim.name.relation(index),
            name=identifier(wanted.name),
        ),
    )


def strangers(aim: Aim) -> Blocked | None:
    """Return that somebody else's index on the vectors stands beside ours.

    The planner may take it for queries, and what it finds was never measured. It is not dropped: it
    has cost whoever made it something, and it may be made by what nobody here knows.
    """
    if not aim.made or aim.generation is None or aim.generation.vector_index is None:
        return None
    found = [
        index
        for index, seen in sorted(aim.world.indexes.items())
        if seen.table == aim.chunks.name and seen.valid and seen.columns == ("embedding",)
        if not pg_index.is_ours(aim, index, seen)
    ]
    if not found:
        return None
    drops = "; ".join(f"DROP INDEX CONCURRENTLY {aim.name.relation(index)}" for index in found)
    return Blocked(
        Reason.DRIFTED,
        f"beside {aim.generation.vector_index} stand others on the same column, which queries may take"
        f" instead: {', '.join(found)}. They were not made here, so they are not dropped here: {drops}",
        stalled=True,
    )


def forbidden(aim: Aim) -> Blocked | None:
    """Return that a setting keeps queries from using the vector index: an administrator's to take away."""
    if not aim.world.forbidden or aim.generation is None or aim.generation.vector_index is None:
        return None
    return Blocked(
        Reason.DRIFTED,
        "enable_indexscan is off for queries, so each of them compares every row."
        f" Whoever set it takes it away with: {'; '.join(aim.world.forbidden)}",
        stalled=True,
    )


def _switch(aim: Aim, wanted: Wanted | None, *before: Sql) -> Step:
    """Point queries to the index, and say which metric it is for, in one transaction."""
    to = wanted.name if wanted else None
    sentence = f"Point queries to {to}" if to else "Let queries compare every row: no index is asked for"
    return aim.step(
        wanted.reason if wanted else Reason.INDEX_REPLACED,
        f"Make the index {to} on the empty table and point queries to it" if before else sentence,
        *before,
        *point(aim, wanted),
    )


def point(aim: Aim, wanted: Wanted | None) -> tuple[Sql, ...]:
    """Return the statements that make the generation serve with this index."""
    return (
        set_generation(
            aim,
            state=Sql("'serving'"),
            vector_index=literal(wanted.name) if wanted else NULL,
            embedding=json_literal(aim.spec.embedding),
            index=json_literal(aim.spec.index),
            **not_measured(complete=wanted is None or aim.empty),
        ),
        compose("UPDATE polaris.indexes SET updated_at = now() WHERE id = {id}", id=aim.name.number),
        tell(CATALOG_CHANNEL, aim.name.number),
        # Workers stood still while it was built.
        tell(names.WORK_CHANNEL, aim.name.number),
    )


def _forget_lost(aim: Aim, generation: GenerationRow, wanted: Wanted) -> list[Step]:
    """Say that search is exact where the index that queries are pointed to is gone or was damaged."""
    pointer = generation.vector_index
    seen = aim.world.indexes.get(pointer) if pointer else None
    right = wanted.right if pointer == wanted.name else _is_vector_index
    if pointer is None or (seen is not None and seen.valid and right(seen)):
        return []
    return [
        aim.step(
            Reason.INDEX_INVALID if seen else Reason.INDEX_MISSING,
            f"Say that search is exact: the index {pointer} is {'unusable' if seen else 'gone'}",
            set_generation(aim, vector_index=NULL),
            tell(CATALOG_CHANNEL, aim.name.number),
        )
    ]


def _is_vector_index(seen: IndexSeen) -> bool:
    return seen.method == "hnsw" and seen.columns == ("embedding",)


# --- bulk load -----------------------------------------------------------------------------------


def _load_wished(aim: Aim, generation: GenerationRow) -> bool:
    chunks = aim.world.relations.get(aim.chunks.name)
    return generation.load_requested_at is not None and chunks is not None and chunks.rows <= SMALL_ROWS


def _begin_loading(aim: Aim, wanted: Wanted) -> Progress:
    begin = aim.step(
        Reason.BULK_LOAD,
        f"Load first and index after: queries compare every row until {wanted.name} is built anew",
        set_generation(aim, state=Sql("'loading'"), vector_index=NULL),
        tell(CATALOG_CHANNEL, aim.name.number),
        tell(names.WORK_CHANNEL, aim.name.number),
    )
    drop = pg_index.drop(aim, wanted.name, Reason.BULK_LOAD, "rows are loaded faster without it")
    return Progress((begin, drop), _LOADING, LOOK_AGAIN_SECONDS)


_LOADING = Blocked(
    Reason.LOADING, "a bulk load is under way; the vector index is built after it", stalled=False
)


def _loading(aim: Aim, generation: GenerationRow, wanted: Wanted | None, now: datetime) -> Progress:
    if wanted is None:
        return Progress((_finish(aim, None),))
    if not _load_is_over(generation, aim.world.now):
        drops = tuple(
            pg_index.drop(aim, index, Reason.BULK_LOAD, "rows are loaded faster without it")
            for index, seen in sorted(aim.world.indexes.items())
            if seen.method == "hnsw" and pg_index.is_ours(aim, index, seen)
            if not pg_index.is_building(aim, index)
        )
        return Progress(drops, _LOADING, LOOK_AGAIN_SECONDS)
    state = standing(aim, wanted)
    if state == Standing.VALID:
        return Progress((_finish(aim, wanted),))
    if state == Standing.ABSENT and aim.empty:
        return Progress((_finish(aim, wanted, wanted.index.create(aim.name.schema)),))
    failure = aim.world.failures.get(wanted.name)
    if failure is not None and pg_index.is_waiting(failure, now):
        return Progress((), pg_index.build_failed(wanted.name, failure), LOOK_AGAIN_SECONDS)
    stand_still = aim.step(
        Reason.BULK_LOAD,
        f"The load is over: workers leave the table alone while {wanted.name} is built",
        set_generation(aim, state=Sql("'building'"), load_requested_at=NULL),
        tell(CATALOG_CHANNEL, aim.name.number),
    )
    progress = _building(aim, wanted, now)
    return Progress((stand_still, *progress.steps), progress.blocked, progress.look_again_seconds)


def _load_is_over(generation: GenerationRow, now: datetime) -> bool:
    asked = generation.load_requested_at
    if asked is None:
        return True
    return asked + timedelta(seconds=LOAD_QUIET_SECONDS) <= now and not generation.behind


def _building(aim: Aim, wanted: Wanted | None, now: datetime) -> Progress:
    if wanted is None:
        return Progress((_finish(aim, None),))
    match standing(aim, wanted):
        case Standing.VALID:
            return Progress((_finish(aim, wanted),))
        case Standing.BUILDING:
            return pg_index.waiting(aim, wanted.name)
        case Standing.ABSENT if aim.empty:
            return Progress((_finish(aim, wanted, wanted.index.create(aim.name.schema)),))
    failure = aim.world.failures.get(wanted.name)
    if failure is not None and pg_index.is_waiting(failure, now):
        # Documents go on coming in meanwhile; search is exact until a build succeeds.
        give_way = aim.step(
            Reason.BUILD_FAILED,
            f"Let workers go on until {wanted.name} is tried again",
            set_generation(aim, state=Sql("'loading'")),
            tell(CATALOG_CHANNEL, aim.name.number),
            tell(names.WORK_CHANNEL, aim.name.number),
        )
        return Progress((give_way,), pg_index.build_failed(wanted.name, failure), LOOK_AGAIN_SECONDS)
    sentence = f"Build the vector index {wanted.name} in one scan, and serve with it"
    return pg_index.build(aim, wanted, now, sentence=sentence, together_with=point(aim, wanted))


def _finish(aim: Aim, wanted: Wanted | None, *before: Sql) -> Step:
    name = wanted.name if wanted else "no vector index"
    return aim.step(Reason.BULK_LOAD, f"The load is done: serve with {name}", *before, *point(aim, wanted))
