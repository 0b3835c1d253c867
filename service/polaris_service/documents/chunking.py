# ruff: noqa: RUF001  (the dashes and quotes of the texts that are cut)
"""Cutting a text into chunks: pure, by tokens that a given function counts, with exact spans.

Three passes. The text is read as blocks (headings, paragraphs, code); blocks become pieces, each a
sentence or less and never longer than a chunk; pieces are packed into chunks that end, where they
can, before a heading, else after a paragraph, else after a sentence.

A span counts code points of the text, `[start, end)`; it begins and ends with what is not white, and
the spans of a text together hold everything in it that is not white.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from polaris_service.documents.sentences import sentences

CountTokens: TypeAlias = Callable[[Sequence[str]], Sequence[int]]
"""Returns the tokens of each text. A single code point must never have more than a chunk may."""


@dataclass(frozen=True, slots=True)
class Span:
    """Code points `[start, end)` of a text."""

    start: int
    end: int

    def of(self, text: str) -> str:
        """Return what it spans."""
        return text[self.start : self.end]


class _Border(IntEnum):
    """What stands before a piece; a chunk rather ends at a higher one."""

    WORD = 0
    SENTENCE = 1
    PARAGRAPH = 2
    HEADING = 3


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    before: _Border
    heading: bool = False
    tokens: int = 0


# A token of the models in use has at most some 16 characters: no run of more than this many
# characters a token can fit, so it is cut before anybody counts it (a megabyte of base64 is one word).
_CHARACTERS_PER_TOKEN = 16
# A section that is shorter than this share of a chunk shares one with its neighbours.
_SMALL_SECTION = 0.25
# A chunk that is at least so full may end at a better border than a full one would.
_FULL_ENOUGH = 0.5


def cut(text: str, count: CountTokens, max_tokens: int, overlap_tokens: int) -> list[Span]:
    """Return the spans of the text's chunks, in order, each of at most `max_tokens` tokens.

    A chunk begins with the last sentences of the one before, as many as `overlap_tokens` hold, unless
    a heading stands between. White text has no chunks.
    """
    pieces = _sized(text, _pieces(text), count, max_tokens)
    return list(_pack(text, pieces, count, max_tokens, overlap_tokens))


# --- blocks and pieces -------------------------------------------------------------------------

_LINE = re.compile(r"[^\n]*\n?")
_ATX = re.compile(r"^ {0,3}#{1,6}(\s|$)")
_SETEXT = re.compile(r"^ {0,3}(=+|-+)\s*$")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_BULLET = re.compile(r"^\s*([-*+•·–—]|\(?([0-9]{1,3}|[a-zA-Z])[.)])\s+")
_ROW = re.compile(r"^\s*\|")
_TITLE_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    end: int
    text: str

    @property
    def white(self) -> bool:
        return not self.text.strip()


def _lines(text: str) -> list[_Line]:
    return [
        _Line(match.start(), match.end(), match.group())
        for match in _LINE.finditer(text)
        if match.end() > match.start()
    ]


def _pieces(text: str) -> Iterator[_Piece]:
    """Yield headings, sentences, and lines of lists, tables and code, in order; gaps are white."""
    for block, heading, code in _blocks(_lines(text)):
        start, end = block[0].start, block[-1].end
        if heading:
            yield from _trimmed(text, start, end, _Border.HEADING, heading=True)
            continue
        before = _Border.PARAGRAPH
        cuts = _line_starts(block, code=code)
        for a, b in zip(cuts, [*cuts[1:], end], strict=True):
            for c, d in [(a, b)] if code else sentences(text, a, b):
                for piece in _trimmed(text, c, d, before):
                    yield piece
                    before = _Border.SENTENCE


def _blocks(lines: Sequence[_Line]) -> Iterator[tuple[Sequence[_Line], bool, bool]]:
    """Yield (lines, is a heading, is code); blocks are separated by white lines, headings and fences."""
    at = 0
    while at < len(lines):
        if lines[at].white:
            at += 1
        elif fence := _FENCE.match(lines[at].text):
            end = _end_of_fence(lines, at, fence.group(1))
            yield lines[at:end], False, True
            at = end
        elif _ATX.match(lines[at].text):
            yield lines[at : at + 1], True, False
            at += 1
        else:
            end = _end_of_paragraph(lines, at)
            yield from _paragraph(lines[at:end])
            at = end


def _end_of_fence(lines: Sequence[_Line], at: int, fence: str) -> int:
    for number in range(at + 1, len(lines)):
        if lines[number].text.strip().startswith(fence[:3]):
            return number + 1
    return len(lines)


def _end_of_paragraph(lines: Sequence[_Line], at: int) -> int:
    for number in range(at + 1, len(lines)):
        line = lines[number]
        if line.white or _ATX.match(line.text) or _FENCE.match(line.text):
            return number
        if _SETEXT.match(line.text):
            return number + 1
    return len(lines)


def _paragraph(block: Sequence[_Line]) -> Iterator[tuple[Sequence[_Line], bool, bool]]:
    if len(block) > 1 and _SETEXT.match(block[-1].text):
        # The underline makes a heading of the one line above it.
        if len(block) > 2:
            yield block[:-2], False, False
        yield block[-2:], True, False
    else:
        yield block, len(block) == 1 and _is_title(block[0].text), False


def _is_title(line: str) -> bool:
    """Return whether a line that stands alone reads like a title: short, and no sentence."""
    line = line.strip()
    return (
        len(line) <= _TITLE_CHARACTERS
        and line[0].isupper() | line[0].isdigit()
        and any(character.isalpha() for character in line)
        and line[-1] not in '.,;:!…"”»)'
        and not _BULLET.match(line)
    )


def _line_starts(block: Sequence[_Line], *, code: bool) -> list[int]:
    """Return where lines that are units of their own begin: of code, of tables, entries of lists."""
    return [
        line.start
        for number, line in enumerate(block)
        if number == 0 or code or _BULLET.match(line.text) or _ROW.match(line.text)
    ]


def _trimmed(text: str, start: int, end: int, before: _Border, *, heading: bool = False) -> Iterator[_Piece]:
    """Yield `[start, end)` without white text around it; nothing where it is all white."""
    inner = text[start:end]
    stripped = inner.strip()
    if stripped:
        start += len(inner) - len(inner.lstrip())
        yield _Piece(start, start + len(stripped), before, heading)


# --- pieces that fit ---------------------------------------------------------------------------


def _sized(text: str, pieces: Iterator[_Piece], count: CountTokens, max_tokens: int) -> list[_Piece]:
    """Return the pieces with their tokens counted, those that are too long cut into several."""
    limit = max_tokens * _CHARACTERS_PER_TOKEN
    short = [part for piece in pieces for part in _chopped(piece, limit, text)]
    tokens = count([text[piece.start : piece.end] for piece in short]) if short else []
    sized: list[_Piece] = []
    for piece, size in zip(short, tokens, strict=True):
        if size <= max_tokens:
            sized.append(_with(piece, piece.start, piece.end, size))
        else:
            sized.extend(_halved(text, piece, count, max_tokens))
    return sized


def _with(piece: _Piece, start: int, end: int, tokens: int) -> _Piece:
    before = piece.before if start == piece.start else _Border.WORD
    return _Piece(start, end, before, piece.heading, tokens)


def _chopped(piece: _Piece, limit: int, text: str) -> Iterator[_Piece]:
    """Yield parts of at most `limit` characters, cut where it hurts least."""
    start = piece.start
    while piece.end - start > limit:
        middle = _best_cut(text, start + limit // 2, start + limit)
        yield from _part(text, piece, start, middle)
        start = middle
    yield from _part(text, piece, start, piece.end)


def _part(text: str, piece: _Piece, start: int, end: int) -> Iterator[_Piece]:
    for part in _trimmed(text, start, end, _Border.WORD, heading=piece.heading):
        yield _with(piece, part.start, part.end, 0)


_CUTS = (re.compile(r"\n"), re.compile(r"[;:,](?=\s)|\s[–—-](?=\s)|、"), re.compile(r"\s"))


def _best_cut(text: str, low: int, high: int) -> int:
    """Return a place in `(low, high]`: after a line, else a clause, else a word, else anywhere."""
    for pattern in _CUTS:
        ends = [match.end() for match in pattern.finditer(text, low, high)]
        if ends:
            return ends[-1]
    return high


def _halved(text: str, piece: _Piece, count: CountTokens, max_tokens: int) -> Iterator[_Piece]:
    """Yield parts that fit, by halving near a clause's or a word's end until they do."""
    waiting = [piece]
    while waiting:
        part = waiting.pop()
        size = count([text[part.start : part.end]])[0]
        length = part.end - part.start
        if size <= max_tokens or length == 1:
            yield _with(part, part.start, part.end, size)
            continue
        # Not in the middle but where a part should fit, so that most parts are about full.
        target = min(length - 1, max(1, length * max_tokens * 9 // (size * 10)))
        middle = _best_cut(text, part.start + target // 2, part.start + target)
        first = list(_part(text, part, part.start, middle))
        rest = list(_part(text, part, middle, part.end))
        waiting.extend(reversed(first + rest))


# --- packing -----------------------------------------------------------------------------------


def _pack(
    text: str, pieces: Sequence[_Piece], count: CountTokens, max_tokens: int, overlap_tokens: int
) -> Iterator[Span]:
    first = done = 0
    while done < len(pieces):
        last = _better_end(pieces, max(first, done), _fill(pieces, first, max_tokens), first, max_tokens)
        # Tokens of pieces need not add up to those of the whole: what counts is the whole.
        while last > done + 1 and _size(text, pieces, first, last, count) > max_tokens:
            last -= 1
        if last <= done or (first < done and _size(text, pieces, first, last, count) > max_tokens):
            first = done  # No room beside what would be repeated.
            continue
        yield Span(pieces[first].start, pieces[last - 1].end)
        done = last
        first = _repeat_from(pieces, first, last, overlap_tokens)


def _size(text: str, pieces: Sequence[_Piece], first: int, last: int, count: CountTokens) -> int:
    if last - first == 1:
        return pieces[first].tokens
    return count([text[pieces[first].start : pieces[last - 1].end]])[0]


def _fill(pieces: Sequence[_Piece], first: int, max_tokens: int) -> int:
    """Return the end of the longest run from `first` that fits and stays within a section."""
    filled = 0
    for number in range(first, len(pieces)):
        piece = pieces[number]
        starts_section = piece.before == _Border.HEADING and not pieces[number - 1].heading
        if starts_section and number > first and filled >= max_tokens * _SMALL_SECTION:
            return number
        filled += piece.tokens
        if filled > max_tokens and number > first:
            return number
    return len(pieces)


def _better_end(pieces: Sequence[_Piece], done: int, last: int, first: int, max_tokens: int) -> int:
    """Return the best end in `(done, last]` that leaves the chunk full enough, else `last`."""
    best = last
    if last < len(pieces):
        filled = sum(piece.tokens for piece in pieces[first:last])
        for number in range(last, done, -1):
            if filled < max_tokens * _FULL_ENOUGH:
                break
            if pieces[number].before > pieces[best].before:
                best = number
            filled -= pieces[number - 1].tokens
    # A heading belongs to what follows it, unless there is nothing but headings.
    end = best
    while best < len(pieces) and end > done and pieces[end - 1].heading:
        end -= 1
    return end if end > done else best


def _repeat_from(pieces: Sequence[_Piece], first: int, last: int, overlap_tokens: int) -> int:
    """Return where the next chunk begins: some whole sentences before `last`, or `last` itself."""
    repeated, start = 0, last
    while start - 1 > first and last < len(pieces):
        if pieces[start].before == _Border.HEADING:
            return start
        repeated += pieces[start - 1].tokens
        if repeated > overlap_tokens:
            break
        start -= 1
    # What is repeated begins with a sentence, never in the middle of one.
    while start < last and pieces[start].before == _Border.WORD:
        start += 1
    return start
