"""Sentences of a text and the words that carry their meaning, in English and Portuguese.

Text may be plain or Markdown, and hard-wrapped: a single line break does not end a sentence, an empty
line, a heading and an item of a list do.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from polaris_service.documents.sentences import sentences as split

# Where one text ends and another begins, whatever the marks say.
_BLOCK = re.compile(r"\n[ \t]*\n|\n(?=[ \t]*(?:#{1,6}[ \t]|[-*+•][ \t]|\d{1,3}[.)][ \t]|\|))")
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t].*$", re.MULTILINE)
_ITEM = re.compile(r"^(?:#{1,6}[ \t]+|[-*+•][ \t]+|\d{1,3}[.)][ \t]+|>[ \t]*)+")
_WORD = re.compile(r"[^\W_]+(?:[-'\u2019.][^\W_]+)*")
_END_MARKS = ".!?…:;"

# Words that carry no meaning of their own; question words too, as they match every question.
_ENGLISH_WORDS = """
a about after all also am an and any are as at be because been before being between both but by can
could did do does doing done for from get had has have having he her here him his how i if in into
is it its just made make may me might more most must my no nor not of off on once one only or other
our out over own same shall she should so some such than that the their them then there these they
this those through to too under until up us use used very was we were what when where which while
who whom whose why will with would you your
"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_PORTUGUESE_WORDS = """
a à ainda ao aos aquela aquele aquilo as às até com como da das de dela dele deles depois do dos e é
ela elas ele eles em entre era essa essas esse esses esta está estão estar estas este estes eu foi
for foram fica há isso isto já lhe mais mas me mesmo meu minha muito na não nas nem no nos nós num
numa o onde os ou para pela pelas pelo pelos pode podem poderia por porque porquê posso qual quais
quando quanto quantos que quê quem se seja sem ser será seu seus si sob sobre sua suas são só também
te tem têm ter teu tu um uma uns você vocês vou
"""
_PORTUGUESE = frozenset(_PORTUGUESE_WORDS.split())
_EMPTY = _ENGLISH | _PORTUGUESE


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, item or heading at `[start, end)` of its text, without blanks around it."""

    start: int
    end: int
    heading: bool = False


def sentences(text: str) -> list[Sentence]:
    """Return the sentences of a text in order; what is left between them is white space."""
    found: list[Sentence] = []
    for start, end in _blocks(text):
        found += _of_block(text, start, end)
    return found


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Yield what paragraphs, headings and items span."""
    borders = {0, len(text)}
    for match in _BLOCK.finditer(text):
        borders.add(match.end())
    for match in _HEADING.finditer(text):
        borders |= {match.start(), match.end()}
    ordered = sorted(borders)
    yield from itertools.pairwise(ordered)


def _of_block(text: str, start: int, end: int) -> Iterator[Sentence]:
    heading = bool(_HEADING.match(text, start, end))
    for begin, stop in [(start, end)] if heading else split(text, start, end):
        yield from _trimmed(text, begin, stop, heading)


def _trimmed(text: str, start: int, end: int, heading: bool) -> Iterator[Sentence]:
    piece = text[start:end]
    stripped = piece.strip()
    if stripped:
        start += len(piece) - len(piece.lstrip())
        yield Sentence(start, start + len(stripped), heading)


def readable(sentence: str) -> str:
    """Return a sentence as running text: without line breaks, list marks and emphasis, with its end."""
    plain = _ITEM.sub("", " ".join(sentence.split()))
    plain = re.sub(r"(\*\*|__|`)(.+?)\1", r"\2", plain).strip()
    return plain if not plain or plain[-1] in _END_MARKS or plain[-2:-1] in tuple(".!?…") else f"{plain}."


def terms(text: str) -> list[str]:
    """Return the words that carry meaning, folded: lower case, without accents, cut to a crude stem."""
    return [_stem(_folded(word)) for word in _WORD.findall(text.lower()) if word not in _EMPTY]


def _folded(word: str) -> str:
    if word.isascii():
        return word
    return "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))


def _stem(word: str) -> str:
    """Cut what inflects: only sameness counts, and `pacotes` and `pacote` are one."""
    if len(word) <= 4 or any(c.isdigit() for c in word):
        return word
    for ending in ("coes", "cao", "ing", "oes", "ais", "eis", "es", "ed", "s", "e", "o", "a"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def is_portuguese(text: str) -> bool:
    """Guess whether a text is Portuguese rather than English, by its most frequent words."""
    words = _WORD.findall(text.lower())
    portuguese = sum(word in _PORTUGUESE for word in words)
    english = sum(word in _ENGLISH for word in words)
    if portuguese != english:
        return portuguese > english
    return any(c in "ãõçáéíóúâêôà" for c in text.lower())
