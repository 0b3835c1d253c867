"""From bytes to text, honestly: UTF-8, else Windows-1252 where it reads like a language, else no.

Portuguese files from older programs are Windows-1252 (of which what is printable in ISO 8859-1 is a
part). No detector can be sure of a short text; this one says what it assumed, and refuses rather
than to load text that reads like noise.
"""

from __future__ import annotations

import codecs
import unicodedata
from dataclasses import dataclass

from polaris.errors import InvalidInput

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8 = {"utf-8", "utf-8-sig"}
WINDOWS = "Windows-1252"
# What a text of western Europe holds beside letters and ASCII.
_PUNCTUATION = set("“”‘’–—…•·«»°ºª§©®™€£¿¡\u00a0\u00ad¹²³½¼¾±×÷´")  # noqa: RUF001  as they are
_WITHIN_WORDS = set("’‘ªº–—…·\u00ad")  # noqa: RUF001
_MOST_NOISE = 0.1
_MOST_ACCENTS = 0.6


class NotText(InvalidInput):
    """Bytes that are no text, or text in an encoding that nobody knows."""


class Binary(NotText):
    """Bytes that are no text in any encoding."""


@dataclass(frozen=True)
class Text:
    """What was read, and the encoding that had to be assumed (None: it was UTF-8, or said so)."""

    text: str
    assumed: str | None = None


def decode(data: bytes, declared: str | None = None) -> Text:
    """Return the text of a file; `declared` is an encoding that a person or the file itself names.

    Raises NotText, whose message completes "it …".
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return Text(_strict(data, encoding))
    if declared:
        return Text(_strict(data, declared))
    if b"\0" in data:
        raise Binary("is binary")
    try:
        return Text(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _legacy(data, error)


def _strict(data: bytes, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except LookupError:
        raise NotText(f"is said to be in {encoding!r}, an encoding that nobody knows") from None
    except UnicodeDecodeError as error:
        raise NotText(f"is said to be in {encoding}, and byte {error.start} is not") from None
    if "\0" in text:
        raise Binary("is binary")
    return text


def _legacy(data: bytes, error: UnicodeDecodeError) -> Text:
    if _mostly_utf8(data):
        raise NotText(f"is damaged UTF-8: byte {error.start} belongs to no character")
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        text = ""
    if not text or _noise(text) > _MOST_NOISE:
        raise NotText(f"is neither UTF-8 nor {WINDOWS}: say which encoding it has with --encoding")
    return Text(text, assumed=WINDOWS)


def _mostly_utf8(data: bytes) -> bool:
    """Tell whether more characters beyond ASCII are valid UTF-8 than bytes are not.

    Windows-1252 text hardly ever holds a valid sequence: "Ã©" in a row is no word.
    """
    shown = data.decode("utf-8", errors="replace")
    broken = shown.count("\ufffd")
    return sum(ord(c) > 127 for c in shown) - broken > broken


def _noise(text: str) -> float:
    """Return the share of the characters beyond ASCII that no western text holds in such places."""
    high = [i for i, c in enumerate(text) if ord(c) > 127]
    letters = sum(map(str.isalpha, text))
    if letters >= 8 and sum(text[i].isalpha() for i in high) > _MOST_ACCENTS * letters:
        return 1.0  # Another alphabet: no word is made of accents.
    return sum(_odd(text, i) for i in high) / len(high) if high else 0.0


def _odd(text: str, i: int) -> bool:
    c = text[i]
    if unicodedata.category(c) == "Cc":
        return True
    before, after = text[i - 1 : i] if i else "", text[i + 1 : i + 2]
    if c.isalpha():
        # A capital between small letters is another encoding's small one: "informaþÒo".
        return c.isupper() and before.islower() and after.islower()
    # A sign within a word is another encoding's letter: "informa‡Æo" (code page 850).
    within = before.isalpha() and after.isalpha()
    return c not in (_WITHIN_WORDS if within else _PUNCTUATION)
