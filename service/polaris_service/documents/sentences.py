# ruff: noqa: RUF001  (the dashes and quotes of the texts that are cut)
"""Where sentences end, in Portuguese and English, by rules: good enough to cut at, and never wrong by much.

An end that is missed makes a piece longer, one that is seen in vain makes it shorter; neither loses
a character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# The end of a sentence, what may close after it, and the white that follows. Chinese and Japanese
# full stops need no white after them. Possessive, and only at the beginning of a run: a megabyte of
# dots is read once.
_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)|[。！？]+[」』”）]*""")
_OPENING = "\"'“‘«([¿¡—–-*_`"
_WORD_BEFORE = re.compile(r"[\w.ºª°§&/-]+$")
_LONGEST_WORD = 40

# Before a full stop, in lower case and without it. "etc" and "ltda" are not here: followed by a
# capital they did end the sentence, and followed by anything else there is no end anyway.
_TITLES = """
dr dra drs sr sra srta srs sras prof profa exmo exma ilmo ilma eng engo arq adv des dep sen gov pres
gen cel ten sgt mr mrs ms messrs st rev hon capt col lt
"""
_REFERENCES = """
art arts inc par parág pp pág págs pag pags cap caps vol vols eds fig figs tab eq eqs ref refs seç
sec sect nº cf vs ibid ob apud obs fl fls proc e.g i.e viz ca
"""
_PLACES = "av rod pça apto bl tel ramal aprox approx séc a.c d.c s.a u.s u.k ph.d b.a m.a"
_ABBREVIATIONS = frozenset(f"{_TITLES} {_REFERENCES} {_PLACES}".split())
# Words of their own too, so they count only before a number: no. 5, set. 2026, port. 12.
_NUMBERED = """
no nos num nr ch op ed port dec res reg rel ex max med jan fev mar abr mai jun jul ago set out nov dez
feb apr may aug sep sept oct
"""
_BEFORE_NUMBERS = frozenset(_NUMBERED.split())


def sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the sentences of `[start, end)` as pairs of positions, without gaps."""
    begin = start
    for match in _END.finditer(text, start, end):
        if _ends(text, begin, match, end):
            yield begin, match.end()
            begin = match.end()
    if begin < end:
        yield begin, end


def _ends(text: str, begin: int, match: re.Match[str], end: int) -> bool:
    """Return whether a candidate is the end of a sentence."""
    after = text[match.end() : min(end, match.end() + 64)].lstrip()
    if not after or match.group()[0] in "。！？":
        return True
    following = after.lstrip(_OPENING)[:1]
    if following.islower():
        return False
    if match.group() != ".":
        return True
    found = _WORD_BEFORE.search(text, max(begin, match.start() - _LONGEST_WORD), match.start())
    if found is None:
        return True
    return not _is_part_of(found.group(), following, opens=not text[begin : found.start()].strip())


def _is_part_of(word: str, following: str, *, opens: bool) -> bool:
    """Return whether the full stop after `word` belongs to the word; `following` is what comes next."""
    low = word.lower().strip("-/&.")
    if low in _ABBREVIATIONS or (len(low) == 1 and low.isalpha()):
        return True  # of the latter kind are initials: J. Silva
    if opens and low.isdigit():
        return True  # the number of an entry: 1. First
    return following.isdigit() and (low in _BEFORE_NUMBERS or low[-1:] in "ºª°§")
