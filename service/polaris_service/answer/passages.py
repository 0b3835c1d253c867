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


def _joined(hits: Iterable[Hit]) -> list[Passage]:
    """Return hits as passages; those that overlap or touch are one."""
    passages: list[Passage] = []
    for hit in hits:
        new = _passage(hit)
        # What the new one touches may be two: it can fill the gap between them.
        touching = [p for p in passages if _touch(p, new)]
        if not touching:
            passages.append(new)
            continue
        at = passages.index(touching[0])
        for other in touching:
            new = _union(new, other)
        passages[at] = new
        passages = [p for p in passages if p not in touching[1:]]
    return passages


def _passage(hit: Hit) -> Passage:
    return Passage(
        number=0,
        document=hit.document,
        version=hit.version,
        start=hit.start,
        end=hit.end,
        text=hit.text,
        title=hit.title,
        uri=hit.uri,
        score=hit.score,
    )


def _touch(a: Passage, b: Passage) -> bool:
    same = a.document == b.document and a.version == b.version
    return same and a.start <= b.end and b.start <= a.end


def _union(a: Passage, b: Passage) -> Passage:
    first, second = (a, b) if (a.start, -a.end) <= (b.start, -b.end) else (b, a)
    text = first.text
    if second.end > first.end:
        text += second.text[first.end - second.start :]
    return replace(first, end=max(a.end, b.end), text=text, score=max(a.score, b.score))


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
