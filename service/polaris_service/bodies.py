"""Bodies of requests: read no further than their limit, and parsed with a word on what is wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import orjson
from starlette.requests import Request

from polaris.errors import InvalidInput, PolarisError, TooLarge

# What a JSON string may hold, and PostgreSQL's text (NUL) or UTF-8 (lone surrogates) cannot.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class NotJson(PolarisError):
    """The body is not what its media type says: 400."""

    code = "malformed"


class WrongMediaType(PolarisError):
    """The body is of a media type that this route does not take: 415."""

    code = "unsupported-media-type"


def media_type(request: Request) -> str:
    """Return the media type of the body, lower case, without parameters; "" where none is said."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_media_type(request: Request, *accepted: str) -> None:
    """Raise WrongMediaType where the body is said to be something else; a missing header is forgiven."""
    said = media_type(request)
    if said and said not in accepted:
        raise WrongMediaType(f"the body is {said}, and this route takes {' or '.join(accepted)}")


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body; raise TooLarge as soon as it is known to be, whatever its header said."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limit:
        raise _too_large(limit, f"{int(said):,}")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise _too_large(limit, f"more than {limit:,}")
    return bytes(body)


def _too_large(limit: int, given: str) -> TooLarge:
    return TooLarge(f"the body has {given} bytes, the limit is {limit:,}")


async def read_json(request: Request, limit: int) -> Any:
    """Return the body as JSON values.

    Raises WrongMediaType, TooLarge, NotJson, and InvalidInput (with the pointer) for what cannot be
    stored.
    """
    require_media_type(request, "application/json")
    return parse_json(await read_body(request, limit))


def parse_json(body: bytes) -> Any:
    """Return JSON values; raise NotJson, or InvalidInput with the pointer to what cannot be stored.

    What cannot be: NUL and lone surrogates in strings, numbers beyond a double's range.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        _explain(body, error)
    # orjson accepts an escaped NUL; only then is there anything to look for.
    if b"\\u0000" in body:
        check_storable(value)
    return value


def _explain(body: bytes, error: orjson.JSONDecodeError) -> NoReturn:
    """Raise the error that says best what is wrong with the body."""
    try:
        # Of integers only the range is of interest, and Python's own limit of digits is none of JSON's.
        value = json.loads(body, parse_constant=_refuse_constant, parse_int=float)
    except RecursionError:
        raise NotJson("the body is nested too deep") from None
    except ValueError:
        raise NotJson(f"the body is not JSON: {error}") from None
    check_storable(value)
    raise NotJson(f"the body is not JSON: {error}")


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"the body is not JSON: it has no {name}")


def check_storable(value: Any) -> None:
    """Raise InvalidInput where a string, or a key, holds NUL or a lone surrogate, or a number is infinite."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        at, item = waiting.pop()
        if isinstance(item, str):
            _check_string(item, at)
        elif isinstance(item, float) and math.isinf(item):
            raise InvalidInput("is a number beyond the range of a double", at)
        elif isinstance(item, dict):
            for key, inner in item.items():
                _check_string(key, at)
                waiting.append((f"{at}/{escape(key)}", inner))
        elif isinstance(item, list):
            waiting.extend((f"{at}/{number}", inner) for number, inner in enumerate(item))


def _check_string(text: str, pointer: str) -> None:
    found = _UNSTORABLE.search(text)
    if found:
        what = "NUL" if found.group() == "\x00" else "a lone surrogate"
        raise InvalidInput(f"holds {what} at character {found.start()}", pointer)


def escape(key: str) -> str:
    """Return a key as a token of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


async def lines(request: Request, limit: int) -> AsyncIterator[list[bytes]]:
    """Yield the lines of the body as they come, some at a time, without their ends.

    A line longer than `limit` is yielded cut to `limit + 1` bytes, so the reader can tell; the rest of
    it is thrown away as it comes.
    """
    splitter = Splitter(limit)
    async for piece in request.stream():
        found = splitter.feed(piece)
        if found:
            yield found
    if splitter.rest:
        yield [bytes(splitter.rest)]


class Splitter:
    """Makes lines of pieces; no byte is copied more than a few times, however small the pieces."""

    def __init__(self, limit: int) -> None:
        self.rest = bytearray()
        """The beginning of a line that has not ended yet: at most `limit` bytes, and one piece."""
        self._limit = limit
        self._skipping = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the lines that end in a piece, and the one that becomes too long in it, cut."""
        *ended, last = piece.split(b"\n")
        if ended and self._skipping:
            del ended[0]  # The end of what was returned cut already.
            self._skipping = False
        elif ended and self.rest:
            self.rest += ended[0]
            ended[0] = bytes(self.rest)
            self.rest.clear()
        found = [line[: self._limit + 1] for line in ended]
        if not self._skipping:
            self.rest += last
            if len(self.rest) > self._limit:
                self._skipping = True
                found.append(bytes(self.rest[: self._limit + 1]))
                self.rest.clear()
        return found
