"""An answer without a language model: the sentences of the passages that answer the question best.

It writes nothing of its own. A sentence counts by the words that it shares with the question, those of
its heading or of the question right before it counting too (as in a list of frequent questions, where
the answer need not repeat what was asked), and by how well its passage was found.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from polaris_service.answer.passages import Passage
from polaris_service.answer.prompt import Prompt
from polaris_service.answer.sentences import Sentence, readable, sentences, terms

_MOST_SENTENCES = 3
_MOST_CHARACTERS = 700
# On the 120 questions of the Portuguese Debian FAQ (k = 8, e5, November 2026) answers from 1, 2, 3, 5 and 8
# passages cite the section that answers in 38, 42, 46, 49 and 49 % of cases, and of all citations 40, 35, 34,
# 34 and 33 % are of it: more than five bring nothing but other sections.
_READ_PASSAGES = 5
# A sentence of less, as beside the best one, adds more noise than answer.
_SHARE_OF_BEST = 0.5
_FROM_HEADING = 0.6
_FADE = 0.85
_LONGEST_SENTENCE = 500


@dataclass(frozen=True, slots=True)
class _Candidate:
    passage: Passage
    place: int
    """Of the sentence in its passage."""
    text: str
    words: frozenset[str]
    above: frozenset[str]
    """Words of the heading, or of the question, that it stands below."""


class Extractive:
    """The generator that is always there."""

    name = "extractive"

    async def stream(self, prompt: Prompt, notes: list[str]) -> AsyncGenerator[str, None]:  # noqa: ARG002
        """Yield the sentences, each with the marker of its passage."""
        pieces = await asyncio.to_thread(answer, prompt.question, prompt.passages)
        for number, piece in enumerate(pieces):
            yield f" {piece}" if number else piece

    async def stop(self) -> None:
        """Nothing was opened."""


def answer(question: str, passages: Sequence[Passage]) -> list[str]:
    """Return sentences for the question, each ready to read and with its marker `[n]`.

    Never empty where there is a passage: without a word in common (a question in another language)
    it is how the best passage begins.
    """
    candidates = [c for passage in passages[:_READ_PASSAGES] for c in _candidates(passage)]
    if not candidates:
        return [
            f"{readable(passage.text[:_LONGEST_SENTENCE])} [{passage.number}]" for passage in passages[:1]
        ]
    scores = _scores(frozenset(terms(question)), candidates)
    chosen = _chosen(candidates, scores)
    chosen.sort(key=lambda c: (c.passage.number, c.place))
    return [f"{readable(candidate.text)} [{candidate.passage.number}]" for candidate in chosen]


def _candidates(passage: Passage) -> Iterator[_Candidate]:
    """Yield the sentences that state something, with what they stand below."""
    found = sentences(passage.text)
    above: frozenset[str] = frozenset(terms(passage.title or ""))
    for place, sentence in enumerate(found):
        text = passage.text[sentence.start : sentence.end]
        words = frozenset(terms(text))
        if sentence.heading or text.endswith("?") or _is_bare(text, sentence, found, place):
            above = words
        elif len(words) >= 2 and len(text) <= _LONGEST_SENTENCE:
            yield _Candidate(passage, place, text, words, above)


def _is_bare(text: str, sentence: Sentence, found: Sequence[Sentence], place: int) -> bool:
    """Tell a heading without a mark: short, without an end mark, and not the last of its passage."""
    last = place == len(found) - 1
    return not last and not sentence.heading and len(text) <= 80 and text[-1].isalnum() and "\n" not in text


def _scores(question: frozenset[str], candidates: Sequence[_Candidate]) -> list[float]:
    weight = _weights(candidates)
    total = sum(weight.get(word, 0.0) for word in question) or 1.0
    scores = []
    for candidate in candidates:
        own = sum(weight[word] for word in question & candidate.words) / total
        from_above = sum(weight.get(word, 0.0) for word in question & candidate.above) / total
        below_it = _FROM_HEADING * from_above / (1 + 0.3 * candidate.place)
        length = min(1.0, len(candidate.words) / 5)
        scores.append(length * (own + below_it) * _FADE ** (candidate.passage.number - 1))
    return scores


def _weights(candidates: Sequence[_Candidate]) -> Mapping[str, float]:
    counts = Counter(word for candidate in candidates for word in candidate.words | candidate.above)
    return {word: math.log(1 + len(candidates) / count) for word, count in counts.items()}


def _chosen(candidates: Sequence[_Candidate], scores: Sequence[float]) -> list[_Candidate]:
    ranked = sorted(range(len(candidates)), key=lambda i: -scores[i])
    best = scores[ranked[0]]
    if best <= 0:
        first = candidates[0].passage.number
        return [c for c in candidates if c.passage.number == first][:2]
    chosen: list[_Candidate] = []
    room = _MOST_CHARACTERS
    for i in ranked:
        candidate = candidates[i]
        if len(chosen) == _MOST_SENTENCES or scores[i] < _SHARE_OF_BEST * best:
            break
        repeats = any(_same(candidate.words, other.words) for other in chosen)
        if not repeats and len(candidate.text) <= room:
            chosen.append(candidate)
            room -= len(candidate.text)
    return chosen


def _same(a: frozenset[str], b: frozenset[str]) -> bool:
    return len(a & b) / min(len(a), len(b)) >= 0.8
