"""Which of the hits a generator gets to read: no text twice, neighbours joined, within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from polaris_service.answer.sentences import sentences, terms
from polaris_service.search.dense import Hit

BUDGET_CHARACTERS = 12_000
"""About 3,000 tokens of English or Portuguese: what small models take, and more than answers need."""
_SAME = 0.9
# A shorter rest of a passage is not worth its place.
_LEAST_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch `[start, end)` of one version of a document, in code points, with its text."""

    number: int
    """What markers cite: 1, 2, 3 in the order of relevance."""
    document: str
    version: int
    start: int
    end: int
    text: str
    title: str | None
    uri: str | None
    score: float


def choose(hits: Sequence[Hit], budget: int = BUDGET_CHARACTERS) -> list[Passage]:
    """Return the passages that are read, best first, numbered from 1; `hits` come best first.

    Chunks of one document that overlap or touch become one passage, at the place of the better one.
    What says nearly the same words as a better passage is left out. The budget is in characters; the
    first passage that does not fit is cut at the end of a sentence, and ends the list.
    """
    chosen: list[Passage] = []
    left = budget
    for passage in _without_repetition(_joined(hits)):
        fitting = _cut(passage, left)
        if fitting is None:
            break
        chosen.append(replace(fitting, number=len(chosen) + 1))
        left -= len(fitting.text)
        if fitting is not passage:
            break
    return chosen


def _joined(hits: Sequence[Hit]) -> list[Passage]:
    """Return hits as passages, those that overlap or touch as one, each at the place of its best hit."""
    of_version: dict[tuple[str, int], list[int]] = {}
    for rank, hit in enumerate(hits):
        of_version.setdefault((hit.document, hit.version), []).append(rank)
    runs = [run for ranks in of_version.values() for run in _runs(hits, ranks)]
    return [_passage([hits[rank] for rank in run]) for run in sorted(runs, key=min)]


def _runs(hits: Sequence[Hit], ranks: Iterable[int]) -> Iterator[list[int]]:
    """Yield the ranks of hits of one version that overlap or touch, in the order of their text."""
    run: list[int] = []
    end = 0
    for rank in sorted(ranks, key=lambda rank: (hits[rank].start, -hits[rank].end)):
        if run and hits[rank].start > end:
            yield run
            run = []
        end = max(end, hits[rank].end) if run else hits[rank].end
        run.append(rank)
    if run:
        yield run


def _passage(run: Sequence[Hit]) -> Passage:
    """Return what hits of one version tell together; they are in order and leave no gap."""
    first = run[0]
    pieces, end = [first.text], first.end
    for hit in run[1:]:
        if hit.end > end:
            pieces.append(hit.text[end - hit.start :])
            end = hit.end
    return Passage(
        number=0,
        document=first.document,
        version=first.version,
        start=first.start,
        end=end,
        text="".join(pieces),
        title=first.title,
        uri=first.uri,
        score=max(hit.score for hit in run),
    )


def _without_repetition(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Yield what is not said before; one at a time, so that nothing beyond the budget is compared."""
    kept: list[frozenset[str]] = []
    for passage in passages:
        words = frozenset(terms(passage.text))
        if not any(_alike(words, other) for other in kept):
            kept.append(words)
            yield passage


def _alike(a: frozenset[str], b: frozenset[str]) -> bool:
    union = len(a | b)
    return union > 0 and len(a & b) / union >= _SAME


def _cut(passage: Passage, left: int) -> Passage | None:
    """Return as much of the passage as fits; None where that is too little."""
    if len(passage.text) <= left:
        return passage
    if left < _LEAST_CHARACTERS:
        return None
    ends = [sentence.end for sentence in sentences(passage.text) if sentence.end <= left]
    end = ends[-1] if ends else left
    return replace(passage, end=passage.start + end, text=passage.text[:end])
