"""Citations: from markers in a generated text to spans of stored text.

`[2]`, `[2][3]`, `[1, 3]`, `[1-3]` and `【2】` are markers. Those that name no passage that was given are
taken out of the text. Each of the others becomes a citation of the passage's one sentence that shares
most words with the sentence that cites it; of all the passage where none shares any (an answer in
another language than its source). What leaves was compared with the stored text besides
(`verification`): a citation that does not verify is taken out, and its markers with it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from polaris_service.answer.passages import Passage
from polaris_service.answer.sentences import sentences, terms

_NUMBER = r"\^?\d{1,9}"
# No marker has more than 64 characters, so that a text that still grows need not hold back more.
_LIST = rf"(?=[^\]】]{{1,64}}[\]】])\s*{_NUMBER}(?:\s*[,;\u2013-]\s*{_NUMBER})*\s*"
MARKER = re.compile(rf"\[{_LIST}\]|【{_LIST}】")
_WITH_BLANKS = re.compile(rf"([ \t]*)({MARKER.pattern})")
# A run begins where its blanks do: to try it at each of thousands of blanks would take a time that is
# their number squared, and models do write thousands.
_RUN = re.compile(rf"(?<![ \t])([ \t]*+)((?:{MARKER.pattern})(?:[ \t]*+(?:{MARKER.pattern}))*)")
_BEGUN = re.compile(r"[\[【][\s\d,;^\u2013-]{0,64}$")
_LONGEST = 66
"""Characters of a marker with its brackets."""
_RANGE = re.compile(r"(\d+)\s*[\u2013-]\s*\^?(\d+)")
_MOST_OF_RANGE = 20


@dataclass(frozen=True)
class Citation:
    """What a marker stands for: `[start, end)` of one version of a document, in code points."""

    marker: int
    """The number in square brackets that cites it."""
    document: str
    version: int
    start: int
    end: int
    text: str

    @cached_property
    def sha256(self) -> str:
        """Of the text in UTF-8, hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Cited:
    """An answer with its citations."""

    text: str
    """Its markers are those of the citations."""
    citations: tuple[Citation, ...]
    """In the order in which they are cited first; one for each passage and sentence of it."""


def cite(generated: str, passages: Sequence[Passage]) -> Cited:
    """Return the text with the markers that name a passage, and what they cite."""
    given = {passage.number: _Source(passage) for passage in passages}
    text = keep_markers(generated, given)
    found: dict[tuple[int, int, int], Citation] = {}
    for statement, numbers in _statements(text):
        words = dict.fromkeys(terms(statement))
        for number in numbers:
            citation = given[number].citation(words)
            found.setdefault((number, citation.start, citation.end), citation)
    return Cited(text, tuple(found.values()))


def keep(cited: Cited, verified: Collection[Citation]) -> Cited:
    """Return the answer with only those of its citations that were verified."""
    citations = tuple(citation for citation in cited.citations if citation in verified)
    return Cited(keep_markers(cited.text, {citation.marker for citation in citations}), citations)


def numbers_of(marker: str) -> list[int]:
    """Return the numbers that a marker names, in order, each once."""

    def spelt(match: re.Match[str]) -> str:
        first, last = int(match[1]), int(match[2])
        if first <= last < first + _MOST_OF_RANGE:
            return ",".join(map(str, range(first, last + 1)))
        return f"{first},{last}"

    return list(dict.fromkeys(int(n) for n in re.findall(r"\d+", _RANGE.sub(spelt, marker))))


def keep_markers(text: str, given: Collection[int] | Mapping[int, object]) -> str:
    """Return the text with markers of the given numbers only, each written as `[n]`."""

    def kept(match: re.Match[str]) -> str:
        pieces: list[str] = []
        for one in _WITH_BLANKS.finditer(match[2]):
            numbers = [number for number in numbers_of(one[2]) if number in given]
            if numbers:
                # The blanks before a run of markers stay before whatever is left of it.
                pieces += [one[1] if pieces else "", *(f"[{number}]" for number in numbers)]
        return match[1] + "".join(pieces) if pieces else ""

    return _RUN.sub(kept, text)


