"""What is wrong is refused with the pointer to it, and nothing changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.made import Index
from service.rig import Rig

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]


def body(**fields: Any) -> bytes:
    return json.dumps({"text": "text", **fields}).encode()


LONG = "x" * 10_000
CASES: list[tuple[str, bytes, int, str, str]] = [
    # what, body, status, code, pointer
    ("no body", b"", 400, "malformed", ""),
    ("not JSON", b"{text: 1}", 400, "malformed", ""),
    ("half of it", b'{"text": "a', 400, "malformed", ""),
    ("not UTF-8", b'{"text": "\xff\xfe"}', 400, "malformed", ""),
    ("NaN", b'{"text": "a", "attributes": {"price": NaN}}', 400, "malformed", ""),
    ("two values", b'{"text": "a"} {}', 400, "malformed", ""),
    ("nested a hundred thousand deep", b"[" * 100_000, 400, "malformed", ""),
    ("a list", b"[]", 422, "invalid-input", ""),
    ("null", b"null", 422, "invalid-input", ""),
    ("no text", b"{}", 422, "invalid-input", "/text"),
    ("empty text", body(text=""), 422, "invalid-input", "/text"),
    ("white text", body(text=" \n\t\u3000"), 422, "invalid-input", "/text"),
    ("text that is a number", body(text=1), 422, "invalid-input", "/text"),
    ("text that is null", body(text=None), 422, "invalid-input", "/text"),
    ("NUL in text", body(text="a\x00b"), 422, "invalid-input", "/text"),
    ("a lone surrogate in text", b'{"text": "a\\ud800b"}', 422, "invalid-input", "/text"),
    ("a lone low surrogate", b'{"text": "\\udc00"}', 422, "invalid-input", "/text"),
    ("NUL in the title", body(title="\x00"), 422, "invalid-input", "/title"),
    (
        "a surrogate in an attribute",
        b'{"text": "a", "attributes": {"lang": "\\udfff"}}',
        422,
        "invalid-input",
        "/attributes/lang",
    ),
    ("NUL in a list", body(attributes={"tags": ["a", "\x00"]}), 422, "invalid-input", "/attributes/tags/1"),
    ("NUL in a name", body(attributes={"a\x00": 1}), 422, "invalid-input", "/attributes"),
    ("an unknown field", body(texts="a"), 422, "invalid-input", "/texts"),
    ("more fields than any body has", body(**{f"f{n}": n for n in range(50_000)}), 422, "invalid-input", ""),
    ("an id in the body", body(id="a"), 422, "invalid-input", "/id"),
    ("vectors in a PUT", body(model="hashed", chunks=[]), 422, "invalid-input", "/model"),
    ("a tenant", body(tenant="acme"), 422, "invalid-input", "/tenant"),
    ("a long title", body(title="x" * 1025), 422, "invalid-input", "/title"),
    ("a title that is a list", body(title=["a"]), 422, "invalid-input", "/title"),
    ("a long uri", body(uri="x" * 4097), 422, "invalid-input", "/uri"),
    ("attributes that are a list", body(attributes=[]), 422, "invalid-input", "/attributes"),
    ("a keyword that is a number", body(attributes={"lang": 1}), 422, "invalid-input", "/attributes/lang"),
    ("a keyword that is null", body(attributes={"lang": None}), 422, "invalid-input", "/attributes/lang"),
    ("a keyword of 2 kB", body(attributes={"lang": "x" * 2000}), 422, "invalid-input", "/attributes/lang"),
    ("an integer with a fraction", body(attributes={"year": 1.5}), 422, "invalid-input", "/attributes/year"),
    ("an integer that is true", body(attributes={"year": True}), 422, "invalid-input", "/attributes/year"),
    ("an integer of 65 bits", body(attributes={"year": 2**64}), 422, "invalid-input", "/attributes/year"),
    ("a number that is text", body(attributes={"price": "1"}), 422, "invalid-input", "/attributes/price"),
    ("a boolean that is 1", body(attributes={"public": 1}), 422, "invalid-input", "/attributes/public"),
    (
        "a time without offset",
        body(attributes={"at": "2026-01-01T00:00:00"}),
        422,
        "invalid-input",
        "/attributes/at",
    ),
    ("31 February", body(attributes={"at": "2026-02-31T00:00:00Z"}), 422, "invalid-input", "/attributes/at"),
    (
        "an object in attributes",
        body(attributes={"free": {"a": 1}}),
        422,
        "invalid-input",
        "/attributes/free",
    ),
    ("a list of lists", body(attributes={"free": [[1]]}), 422, "invalid-input", "/attributes/free"),
    ("a list of 257", body(attributes={"free": [1] * 257}), 422, "invalid-input", "/attributes/free"),
    ("a name with a slash", body(attributes={"a/b~": {}}), 422, "invalid-input", "/attributes/a~1b~0"),
    ("an empty name", body(attributes={"": 1}), 422, "invalid-input", "/attributes/"),
    ("a name of 129", body(attributes={"x" * 129: 1}), 422, "invalid-input", "/attributes/" + "x" * 129),
    ("129 attributes", body(attributes={str(n): 1 for n in range(129)}), 413, "too-large", "/attributes"),
    ("20 kB of attributes", body(attributes={"a": LONG, "b": LONG}), 413, "too-large", "/attributes"),
    ("text beyond the limit", body(text="x" * 100_001), 413, "too-large", "/text"),
    ("text beyond it in bytes only", body(text="ç" * 50_001), 413, "too-large", "/text"),
    ("a body beyond the limit", body(text="x" * 1_100_000), 413, "too-large", ""),
]


@pytest.fixture(scope="module")
async def small(made: Any) -> Any:
    """A service with small limits."""
    async with Rig(made, max_document_bytes=100_000, max_body_bytes=1_048_576) as running:
        yield running


@pytest.fixture(scope="module")
def shared(made: Any) -> Index:
    found: Index = made.index("bad-input")
    return found


@pytest.mark.parametrize(
    ("content", "status", "code", "pointer"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
async def test_a_wrong_body_is_refused_and_nothing_changes(  # noqa: PLR0917
    small: Rig, shared: Index, content: bytes, status: int, code: str, pointer: str
) -> None:
    before = everything(small, shared)
    response = await small.http.put(
        f"{shared.path}/documents/a", content=content, headers={"Content-Type": "application/json"}
    )
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["detail"]
    assert problem["error"]["code"] == code
    if status in {413, 422}:
        assert problem["errors"][0]["pointer"] == pointer
    assert everything(small, shared) == before


def everything(rig: Rig, index: Index) -> Any:
    tables = ("stored_documents", "stored_versions", "clock", "g1_chunks", "g1_applied")
    return [rig.made.dump(index, table) for table in tables]


async def test_all_faults_are_named_at_once(small: Rig, shared: Index) -> None:
    response = await small.put(shared, "a", "text", attributes={"year": "x", "public": 3, "lang": "pt"})
    assert [error["pointer"] for error in response.json()["errors"]] == [
        "/attributes/year",
        "/attributes/public",
    ]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("a%00b", 422),
        ("a%0Ab", 404),  # the router's paths have no line feeds
        ("a%0Db", 422),
        ("a%7Fb", 422),
        ("a%E2%80%A8b", 422),
        ("a%FFb", 422),
        ("%ED%A0%80", 422),
        ("", 422),
        ("x" * 1025, 413),
        ("x" * 10_000, 413),
        ("%C3%A7" * 513, 413),
    ],
)
async def test_a_wrong_id_is_refused(small: Rig, shared: Index, path: str, status: int) -> None:
    before = everything(small, shared)
    response = await small.http.put(f"{shared.path}/documents/{path}", json={"text": "text"})
    assert response.status_code == status, response.text
    assert everything(small, shared) == before


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 202),
        ("application/json; charset=utf-8", 202),
        ("Application/JSON", 202),
        ("text/plain", 415),
        ("application/x-ndjson", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
async def test_the_media_type_counts(small: Rig, shared: Index, media_type: str, status: int) -> None:
    response = await small.http.put(
        f"{shared.path}/documents/{media_type}", content=body(), headers={"Content-Type": media_type}
    )
    assert response.status_code == status, response.text


async def test_a_method_that_is_not_there_is_a_problem_too(small: Rig, shared: Index) -> None:
    response = await small.http.patch(f"{shared.path}/documents/a")
    assert (response.status_code, response.headers["content-type"]) == (405, "application/problem+json")
