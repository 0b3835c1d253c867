"""How another generation takes the place of the one that serves.

=============  ===================================================================================
made           its tables, without indexes where there are documents to fill it with
loading        workers fill it from the stored documents; vectors are copied where nothing changed
building       a plain build of its vector index; workers leave it alone
serving        it catches up, and is brought to what the spec says of indexes
verified       the gates: its documents and chunks are those that there should be, and its recall is
               what was promised
switched       one transaction moves the pointer and the view; what served before is the previous one
=============  ===================================================================================

The previous one is kept level, so that the way back is a switch and nothing else. What fits neither the
spec nor that way back is forgotten: workers leave it, and then its tables go. None of this removes what
can't be made again from the stored documents.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta

from polaris import layout, names
from polaris.changes import Change
from polaris.names import CATALOG_CHANNEL, WORK_CHANNEL
from polaris.spec import Embedding, PolarisIndexSpec, VectorIndex
from polaris.sql import Sql, compose, join, literal
from polaris.status import Reason
from polaris_operator.plan import generation, pg_index, recall, schema, vector_index
from polaris_operator.plan.aim import Aim
from polaris_operator.plan.naming import tell
from polaris_operator.plan.pg_index import DROP_GRACE_SECONDS, LOOK_AGAIN_SECONDS, Progress
from polaris_operator.plan.vector_index import NULL, set_generation
from polaris_operator.steps import Blocked, Execute, Step, Verify
from polaris_operator.world.index import GenerationRow, IndexWorld, Verified

_LEVEL_SHARE, _LEVEL_FEW, _LEVEL_MANY = 0.01, 5, 100
VERIFIED_SECONDS = 15.0
"""So long what the gates found holds; where they found fault they are looked at again after it."""
_SOON_SECONDS = 1.0
_STEPS = 20
_SWITCH_SECONDS = 2.0
_SWITCH_LOCK_MILLISECONDS = 50
_TABLE = re.compile(r"g([0-9]+)_(?:chunks|applied)")


# --- which generation ----------------------------------------------------------------------------


def fits(row: GenerationRow, spec: PolarisIndexSpec) -> bool:
    """Whether a generation holds what the spec asks for, whatever its index and metric are."""
    return _content(row.embedding, row.chunking) == _content(
        spec.embedding.model_dump(mode="json", by_alias=True),
        spec.chunking.model_dump(mode="json", by_alias=True),
    )


def _content(embedding: Mapping[str, object], chunking: Mapping[str, object]) -> object:
    return {key: value for key, value in embedding.items() if key != "metric"}, dict(chunking)


def next_number(world: IndexWorld) -> int:
    """Return the number of a generation that is made anew: none that any ever bore."""
    tables = (int(found[1]) for name in world.relations if (found := _TABLE.fullmatch(name)))
    last = world.subject.last_generation if world.subject else 0
    return max((last, *tables, *(row.number for row in world.generations))) + 1


def aimed_at(serving: Aim, spec: PolarisIndexSpec) -> Aim:
    """Return the generation that shall take the place of the one that serves."""
    fitting = [row for row in serving.world.others if fits(row, spec)]
    number = max((row.number for row in fitting), default=None)
    return dataclasses.replace(
        serving,
        spec=spec,
        made=None,
        number=next_number(serving.world) if number is None else number,
    )


def kept(serving: Aim, row: GenerationRow) -> Aim:
    """Return a generation that is kept level, as it is."""
    held = {
        "embedding": Embedding.model_validate(row.embedding),
        "index": VectorIndex.model_validate(row.index) if row.index else serving.spec.index,
    }
    spec = serving.spec.model_copy(update=held)
    return dataclasses.replace(serving, spec=spec, made=spec, number=row.number)


# --- on its way ----------------------------------------------------------------------------------


def succeed(aim: Aim, serving: Aim, now: datetime, point: tuple[Sql, ...]) -> Progress:
    """Return what leads to this generation serving, up to the first thing that has to be waited for.

    `point` are the statements that write its spec down, which the switch does in its transaction.
    """
    row = aim.generation
    if row is None:
        many = aim.world.clock != 0
        return Progress((generation.make(aim, filled=many),), _filling(aim), _SOON_SECONDS)
    if _is_broken(aim):
        return Progress((forget(aim, "its tables were damaged"),), _filling(aim), _SOON_SECONDS)
    own = _looked_after(aim)
    level = row.behind <= _level_documents(aim.world) and not row.failing
    if row.state == "loading" and not level:
        return Progress(own, _filling(aim), LOOK_AGAIN_SECONDS)
    for part in (vector_index.settle(aim, now), pg_index.attain(aim, now)):
        if part.steps or part.blocked is not None:
            return dataclasses.replace(part, steps=(*own, *part.steps))
    if not level:
        return Progress(own, _filling(aim), _SOON_SECONDS)
    return _through_the_gates(aim, serving, row, own, point)


def _level_documents(world: IndexWorld) -> int:
    """Return how many may be behind where all is as good as filled: others come in all the time."""
    documents = world.relations.get(names.DOCUMENTS)
    share = int(_LEVEL_SHARE * (documents.rows if documents else 0))
    return min(max(share, _LEVEL_FEW), _LEVEL_MANY)


def _is_broken(aim: Aim) -> bool:
    missing = {aim.chunks.name, aim.applied.name} - aim.world.relations.keys()
    return bool(missing or schema.own_faults(aim))


def _looked_after(aim: Aim) -> tuple[Step, ...]:
    """Return repairs of the generation's tables, and the end of builds and indexes that it wants no more."""
    wanted = vector_index.kept(aim)
    return (
        *schema.own_ownership(aim),
        *schema.own_storage(aim),
        *_granted(aim),
        *pg_index.unwanted_builds(aim, wanted),
        *pg_index.leftovers(aim, wanted).steps,
    )


