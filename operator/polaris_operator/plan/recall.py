"""The promise of recall: when it is measured again, and which `ef_search` keeps it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from polaris.sql import Sql, compose, literal
from polaris.status import Reason
from polaris_operator.plan.aim import Aim
from polaris_operator.plan.estimate import Estimate, at_least
from polaris_operator.plan.vector_index import set_generation
from polaris_operator.steps import MeasureRecall, Step
from polaris_operator.world.index import ClassRecall, GenerationRow, RecallDetails, Relation

LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000)
"""Values of hnsw.ef_search that are tried; pgvector takes at most 1,000."""
SAMPLES = (400, 50, 5, 1)
"""Vectors that are looked for: enough that the bound lies within 0.003 of a recall of 0.99; fewer where
PostgreSQL takes too long, so that recall is always known."""
EXACT_ROWS = 100
"""Up to so many rows the graph is complete, and what is found is all there is."""
CHANGED_SHARE = 0.1
"""What was measured says little once rows were written or deleted to this share of all."""
AGE_SECONDS = 240.0
"""After so long it is measured again where anything was written at all, or more questions were kept."""
RETRY_SECONDS = 600.0
"""So long after a measurement that kept no promise there is another one."""
BUDGET_SECONDS = 12.0
"""Longest time of one measurement; it is made from fewer vectors where that is not enough."""
LAST_SECONDS = 600.0
"""Longest time of the last attempt, with a single vector."""
TIME_SHARE = 0.04
"""Share of the time that an index is measured in: one connection's, and less of the server's."""


@dataclass(frozen=True)
class Measured:
    """What a measurement came to."""

    ef_search: int
    rows: int
    """By PostgreSQL's estimate, when it began."""
    details: RecallDetails
    """Without classes where there was no time for one vector."""

    @property
    def recall(self) -> float | None:
        """Recall by the index's own rows; None where there was no time for one."""
        return next((one.recall for one in self.details.classes if one.of == "rows"), None)


def choose(
    target: float,
    ways: Mapping[str, int],
    measure: Callable[[str, int], Estimate | None],
    present: int,
) -> tuple[int, dict[str, Estimate]]:
    """Return the smallest rung that keeps the promise for sure, however is asked, and what was found there.

    `ways` are the ways to ask, with how many neighbours each looks for; `measure` returns what one of them
    finds at an ef_search, None where time is up: then the best of what was measured counts, and `present`
    stays where that is nothing. Chosen is by the bound, as the best of several measurements flatters. Recall
    grows with ef_search, so the rungs are searched by halving; where no sample of this size can prove the
    promise, the smallest of those that did best is enough.
    """
    known: dict[str, dict[int, Estimate]] = {way: {} for way in ways}

    def asked(way: str, rung: int) -> Estimate | None:
        ef_search = LADDER[rung]
        if ef_search not in known[way] and (found := measure(way, ef_search)) is not None:
            known[way][ef_search] = found
        return known[way].get(ef_search)

    lowest: int | None = None
    for way, looked_for in ways.items():
        provable = min(target, at_least(1.0, looked_for))
        found = _climb(provable, partial(asked, way), lowest)
        if found is None:
            break
        lowest = found
    if lowest is None:
        return present, {}
    for way in ways:
        asked(way, lowest)
    return LADDER[lowest], {way: _at(found, LADDER[lowest]) for way, found in known.items() if found}


def _climb(target: float, measure: Callable[[int], Estimate | None], lowest: int | None) -> int | None:
    """Return the first rung from `lowest` on that keeps the promise, or else the best; None: time is up."""
    best: tuple[int, Estimate] | None = None
    low, high = lowest or 0, len(LADDER) - 1
    # What keeps the promise for one way to ask mostly does for the others.
    middle = (low + high) // 2 if lowest is None else low
    while low <= high:
        found = measure(middle)
        if found is None:
            break
        if found.bound >= target:
            best, high = (middle, found), middle - 1
        else:
            low = middle + 1
            if best is None or best[1].recall < found.recall:
                best = (middle, found)
        middle = (low + high) // 2
    return best[0] if best else None


def _at(found: Mapping[int, Estimate], ef_search: int) -> Estimate:
    """Return what was measured there, or as near as there was time for."""
    return found[min(found, key=lambda one: abs(one - ef_search))]


