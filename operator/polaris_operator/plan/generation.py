"""The tables of a generation, and the row in the catalog that describes it."""

from __future__ import annotations

import dataclasses

from polaris import layout, names
from polaris.names import CATALOG_CHANNEL
from polaris.sql import Sql, compose, join, literal
from polaris.status import Reason
from polaris_operator.plan import pg_index, schema, vector_index
from polaris_operator.plan.aim import Aim
from polaris_operator.plan.naming import tell
from polaris_operator.plan.vector_index import NULL, json_literal, not_measured, set_generation
from polaris_operator.steps import Execute, Step
from polaris_operator.world.index import IndexWorld


def stale(aim: Aim) -> bool:
    """Whether a generation that never served was made for another spec than the present one."""
    generation = aim.generation
    if generation is None or aim.made is not None:
        return False
    embedding = aim.spec.embedding.model_dump(mode="json", by_alias=True)
    chunking = aim.spec.chunking.model_dump(mode="json", by_alias=True)
    return (dict(generation.embedding), dict(generation.chunking)) != (embedding, chunking)


def discard(aim: Aim) -> tuple[Step, IndexWorld]:
    """Return the step that removes a generation that never served, and the world without it.

    Nothing was ever put into it: the service takes no document before an index serves.
    """
    relations = (names.CHUNKS_VIEW, aim.chunks.name, aim.applied.name)
    present = [relation for relation in relations if relation in aim.world.relations]
    drops = [
        compose(
            "DROP {kind} {relation}",
            kind=Sql("VIEW" if aim.world.relations[relation].kind == "v" else "TABLE"),
            relation=aim.name.relation(relation),
        )
        for relation in present
    ]
    forget = compose(
        "DELETE FROM polaris.generations WHERE index_id = {index} AND number = {generation}",
        index=aim.name.number,
        generation=aim.number,
    )
    unserved = compose(
        "EXISTS (SELECT FROM polaris.indexes WHERE id = {index} AND serving IS NULL)", index=aim.name.number
    )
    step = Step(
        Reason.SPEC_CHANGED,
        f"Remove the empty tables of generation {aim.number}: the spec changed before it served",
        Execute((*drops, forget), (aim.guard, unserved)),
    )
    world = dataclasses.replace(
        aim.world,
        generations=(),
        relations={k: v for k, v in aim.world.relations.items() if k not in present},
        indexes={k: v for k, v in aim.world.indexes.items() if v.table != aim.chunks.name},
    )
    return step, world


def tables(aim: Aim) -> list[Step]:
    """Return the steps that make the row and tables of the generation that serves, with their indexes."""
    if aim.chunks.name not in aim.world.relations:
        return [make(aim)]
    steps = []
    if aim.applied.name not in aim.world.relations:
        steps.append(_make_applied(aim))
    elif {aim.chunks.name, aim.applied.name} & aim.world.emptied:
        steps.append(_apply_anew(aim))
    if aim.generation is None:
        insert = _insert(aim, "serving", NULL, empty=False)
        steps.append(aim.step(Reason.TABLE_MISSING, f"Write generation {aim.number} down again", insert))
    return steps


def make(aim: Aim, *, filled: bool = False) -> Step:
    """Return the step that makes the tables, with all indexes: on an empty table they cost nothing.

    Where it is `filled` at once from stored documents, indexes are made afterwards, which takes less time.
    """
    wanted = None if filled else vector_index.wanted_index(aim)
    place = aim.name.schema
    made = [aim.chunks.create(place), layout.set_embedding_storage(place, aim.number, aim.spec.embedding)]
    what = aim.chunks.name
    if aim.applied.name in aim.world.relations:
        # Everything has to be applied anew, from the stored documents.
        made.append(compose("TRUNCATE {applied}", applied=aim.name.relation(aim.applied.name)))
    else:
        made.append(aim.applied.create(place))
        what = f"{what} and {aim.applied.name}"
    built = [wanted.index] if wanted else []
    built += [] if filled else [one.index for one in pg_index.attribute_indexes(aim)]
    row = literal(wanted.name) if wanted else NULL
    state = "loading" if filled else "serving"
    return aim.step(
        Reason.TABLE_MISSING if aim.serves else Reason.SPEC_CHANGED,
        f"Make the tables {what} of generation {aim.number}{'' if filled else ', with their indexes'}",
        *schema.owned_by_owner(aim, made),
        *(index.create(place) for index in built),
        _insert(aim, state, row, empty=True) if aim.generation is None else _restart(aim, row),
        *_remember(aim),
        *schema.own_grants(aim),
        tell(CATALOG_CHANNEL, aim.name.number),
        schema.wake_workers(aim),
    )


def _remember(aim: Aim) -> tuple[Sql, ...]:
    """Return the statement after which no other generation gets this number."""
    if aim.world.subject is None or aim.number <= aim.world.subject.last_generation:
        return ()
    remember = compose(
        "UPDATE polaris.indexes SET last_generation = {generation} WHERE id = {index}",
        generation=aim.number,
        index=aim.name.number,
    )
    return (remember,)


def _make_applied(aim: Aim) -> Step:
    return aim.step(
        Reason.TABLE_MISSING,
        f"Make the table {aim.applied.name}; workers look at every document again",
        *schema.owned_by_owner(aim, [aim.applied.create(aim.name.schema)]),
        set_generation(aim, low_water=Sql("0")),
        schema.wake_workers(aim),
    )


def _apply_anew(aim: Aim) -> Step:
    """Return the step after which workers make the chunks again, from the stored documents."""
    lacking = " and ".join(sorted({aim.chunks.name, aim.applied.name} & aim.world.emptied))
    return aim.step(
        Reason.TABLE_MISSING,
        f"Rows of {lacking} are gone: workers look at every document again",
        compose("TRUNCATE {applied}", applied=aim.name.relation(aim.applied.name)),
        set_generation(aim, low_water=Sql("0")),
        schema.wake_workers(aim),
    )


def _insert(aim: Aim, state: str, index: Sql, *, empty: bool) -> Sql:
    values = {
        "index_id": Sql(str(aim.name.number)),
        "number": Sql(str(aim.number)),
        "state": literal(state),
        "embedding": json_literal(aim.spec.embedding),
        "chunking": json_literal(aim.spec.chunking),
        "index": json_literal(aim.spec.index),
        "vector_index": index,
        **not_measured(complete=empty),
    }
    return compose(
        "INSERT INTO polaris.generations ({columns}) VALUES ({values})",
        columns=join(", ", map(Sql, values)),
        values=join(", ", values.values()),
    )


def _restart(aim: Aim, index: Sql) -> Sql:
    return set_generation(
        aim,
        state=Sql("'serving'"),
        embedding=json_literal(aim.spec.embedding),
        index=json_literal(aim.spec.index),
        vector_index=index,
        low_water=Sql("0"),
        load_requested_at=NULL,
        **not_measured(complete=True),
    )


__all__ = ["discard", "make", "stale", "tables"]