def _granted(aim: Aim) -> tuple[Step, ...]:
    lacking = schema.own_grants(aim)
    sentence = f"Grant writers what they lack on generation {aim.number}"
    return (aim.step(Reason.GRANT_MISSING, sentence, *lacking),) if lacking else ()


def _filling(aim: Aim) -> Blocked:
    done, total = filled(aim.world, aim.number)
    share = f": {100 * done // total}%" if total else ""
    if (row := aim.generation) and row.failing:
        share += f", and {row.failing} documents that failed are tried again"
    return Blocked(
        Reason.FILLING, f"generation {aim.number} is filled from the stored documents{share}", stalled=False
    )


def filled(world: IndexWorld, number: int) -> tuple[int, int]:
    """Return how many documents a generation has applied, and of how many; PostgreSQL's estimates.

    In steps of a twentieth: a status that differs is written, and this one would at every look.
    """
    applied, documents = (
        world.relations.get(name) for name in (names.applied_table(number), names.DOCUMENTS)
    )
    total = documents.rows if documents else 0
    done = min(applied.rows if applied else 0, total)
    return done - done % max(1, total // _STEPS), total


# --- the gates, and the switch -------------------------------------------------------------------


def _through_the_gates(
    aim: Aim, serving: Aim, row: GenerationRow, own: tuple[Step, ...], point: tuple[Sql, ...]
) -> Progress:
    age = None if row.verified_at is None else (aim.world.now - row.verified_at).total_seconds()
    if row.verified is None or age is None or age > VERIFIED_SECONDS:
        verify = Verify(aim.name.number, aim.number, serving.number, aim.name.schema)
        sentence = f"Compare generation {aim.number} with the stored documents"
        return Progress((*own, Step(Reason.VERIFYING, sentence, verify)))
    if row.verified.faults:
        return Progress(own, _failed(aim, "; ".join(row.verified.faults)), VERIFIED_SECONDS - age)
    if row.superseded_at is not None:
        # It served before, and what came to serve after it may be harming somebody: a way back does not
        # wait for a measurement, nor for a promise that it may have broken all along.
        return Progress((*own, _switch(aim, serving, point, row.verified)))
    return _by_its_recall(aim, row, own, _switch(aim, serving, point, row.verified))


def _by_its_recall(aim: Aim, row: GenerationRow, own: tuple[Step, ...], switch: Step) -> Progress:
    if aim.number in aim.world.measuring:
        measured = f"the recall of {row.vector_index} is measured"
        return Progress(own, Blocked(Reason.VERIFYING, measured, stalled=False), LOOK_AGAIN_SECONDS)
    if measure := recall.steps(aim):
        return Progress((*own, *measure))
    target = aim.spec.search.target_recall_percent
    less = recall.below(row, target / 100)
    if row.vector_index is not None and less is not None:
        found = (
            f"{row.vector_index} finds {less.recall * 100:.1f}% of the exact top 10"
            f" {recall.described(less)}; promised: {target}%"
        )
        return Progress(own, _failed(aim, found), recall.AGE_SECONDS)
    return Progress((*own, switch))


def record_verified(number: int, generation: int, verified: Verified) -> Sql:
    """Return the statement that writes down what the gates found."""
    return compose(
        "UPDATE polaris.generations SET verified_at = now(), verified = {verified}"
        " WHERE index_id = {index} AND number = {generation}",
        verified=literal(json.dumps(dataclasses.asdict(verified), sort_keys=True)),
        index=number,
        generation=generation,
    )


def _failed(aim: Aim, why: str) -> Blocked:
    message = (
        f"generation {aim.number} does not get through the gates, and what serves goes on serving: {why}"
    )
    return Blocked(Reason.GATE_FAILED, message, stalled=True)


def _switch(aim: Aim, serving: Aim, point: tuple[Sql, ...], verified: Verified) -> Step:
    """Move the pointer and the view, in a moment at which nobody loses sight of a document.

    What the gates did not see yet is looked at here.

    Workers hold the lock shared while they write what they have embedded: behind it, what the serving
    generation shows is what it will have shown when the others follow the pointer.
    """
    hold = compose(
        "set_config('lock_timeout', '{milliseconds}ms', true) IS NOT NULL"
        " AND pg_advisory_xact_lock({key}) IS NOT NULL",
        milliseconds=_SWITCH_LOCK_MILLISECONDS,
        key=names.switch_lock(aim.name.schema, serving.number),
    )
    statements = (
        *point,
        set_generation(serving, superseded_at=Sql("now()")),
        set_generation(aim, superseded_at=NULL, valid_since=Sql("now()"), load_requested_at=NULL),
        *schema.point_view(aim),
        tell(CATALOG_CHANNEL, aim.name.number),
        tell(WORK_CHANNEL, aim.name.number),
    )
    back = "back " if (row := aim.generation) and row.superseded_at else ""
    sentence = f"Switch {back}from generation {serving.number} to {aim.number}"
    action = Execute(statements, (aim.guard, hold, _shows_as_much(aim, serving, verified)), _SWITCH_SECONDS)
    return Step(Reason.SPEC_CHANGED, sentence, action)


def _shows_as_much(aim: Aim, serving: Aim, verified: Verified) -> Sql:
    return compose(
        "NOT EXISTS (SELECT FROM {documents} d JOIN {before} b ON b.document_id = d.id"
        " LEFT JOIN {after} a ON a.document_id = d.id"
        " WHERE d.sequence > {settled} AND b.sequence > coalesce(a.sequence, 0))",
        documents=aim.name.relation(names.DOCUMENTS),
        before=aim.name.relation(serving.applied.name),
        after=aim.name.relation(aim.applied.name),
        settled=verified.settled,
    )


# --- what is kept, and what goes -----------------------------------------------------------------


def keep(serving: Aim, target: int | None, now: datetime) -> Progress:
    """Return what previous generations lack to be a way back; not the one that is just being taken."""
    parts: list[Step] = []
    for row in serving.world.others:
        if row.superseded_at is None or row.number == target:
            continue
        aim = kept(serving, row)
        if _is_broken(aim):
            parts.append(forget(aim, "its tables were damaged"))
            continue
        parts += [*_looked_after(aim), *vector_index.settle(aim, now).steps]
    return Progress(tuple(parts))


def retire(serving: Aim, target: int | None, retain_seconds: int) -> Progress:
    """Return the steps that forget generations that nobody wants, and remove the tables of forgotten ones."""
    previous = [row for row in serving.world.others if row.superseded_at is not None]
    newest = max(previous, key=lambda row: row.superseded_at or serving.world.now, default=None)
    steps: list[Step] = []
    wait: float | None = None
    for row in serving.world.others:
        if row.number == target:
            continue
        left = _left(row, serving.world.now, retain_seconds if row is newest else 0)
        if left is None:
            steps.append(forget(kept(serving, row), "the spec asks for another one"))
        elif left <= 0:
            steps.append(forget(kept(serving, row), "the time for a way back is over"))
        else:
            wait = min(left, wait or left)
    return Progress((*steps, *_remove_tables(serving)), None, wait)


def drop_after(row: GenerationRow, retain_seconds: int) -> datetime | None:
    """Return when a previous generation is given up; None where it is none."""
    if row.superseded_at is None:
        return None
    return row.superseded_at + timedelta(seconds=max(retain_seconds, DROP_GRACE_SECONDS))


def _left(row: GenerationRow, now: datetime, retain_seconds: int) -> float | None:
    end = drop_after(row, retain_seconds)
    return None if end is None else (end - now).total_seconds()


def forget(aim: Aim, why: str) -> Step:
    """Return the step after which nobody works with a generation that does not serve."""
    delete = compose(
        "DELETE FROM polaris.generations WHERE index_id = {index} AND number = {generation}",
        index=aim.name.number,
        generation=aim.number,
    )
    idle = compose(
        "EXISTS (SELECT FROM polaris.indexes WHERE id = {index} AND serving <> {generation})",
        index=aim.name.number,
        generation=aim.number,
    )
    statements = (
        pg_index.cancel_builds(aim),
        delete,
        tell(CATALOG_CHANNEL, aim.name.number),
        tell(WORK_CHANNEL, aim.name.number),
    )
    return Step(
        Reason.GENERATION_RETIRED,
        f"Give generation {aim.number} up: {why}",
        Execute(statements, (aim.guard, idle)),
    )


def _remove_tables(serving: Aim) -> list[Step]:
    """Return the step that drops tables of generations that the catalog knows no more."""
    known = {serving.number, *(row.number for row in serving.world.generations)}
    left = [
        name
        for name, seen in sorted(serving.world.relations.items())
        if (found := _TABLE.fullmatch(name)) and int(found[1]) not in known and seen.kind == "r"
    ]
    if not left:
        return []
    unknown = compose(
        "NOT EXISTS (SELECT FROM polaris.generations WHERE index_id = {index} AND number IN ({numbers}))",
        index=serving.name.number,
        numbers=Sql(", ".join(sorted({name[1:].partition("_")[0] for name in left}))),
    )
    drop = compose("DROP TABLE {tables}", tables=join(", ", [serving.name.relation(name) for name in left]))
    sentence = f"Drop {', '.join(left)}: no generation has {'them' if len(left) > 1 else 'it'}"
    return [Step(Reason.GENERATION_RETIRED, sentence, Execute((drop,), (serving.guard, unknown)))]


# --- what is only shown --------------------------------------------------------------------------


def shown(aim: Aim, serving: Aim, needed: tuple[Change, ...]) -> tuple[Step, ...]:
    """Return the steps that the change would take from its beginning, for a person to read."""
    if aim.generation is not None:
        return ()
    place = aim.name.schema
    index = layout.vector_index(aim.number, aim.spec.embedding, aim.spec.index)
    converted = {change.path for change in needed} == {"embedding.type"}
    what = "convert the vectors" if converted else "embed the stored documents"
    steps = [
        generation.make(aim, filled=True),
        aim.step(Reason.SPEC_CHANGED, f"Fill generation {aim.number}: {what}"),
    ]
    if index is not None:
        build = f"Build the vector index {index.name} in one scan"
        steps.append(aim.step(Reason.SPEC_CHANGED, build, index.create(place)))
    switch = (
        f"Switch from generation {serving.number} to {aim.number}, and keep {serving.number} for a way back"
    )
    return (*steps, aim.step(Reason.SPEC_CHANGED, switch, *schema.point_view(aim)))


__all__ = [
    "aimed_at",
    "drop_after",
    "filled",
    "fits",
    "forget",
    "keep",
    "next_number",
    "record_verified",
    "retire",
    "shown",
    "succeed",
]