def record(number: int, generation: int, measured: Measured) -> Sql:
    """Return the statement that writes a measurement down."""
    recall = Sql("NULL") if measured.recall is None else Sql(f"{measured.recall:.6f}")
    return compose(
        "UPDATE polaris.generations SET ef_search = {ef}, recall = {recall}, recall_rows = {rows},"
        " recall_at = now(), recall_details = {details} WHERE index_id = {index} AND number = {generation}",
        ef=measured.ef_search,
        recall=recall,
        rows=measured.rows,
        details=literal(json.dumps(dataclasses.asdict(measured.details), sort_keys=True)),
        index=number,
        generation=generation,
    )


def steps(aim: Aim) -> list[Step]:
    """Return the step that measures recall, where that is due and not under way."""
    generation = aim.generation
    relation = aim.world.relations.get(aim.chunks.name)
    if generation is None or relation is None or generation.state != "serving":
        return []
    if generation.number in aim.world.measuring:
        return []
    why = due(generation, relation, aim.spec.search.target_recall_percent / 100, aim.world.now)
    if why is None:
        return []
    if generation.vector_index is None or relation.rows <= EXACT_ROWS:
        return [] if generation.recall_at and generation.recall == 1 else [_by_definition(aim, generation)]
    action = MeasureRecall(
        aim.name.number,
        generation.number,
        aim.name.schema,
        aim.spec.embedding,
        tuple(aim.spec.attributes),
        aim.spec.search.target_recall_percent,
        generation.ef_search,
        urgent=generation.recall_at is None,
    )
    return [Step(Reason.NOT_MEASURED, f"Measure the recall of {generation.vector_index}: {why}", action)]


def due(generation: GenerationRow, relation: Relation, target: float, now: datetime) -> str | None:
    """Return why recall is to be measured (again); None where it need not be, or was too lately."""
    if generation.recall_at is None or generation.recall_rows is None:
        return "it was never measured for what is promised"
    age = (now - generation.recall_at).total_seconds()
    details = generation.recall_details
    if age < (details.took_seconds / TIME_SHARE if details else 0):
        return None
    changed, many = _changed(generation, relation), max(generation.recall_rows, EXACT_ROWS)
    if changed > CHANGED_SHARE * many or (changed and age >= AGE_SECONDS):
        return f"{changed} rows were written or deleted since there were {generation.recall_rows}"
    if age >= AGE_SECONDS and generation.questions > 2 * (details.questions if details else 0):
        return f"there are {generation.questions} questions to measure it with"
    if age >= RETRY_SECONDS and (generation.recall is None or below(generation, target)):
        return "the last measurement kept no promise"
    return None


def _changed(generation: GenerationRow, relation: Relation) -> int:
    """Return how many rows were written or deleted since, at least."""
    by_rows = abs(relation.rows - (generation.recall_rows or 0))
    if generation.recall_details is None:
        return by_rows
    # A server that was killed counts from nothing again.
    return max(by_rows, abs(relation.writes - generation.recall_details.writes))


def below(generation: GenerationRow, target: float) -> ClassRecall | None:
    """Return the way to ask that finds least, where that is less than was promised."""
    found = classes(generation)
    worst = min(found, key=lambda one: one.recall, default=None)
    return worst if worst is not None and worst.recall < target else None


def classes(generation: GenerationRow) -> tuple[ClassRecall, ...]:
    """Return what was measured, by way to ask; of a measurement by older code its one number."""
    if generation.recall_details is not None and generation.recall_details.classes:
        return generation.recall_details.classes
    if generation.recall is None:
        return ()
    return (ClassRecall("rows", 0, generation.recall, generation.recall, generation.recall),)


def described(one: ClassRecall) -> str:
    """Return in words how is asked."""
    if one.of == "rows":
        return "by its own rows"
    if one.of == "questions":
        return "by what was asked"
    return f"with a filter on {one.attribute} that leaves {100 * (one.share or 0):.1f}% of the rows"


def forget(aim: Aim) -> tuple[Sql, ...]:
    """Return the statement by which another promise is measured anew; none where it is the same."""
    if aim.made is None or (aim.made.search.target_recall_percent == aim.spec.search.target_recall_percent):
        return ()
    return (set_generation(aim, recall_at=Sql("NULL")),)


def _by_definition(aim: Aim, generation: GenerationRow) -> Step:
    rows = aim.world.relations[aim.chunks.name].rows
    update = set_generation(
        aim,
        recall=Sql("1"),
        recall_rows=literal(str(rows)),
        recall_at=Sql("now()"),
        recall_details=Sql("NULL"),
    )
    what = "every search is exact" if generation.vector_index is None else f"there are only {rows} rows"
    return aim.step(Reason.NOT_MEASURED, f"Recall is complete: {what}", update)
