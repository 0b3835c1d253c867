"""Bodies are read no further than their limit, wherever their pieces begin and end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from polaris.errors import InvalidInput, TooLarge
from polaris_service.bodies import NotJson, Splitter, escape, lines, parse_json, read_body

pytestmark = [pytest.mark.unit, pytest.mark.anyio]


def request(pieces: Iterable[bytes], headers: dict[str, str] | None = None) -> Request:
    waiting = iter(pieces)

    async def receive() -> dict[str, Any]:
        piece = next(waiting, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


async def all_lines(pieces: Sequence[bytes], limit: int) -> list[bytes]:
    found = [group async for group in lines(request(pieces), limit)]
    return list(itertools.chain.from_iterable(found))


PIECES = st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\x00", b"\n")), max_size=12)


@given(pieces=PIECES)
async def test_lines_are_those_of_the_whole_body(pieces: list[bytes]) -> None:
    whole = b"".join(pieces).split(b"\n")
    expected = whole if whole[-1] else whole[:-1]
    assert await all_lines(pieces, 1000) == expected


@given(pieces=PIECES, limit=st.integers(0, 5))
async def test_a_long_line_is_cut_and_the_others_are_whole(pieces: list[bytes], limit: int) -> None:
    whole = b"".join(pieces).split(b"\n")
    expected = [line[: limit + 1] for line in (whole if whole[-1] else whole[:-1])]
    assert await all_lines(pieces, limit) == expected


@given(
    body=st.lists(st.sampled_from([b"", b"a", b"bc" * 3, b"\r", b"0" * 40])).map(b"\n".join),
    cuts=st.lists(st.integers(0, 300)),
    limit=st.integers(0, 50),
)
async def test_where_a_body_is_cut_makes_no_difference(body: bytes, cuts: list[int], limit: int) -> None:
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[begin:end] for begin, end in itertools.pairwise(places)]
    assert await all_lines(pieces, limit) == await all_lines([body], limit)


def test_a_long_line_in_small_pieces_is_gathered_in_one_place() -> None:
    splitter = Splitter(10_000)
    gathered = splitter.rest
    for number in range(1, 5001):
        assert splitter.feed(b"xy") == []
        # Grown where it is, and not made anew of itself and the piece.
        assert splitter.rest is gathered
        assert len(gathered) == 2 * number
    assert splitter.feed(b"\nz") == [b"xy" * 5000]
    assert splitter.rest is gathered
    assert bytes(gathered) == b"z"


def test_of_a_line_that_is_too_long_nothing_more_is_gathered() -> None:
    splitter = Splitter(10)
    assert splitter.feed(b"x" * 11) == [b"x" * 11]
    for _ in range(1000):
        assert splitter.feed(b"x" * 100) == []
        assert not splitter.rest
    assert splitter.feed(b"x\nnext\n") == [b"next"]


async def test_a_body_is_given_up_on_as_soon_as_it_is_too_large() -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield b"x" * 100

    with pytest.raises(TooLarge, match="more than 1,000"):
        await read_body(request(endless()), 1000)
    assert read == 11


async def test_a_body_that_says_that_it_is_too_large_is_not_read_at_all() -> None:
    pieces = iter([b"x"])
    with pytest.raises(TooLarge, match="1,001 bytes, the limit is 1,000"):
        await read_body(request(pieces, {"Content-Length": "1001"}), 1000)
    assert next(pieces) == b"x"


async def test_a_content_length_that_lies_does_not_help() -> None:
    with pytest.raises(TooLarge):
        await read_body(request([b"x" * 2000], {"Content-Length": "1"}), 1000)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"a": {"b/c": ["x", "\\u0000"]}}', "/a/b~1c/1"),
        (b'{"a": "\\ud83d\\ude00 \\ud83d"}', "/a"),
        (b'["a", {"~": "\\udead"}]', "/1/~0"),
        (b'{"a": [1, 1e400]}', "/a/1"),
        (b'{"a": {"b": -1e400}}', "/a/b"),
        (b"[" + b"9" * 5000 + b"]", "/0"),
    ],
)
def test_what_cannot_be_stored_is_named_by_its_pointer(body: bytes, pointer: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_json(body)
    assert raised.value.pointer == pointer


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nul", b"{'a': 1}", b"[1,]", b"NaN", b"[Infinity]", b"\xff", b"1 2"]
)
def test_what_is_no_json_is_called_so(body: bytes) -> None:
    with pytest.raises(NotJson):
        parse_json(body)


@given(value=st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists))
def test_what_can_be_stored_is_parsed_as_it_is(value: Any) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    if "\\u0000" not in text.decode():
        assert parse_json(text) == value


def test_a_pointer_escapes_its_two_characters() -> None:
    assert escape("a/b~c") == "a~1b~0c"
