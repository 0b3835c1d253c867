"""Search and answer over HTTP, behind a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

from answer.doubles import until
from answer.library import TEXTS, ReadersOnly, Scripted, fill, service
from polaris.errors import GeneratorRefused, GeneratorUnavailable
from polaris_service.answer.extractive import Extractive
from search.world import SearchIndex, World

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

PT = "Como instalo um pacote?"


@pytest.fixture(scope="module")
def made(answer_world: World) -> SearchIndex:
    return fill(answer_world, "http")


@pytest.fixture
async def client(answer_world: World, made: SearchIndex) -> AsyncIterator[httpx.AsyncClient]:
    async with service(answer_world, Extractive()) as running:
        assert made.name == "http"
        yield running


SEARCH = "/v1/indexes/default/http/search"
ANSWER = "/v1/indexes/default/http/answer"


async def test_a_search_answers_as_the_contract_says(client: httpx.AsyncClient) -> None:
    response = await client.post(SEARCH, json={"query": PT, "k": 2})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert len(body["hits"]) == 2
    first = body["hits"][0]
    assert first["document"] == "faq/pacotes"
    assert first["text"] == TEXTS["faq/pacotes"][slice(*first["span"])]


async def test_an_answer_is_as_the_contract_says(client: httpx.AsyncClient) -> None:
    response = await client.post(ANSWER, json={"question": PT})
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {
        "answer",
        "refused",
        "citations",
        "generator",
        "generation",
        "degraded",
        "timings_ms",
    }
    citation = body["citations"][0]
    assert set(citation) == {"marker", "document", "version", "span", "sha256", "text"}
    assert citation["text"] == TEXTS[citation["document"]][slice(*citation["span"])]


def events_of(text: str) -> list[tuple[str, Any]]:
    made = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        made.append((name.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))))
    return made


async def test_a_stream_is_deltas_then_citations_then_the_answer(client: httpx.AsyncClient) -> None:
    response = await client.post(ANSWER, json={"question": PT, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    events = events_of(response.text)
    names = [name for name, _ in events]
    assert names == sorted(names, key=["delta", "citation", "answer"].index)
    assert names.count("answer") == 1
    answer = events[-1][1]
    assert "".join(value["text"] for name, value in events if name == "delta") == answer["answer"]
    assert [value for name, value in events if name == "citation"] == answer["citations"]
    plain = (await client.post(ANSWER, json={"question": PT})).json()
    assert {**answer, "timings_ms": 0} == {**plain, "timings_ms": 0}


async def test_a_refusal_is_streamed_as_the_answer_alone(client: httpx.AsyncClient) -> None:
    body = {"question": PT, "stream": True, "filter": {"eq": ["lang", "fr"]}}
    [(name, answer)] = events_of((await client.post(ANSWER, json=body)).text)
    assert (name, answer["refused"]) == ("answer", True)


BAD: list[tuple[str, str, bytes, int, str | None]] = [
    ("not JSON", SEARCH, b"query=x", 400, None),
    ("half of JSON", SEARCH, b'{"query": ', 400, None),
    ("NaN", SEARCH, b'{"vector": [NaN]}', 400, None),
    ("a list", SEARCH, b"[]", 422, ""),
    ("neither", SEARCH, b"{}", 422, ""),
    ("both", SEARCH, b'{"query": "x", "vector": [1]}', 422, ""),
    ("empty", SEARCH, b'{"query": ""}', 422, "/query"),
    ("NUL", SEARCH, b'{"query": "a\\u0000b"}', 422, "/query"),
    ("a lone surrogate", SEARCH, b'{"query": "\\ud800"}', 422, "/query"),
    ("k of 0", SEARCH, b'{"query": "x", "k": 0}', 422, "/k"),
    ("k of a thousand million", SEARCH, b'{"query": "x", "k": 1000000000}', 422, "/k"),
    ("too long", SEARCH, b'{"query": "' + b"x" * 9000 + b'"}', 413, "/query"),
    ("too large", SEARCH, b'{"query": "' + b"x" * 20_000_000 + b'"}', 413, ""),
    ("dimension", SEARCH, b'{"vector": [1, 2]}', 422, "/vector"),
    ("an unknown attribute", SEARCH, b'{"query": "x", "filter": {"eq": ["a", 1]}}', 422, "/filter/eq/0"),
    (
        "nested 500 deep",
        SEARCH,
        b'{"query": "x", "filter": ' + b'{"not":' * 500 + b"1" + b"}" * 501,
        413,
        "/filter" + "/not" * 16,
    ),
    ("nested 100,000 deep", SEARCH, b'{"filter":' * 100_000, 400, None),
    ("another generation", SEARCH, b'{"query": "x", "generation": 9}', 409, None),
    ("no question", ANSWER, b"{}", 422, "/question"),
    ("a blank question", ANSWER, b'{"question": "\\n"}', 422, "/question"),
    ("a surrogate", ANSWER, b'{"question": "x", "filter": {"eq": ["lang", "\\udc00"]}}', 422, "/filter/eq/1"),
    ("no such index", "/v1/indexes/default/nowhere/search", b'{"query": "x"}', 404, None),
    ("NUL in a name", "/v1/indexes/default/a%00b/search", b'{"query": "x"}', 404, None),
]


@pytest.mark.parametrize("case", [r[1:] for r in BAD], ids=[r[0] for r in BAD])
async def test_a_bad_request_is_a_problem_that_names_the_pointer(
    client: httpx.AsyncClient, case: tuple[str, bytes, int, str | None]
) -> None:
    path, body, status, pointer = case
    response = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["detail"]
    if pointer is not None:
        assert problem["errors"][0]["pointer"] == pointer


async def test_another_media_type_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(SEARCH, content=b"query: x", headers={"Content-Type": "text/yaml"})
    assert response.status_code == 415


async def test_who_lacks_the_verb_learns_nothing(answer_world: World, made: SearchIndex) -> None:
    async with service(answer_world, Extractive(), ReadersOnly()) as client:
        for path in (SEARCH, ANSWER, "/v1/indexes/default/nowhere/search"):
            response = await client.post(path, content=b"rubbish")
            assert response.status_code == 403
            assert "get on polarisindexes/query" in response.json()["detail"]
    assert made.name == "http"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GeneratorUnavailable("away"), "generator-unavailable"),
        (GeneratorRefused("no"), "generator-refused"),
    ],
)
async def test_a_generator_that_fails_before_it_writes_is_424(
    answer_world: World, made: SearchIndex, error: Exception, code: str, *, stream: bool
) -> None:
    async with service(answer_world, Scripted(error=error)) as client:
        path = f"/v1/indexes/default/{made.name}/answer"
        response = await client.post(path, json={"question": PT, "stream": stream})
    assert response.status_code == 424
    assert response.json()["code"] == code


async def test_a_generator_that_fails_while_it_writes_ends_the_stream_with_the_problem(
    answer_world: World, made: SearchIndex
) -> None:
    generator = Scripted(["Use apt install now. "], error=GeneratorUnavailable("broke off"))
    async with service(answer_world, generator) as client:
        path = f"/v1/indexes/default/{made.name}/answer"
        response = await client.post(path, json={"question": PT, "stream": True})
    assert response.status_code == 200
    (first, _), (last, problem) = events_of(response.text)
    assert (first, last) == ("delta", "error")
    assert (problem["status"], problem["code"], problem["detail"]) == (
        424,
        "generator-unavailable",
        "broke off",
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_generator(
    answer_world: World, made: SearchIndex, *, stream: bool
) -> None:
    generator = Scripted(["Use apt install now. "], hang=True)
    async with service(answer_world, generator) as client:
        path = f"/v1/indexes/default/{made.name}/answer"

        async def read() -> None:
            async with client.stream("POST", path, json={"question": PT, "stream": stream}) as response:
                async for _ in response.aiter_bytes():
                    pass

        reading = asyncio.create_task(read())
        await until(lambda: bool(generator.prompts))
        assert not generator.ended
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await until(lambda: generator.ended)


async def test_the_description_holds_the_limits_and_what_is_given_and_taken(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    paths = document["paths"]
    taken = paths["/v1/indexes/{namespace}/{name}/search"]["post"]
    schema = taken["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["k"]["maximum"] == 1000
    assert schema["properties"]["query"]["maxLength"] == 8192
    found = taken["responses"]["200"]["content"]["application/json"]["schema"]
    body = (await client.post(SEARCH, json={"query": PT, "explain": True})).json()
    assert set(body) == set(found["properties"])
    assert set(body["hits"][0]) == set(found["properties"]["hits"]["items"]["properties"])
    answered = paths["/v1/indexes/{namespace}/{name}/answer"]["post"]["responses"]["200"]
    schema = answered["content"]["application/json"]["schema"]
    body = (await client.post(ANSWER, json={"question": PT})).json()
    assert set(body) == set(schema["properties"])
    assert set(body["citations"][0]) == set(schema["properties"]["citations"]["items"]["properties"])


async def test_every_field_that_is_described_is_taken(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for path in (SEARCH, ANSWER):
        described = document["paths"][path.replace("default/http", "{namespace}/{name}")]["post"]
        for name in described["requestBody"]["content"]["application/json"]["schema"]["properties"]:
            response = await client.post(path, json={name: None})
            assert "unknown field" not in response.json()["detail"], name
