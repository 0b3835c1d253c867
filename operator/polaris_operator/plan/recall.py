"""The promise of recall: when it is measured again, and which `ef_search` keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from polaris import layout
from polaris.sql import Sql, compose, literal
from polaris.status import Reason
from polaris_operator.plan.aim import Aim
from polaris_operator.plan.vector_index import set_generation
from polaris_operator.steps import MeasureRecall, Step
from polaris_operator.world.index import GenerationRow

LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000)
"""Values of hnsw.ef_search that are tried; pgvector takes at most 1,000."""
SAMPLES = (400, 50, 5, 1)
"""Vectors that are looked for: enough that the bound lies within 0.003 of a recall of 0.99; fewer where
PostgreSQL takes too long, so that recall is always known."""
EXACT_ROWS = 100
"""Up to so many rows the graph is complete, and what is found is all there is."""
CHANGED_SHARE = 0.2
"""What was measured says little once the rows have changed by this share."""
AGE_SECONDS = 600
"""After so long it is measured again if the rows have changed at all, or it was not good enough."""
BUDGET_SECONDS = 20.0
"""Longest time of one measurement; it is made from fewer vectors where that is not enough."""
LAST_SECONDS = 600.0
"""Longest time of the last attempt, with a single vector."""
DEVIATIONS = 1.645
"""How far below what was measured the true recall is taken to be: with this, one index in twenty finds
less than was promised."""


@dataclass(frozen=True)
class Measured:
    """What a measurement came to."""

    ef_search: int
    recall: float | None
    """Share of the exact top 10 that was found, 0 to 1; None where there was no time for one vector."""


def at_least(recall: float, looked_for: int) -> float:
    """Return the lower bound of the true recall, where so many neighbours were looked for.

    Wilson's, one-sided, as if the neighbours were found independently of each other: those of one
    vector are not quite, so it is a little too narrow.
    """
    share = DEVIATIONS**2 / looked_for
    spread = DEVIATIONS * math.sqrt(recall * (1 - recall) / looked_for + share / (4 * looked_for))
    return (recall + share / 2 - spread) / (1 + share)


def choose(target: float, measure: Callable[[int], float | None], present: int, looked_for: int) -> Measured:
    """Return the smallest rung of the ladder that keeps the promise for sure, or else the best one.

    `measure` returns the recall at an ef_search, by so many neighbours that were looked for; None where
    time is up: then the best of what was measured counts, and `present` stays where that is nothing.
    Chosen is by the bound, as the best of several measurements flatters. Recall grows with ef_search,
    so the rungs are searched by halving; where no sample of this size can prove the promise, the
    smallest of those that did best is enough.
    """
    target = min(target, at_least(1.0, looked_for))
    best = Measured(present, None)
    low, high = 0, len(LADDER) - 1
    while low <= high:
        middle = (low + high) // 2
        recall = measure(LADDER[middle])
        if recall is None:
            break
        if at_least(recall, looked_for) >= target:
            best, high = Measured(LADDER[middle], recall), middle - 1
            continue
        low = middle + 1
        if best.recall is None or best.recall < recall:
            best = Measured(LADDER[middle], recall)
    return best


def record(number: int, generation: int, measured: Measured, rows: int) -> Sql:
    """Return the statement that writes a measurement down."""
    recall = Sql("NULL") if measured.recall is None else Sql(f"{measured.recall:.6f}")
    return compose(
        "UPDATE polaris.generations SET ef_search = {ef}, recall = {recall}, recall_rows = {rows},"
        " recall_at = now() WHERE index_id = {index} AND number = {generation}",
        ef=measured.ef_search,
        recall=recall,
        rows=rows,
        index=number,
        generation=generation,
    )


def steps(aim: Aim) -> list[Step]:
    """Return the step that measures recall, where that is due."""
    generation = aim.generation
    relation = aim.world.relations.get(aim.chunks.name)
    if generation is None or relation is None or generation.state != "serving":
        return []
    why = due(generation, relation.rows, aim.spec.search.target_recall_percent / 100, aim.world.now)
    if why is None:
        return []
    if generation.vector_index is None or relation.rows <= EXACT_ROWS:
        return [_by_definition(aim, generation, relation.rows)]
    action = MeasureRecall(
        aim.name.number,
        generation.number,
        aim.name.schema,
        layout.DISTANCE_OPERATOR[aim.spec.embedding.metric],
        aim.spec.search.target_recall_percent,
        generation.ef_search,
    )
    return [Step(Reason.NOT_MEASURED, f"Measure the recall of {generation.vector_index}: {why}", action)]


def due(generation: GenerationRow, rows: int, target: float, now: datetime) -> str | None:
    """Return why recall is to be measured (again); None where it need not be."""
    if generation.recall_at is None or generation.recall_rows is None:
        return "it was never measured for what is promised"
    changed = abs(rows - generation.recall_rows)
    old = now - generation.recall_at >= timedelta(seconds=AGE_SECONDS)
    if changed > CHANGED_SHARE * max(generation.recall_rows, EXACT_ROWS) or (old and changed):
        return f"rows changed from {generation.recall_rows} to {rows}"
    if old and (generation.recall is None or generation.recall < target):
        return "the last measurement kept no promise"
    return None


def forget(aim: Aim) -> tuple[Sql, ...]:
    """Return the statement by which another promise is measured anew; none where it is the same."""
    if aim.made is None or (aim.made.search.target_recall_percent == aim.spec.search.target_recall_percent):
        return ()
    return (set_generation(aim, recall_at=Sql("NULL")),)


def _by_definition(aim: Aim, generation: GenerationRow, rows: int) -> Step:
    update = set_generation(aim, recall=Sql("1"), recall_rows=literal(str(rows)), recall_at=Sql("now()"))
    what = "every search is exact" if generation.vector_index is None else f"there are only {rows} rows"
    return aim.step(Reason.NOT_MEASURED, f"Recall is complete: {what}", update)
