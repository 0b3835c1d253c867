"""The tables of the generation that serves, and the row in the catalog that describes it."""

from __future__ import annotations

import dataclasses

from polaris import layout, names
from polaris.changes import Change
from polaris.spec import PolarisIndexSpec
from polaris.sql import Sql, compose, join, literal
from polaris.status import Reason
from polaris_operator.plan import pg_index, schema, vector_index
from polaris_operator.plan.aim import Aim
from polaris_operator.plan.vector_index import NULL, json_literal, not_measured, set_generation
from polaris_operator.steps import Execute, Step
from polaris_operator.world.index import IndexWorld


def stale(aim: Aim) -> bool:
    """Whether a generation that never served was made for another spec than the present one."""
    generation = aim.world.generation
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
    """Return the steps that make the generation's row and tables, with their indexes."""
    if aim.chunks.name not in aim.world.relations:
        return [_make(aim)]
    steps = []
    if aim.applied.name not in aim.world.relations:
        steps.append(_make_applied(aim))
    if aim.world.generation is None:
        insert = _insert(aim, NULL, empty=False)
        steps.append(aim.step(Reason.TABLE_MISSING, f"Write generation {aim.number} down again", insert))
    return steps


def _make(aim: Aim) -> Step:
    """Make the table of chunks with all its indexes: on an empty table they cost nothing."""
    wanted = vector_index.wanted_index(aim)
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
    built += [w.index for w in pg_index.attribute_indexes(aim) if w.index.table == aim.chunks.name]
    row = literal(wanted.name) if wanted else NULL
    return aim.step(
        Reason.TABLE_MISSING,
        f"Make the tables {what} of generation {aim.number}, with their indexes",
        *schema.owned_by_owner(aim, made),
        *(index.create(place) for index in built),
        _insert(aim, row, empty=True) if aim.world.generation is None else _restart(aim, row),
        schema.wake_workers(aim),
    )


def _make_applied(aim: Aim) -> Step:
    return aim.step(
        Reason.TABLE_MISSING,
        f"Make the table {aim.applied.name}; workers look at every document again",
        *schema.owned_by_owner(aim, [aim.applied.create(aim.name.schema)]),
        set_generation(aim, low_water=Sql("0")),
        schema.wake_workers(aim),
    )


def _insert(aim: Aim, index: Sql, *, empty: bool) -> Sql:
    values = {
        "index_id": Sql(str(aim.name.number)),
        "number": Sql(str(aim.number)),
        "state": Sql("'serving'"),
        "embedding": json_literal(aim.spec.embedding),
        "chunking": json_literal(aim.spec.chunking),
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
        vector_index=index,
        low_water=Sql("0"),
        load_requested_at=NULL,
        **not_measured(complete=True),
    )


# --- the next generation, which is only shown ----------------------------------------------------


def next_generation(aim: Aim, spec: PolarisIndexSpec, needed: tuple[Change, ...]) -> tuple[Step, ...]:
    """Return the steps that the change would take, for a person to read."""
    number = max((g.number for g in aim.world.generations), default=0) + 1
    place = aim.name.schema
    chunks, applied = layout.chunks(number, spec.embedding), layout.applied(number)
    index = layout.vector_index(number, spec.embedding, spec.index)
    converted = {change.path for change in needed} == {"embedding.type"}
    filled = "convert the vectors" if converted else "embed the stored documents"
    make = aim.step(
        Reason.SPEC_CHANGED,
        f"Make the tables {chunks.name} and {applied.name} of generation {number}",
        chunks.create(place),
        layout.set_embedding_storage(place, number, spec.embedding),
        applied.create(place),
    )
    steps = [make, aim.step(Reason.SPEC_CHANGED, f"Fill generation {number}: {filled}")]
    if index is not None:
        build = f"Build the vector index {index.name} in one scan"
        steps.append(aim.step(Reason.SPEC_CHANGED, build, index.create(place)))
    switch = f"Point queries to generation {number}, and keep generation {aim.number} for a way back"
    return (*steps, aim.step(Reason.SPEC_CHANGED, switch))


__all__ = ["discard", "next_generation", "stale", "tables"]