def held_back(text: str) -> int:
    """Return where what may become a marker begins, at the end of a text that is still growing.

    It begins with the blanks before it, and before the whole markers that stand directly before it. Looked at
    from the end, in steps of a marker, so that the time it takes does not grow with the text.
    """
    begun = _BEGUN.search(text, max(0, len(text) - _LONGEST))
    end = len(text[: begun.start() if begun else None].rstrip())
    while (before := _marker_before(text, end)) is not None:
        end = len(text[:before].rstrip())
    return end


def _marker_before(text: str, end: int) -> int | None:
    """Return where the marker begins that ends there; None where none does."""
    begin = max(text.rfind(bracket, max(0, end - _LONGEST), end) for bracket in "[【")
    return begin if begin >= 0 and MARKER.fullmatch(text, begin, end) else None


def _statements(text: str) -> Iterable[tuple[str, list[int]]]:
    """Yield each sentence without markers, and the numbers that it cites; a marker may follow its end."""
    clean: list[str] = []
    places: list[tuple[int, list[int]]] = []
    length = begin = 0
    for match in MARKER.finditer(text):
        clean.append(text[begin : match.start()])
        length += match.start() - begin
        begin = match.end()
        places.append((length, numbers_of(match[0])))
    clean.append(text[begin:])
    plain = "".join(clean)
    spans = [(s.start, s.end) for s in sentences(plain)]
    cited: dict[tuple[int, int], list[int]] = {}
    for place, numbers in places:
        before = len(plain[:place].rstrip())
        # The sentence that holds the last character before the marker; the first one has none before.
        span = next((s for s in spans if s[0] < before <= s[1]), spans[0] if spans else (0, 0))
        cited.setdefault(span, []).extend(numbers)
    for (start, end), numbers in cited.items():
        yield plain[start:end], list(dict.fromkeys(numbers))


@dataclass(frozen=True)
class _Source:
    """A passage that may be cited; its sentences are looked at once, however often it is."""

    passage: Passage

    def citation(self, wanted: Collection[str]) -> Citation:
        """Return the citation of the sentence that supports best a statement of these words."""
        start, end = self._best(wanted)
        return Citation(
            marker=self.passage.number,
            document=self.passage.document,
            version=self.passage.version,
            start=self.passage.start + start,
            end=self.passage.start + end,
            text=self.passage.text[start:end],
        )

    def _best(self, wanted: Collection[str]) -> tuple[int, int]:
        weight = self._weight
        shared: dict[int, float] = {}
        for word in wanted:
            for place in self._places.get(word, ()):
                shared[place] = shared.get(place, 0.0) + weight[word]
        # A long sentence shares more by chance: what it shares counts against its own length.
        scores = {place: s * s / (1 + self._lengths[place]) for place, s in sorted(shared.items())}
        if not scores:
            return 0, len(self.passage.text)
        return self._spans[max(scores, key=lambda place: scores[place])]

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        return [(sentence.start, sentence.end) for sentence in sentences(self.passage.text)]

    @cached_property
    def _words(self) -> list[set[str]]:
        return [set(terms(self.passage.text[start:end])) for start, end in self._spans]

    @cached_property
    def _weight(self) -> Mapping[str, float]:
        return _rarity(self._words)

    @cached_property
    def _lengths(self) -> list[float]:
        return [math.fsum(self._weight[word] for word in found) for found in self._words]

    @cached_property
    def _places(self) -> Mapping[str, list[int]]:
        """The sentences that hold each word."""
        places: dict[str, list[int]] = {}
        for place, found in enumerate(self._words):
            for word in found:
                places.setdefault(word, []).append(place)
        return places


def _rarity(groups: Sequence[set[str]]) -> Mapping[str, float]:
    """Return a weight for each word: the fewer groups have it, the more it tells."""
    counts = Counter(word for group in groups for word in group)
    return {word: math.log(1 + len(groups) / count) for word, count in counts.items()}
