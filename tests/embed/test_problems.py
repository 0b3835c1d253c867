"""Every error becomes a problem document that a person, a program and an OpenAI client understand."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.requests import Request

from polaris import errors
from polaris.errors import PolarisError
from polaris_service import problems
from polaris_service.bodies import NotJson, WrongMediaType, read_json
from polaris_service.problems import KINDS, InvalidBody, Kind, kind_of

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

# Contract §3: "Every error is application/problem+json": these and no other statuses.
CONTRACT = {400, 401, 403, 404, 409, 410, 412, 413, 415, 422, 424, 429, 500, 503, 504}


class Part(BaseModel):
    text: str
    count: int = Field(default=1, ge=1, le=3)


class Body(BaseModel):
    name: str
    parts: list[Part] = []
    either: int | bool = 0


def everything(base: type[PolarisError] = PolarisError) -> Iterator[type[PolarisError]]:
    yield base
    for below in base.__subclasses__():
        yield from everything(below)


def raiser(error: Exception) -> FastAPI:
    app = FastAPI()
    problems.install(app)

    @app.get("/raise")
    async def fail() -> None:
        raise error

    @app.post("/model")
    async def model(body: Body) -> Body:
        return body

    @app.post("/read")
    async def read(request: Request) -> Body:
        return problems.validated(Body, await read_json(request, 1000))

    @app.get("/items/{number}")
    async def items(number: int, limit: int = 1) -> list[int]:
        return [number, limit]

    return app


async def ask(app: FastAPI, method: str, url: str, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, url, **more)


def checked(answer: httpx.Response) -> dict[str, Any]:
    """Return the problem, after what every one must hold."""
    document: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["status"] == answer.status_code
    assert document["type"] == f"urn:polaris:problem:{document['code']}"
    assert document["title"]
    assert document["detail"]
    assert document["error"]["message"] == document["detail"]
    assert document["error"]["code"] == document["code"]
    return document


async def raised(error: Exception) -> tuple[dict[str, Any], httpx.Response]:
    answer = await ask(raiser(error), "GET", "/raise")
    return checked(answer), answer


def test_every_error_of_the_tree_has_a_row_with_a_status_of_the_contract() -> None:
    ours = [
        kind for kind in everything() if kind.__module__.startswith(("polaris.errors", "polaris_service.b"))
    ]
    assert [kind.__name__ for kind in ours if kind not in KINDS] == []
    assert {kind.status for kind in KINDS.values()} <= CONTRACT


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidInput("k is 0", "/k"), 422, "invalid-input"),
        (errors.TooLarge("the text has 9 bytes, the limit is 8", "/text"), 413, "too-large"),
        (errors.NotFound("no index a/b"), 404, "not-found"),
        (errors.Gone("document 1 was erased"), 410, "gone"),
        (errors.PreconditionFailed("is version 3"), 412, "precondition-failed"),
        (errors.Forbidden("ana lacks get polarisindexes/query"), 403, "forbidden"),
        (errors.DatabaseUnavailable("no login yet"), 503, "database-unavailable"),
        (errors.EmbedderUnavailable("no answer within 30 s"), 424, "embedder-unavailable"),
        (errors.GeneratorRefused("no such model"), 424, "generator-refused"),
        (errors.DeadlineExceeded("200 ms are over"), 504, "deadline-exceeded"),
        (NotJson("line 1"), 400, "malformed"),
        (WrongMediaType("text/html"), 415, "unsupported-media-type"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
async def test_an_error_becomes_its_problem(error: PolarisError, status: int, code: str) -> None:
    document, _ = await raised(error)
    assert (document["status"], document["code"], document["detail"]) == (status, code, str(error))


async def test_an_invalid_input_names_the_pointer_and_the_parameter_as_openai_writes_it() -> None:
    document, _ = await raised(errors.InvalidInput("is empty", "/input/3/te~1xt"))
    assert document["errors"] == [{"pointer": "/input/3/te~1xt", "detail": "is empty"}]
    assert document["error"]["param"] == "input[3].te/xt"
    assert document["error"]["type"] == "invalid_request_error"


async def test_a_503_always_says_when_to_try_again() -> None:
    _, answer = await raised(errors.Overloaded("900 requests wait"))
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_known_time_to_try_again_is_rounded_up_to_whole_seconds() -> None:
    _, answer = await raised(errors.EmbedderUnavailable("is starting", 2.2))
    assert answer.headers["retry-after"] == "3"


async def test_a_401_says_how_to_authenticate() -> None:
    _, answer = await raised(errors.Unauthenticated("no token"))
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_missing_prerequisite_comes_with_what_grants_it() -> None:
    document, _ = await raised(errors.Prerequisite("pgvector is missing", "CREATE EXTENSION vector"))
    assert document["remedy"] == "CREATE EXTENSION vector"


async def test_an_error_may_bring_a_code_of_its_own() -> None:
    error = errors.DatabaseUnavailable("there is no Secret yet")
    error.code = "no-database-yet"  # type: ignore[attr-defined]
    document, _ = await raised(error)
    assert (document["status"], document["code"]) == (503, "no-database-yet")


async def test_an_application_may_see_an_error_otherwise() -> None:
    app = FastAPI()
    problems.install(app, {errors.EmbedderUnavailable: Kind(503, "busy", "Busy")})

    @app.get("/raise")
    async def fail() -> None:
        raise errors.EmbedderUnavailable("too many wait")

    document = checked(await ask(app, "GET", "/raise"))
    assert (document["status"], document["code"]) == (503, "busy")


def test_an_error_without_a_row_is_what_its_nearest_base_is() -> None:
    class Younger(errors.Gone):
        pass

    assert kind_of(Younger("gone")) == KINDS[errors.Gone]


async def test_an_unforeseen_error_is_logged_and_its_text_stays_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        document, answer = await raised(ZeroDivisionError("password=hunter2"))
    assert (answer.status_code, document["code"]) == (500, "internal")
    assert "hunter2" not in answer.text
    assert "ZeroDivisionError" not in answer.text
    assert document["error"]["type"] == "server_error"


async def test_no_such_route_and_wrong_methods_are_problems_too() -> None:
    app = raiser(ValueError())
    assert checked(await ask(app, "GET", "/nothing"))["code"] == "no-such-route"
    answer = await ask(app, "DELETE", "/raise")
    assert checked(answer)["code"] == "method-not-allowed"
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize("route", ["/model", "/read"])
async def test_faults_of_a_body_come_all_at_once_each_with_its_pointer(route: str) -> None:
    body = {"name": 7, "parts": [{"text": "a"}, {"count": 9}]}
    document = checked(await ask(raiser(ValueError()), "POST", route, json=body))
    assert document["status"] == 422
    assert [fault["pointer"] for fault in document["errors"]] == ["/name", "/parts/1/text", "/parts/1/count"]
    assert document["detail"].startswith("/name: ")
    assert document["error"]["param"] == "name"


@pytest.mark.parametrize("route", ["/model", "/read"])
@pytest.mark.parametrize("body", [b"{", b"{'name': 1}", b"\xff", b""])
async def test_what_is_not_json_is_malformed(route: str, body: bytes) -> None:
    answer = await ask(
        raiser(ValueError()), "POST", route, content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400 or (route == "/model" and body == b"")
    checked(answer)


async def test_a_body_of_another_type_or_beyond_the_limit_is_told_so() -> None:
    app = raiser(ValueError())
    answer = await ask(app, "POST", "/read", content=b"<a/>", headers={"content-type": "text/xml"})
    assert checked(answer)["status"] == 415
    assert checked(await ask(app, "POST", "/read", json={"name": "x" * 1000}))["status"] == 413


async def test_faults_outside_of_the_body_name_the_parameter() -> None:
    app = raiser(ValueError())
    document = checked(await ask(app, "GET", "/items/one?limit=many"))
    assert document["status"] == 422
    assert [fault["parameter"] for fault in document["errors"]] == ["number", "limit"]
    assert document["error"]["param"] == "number"


def test_the_first_fault_of_a_body_is_its_sentence() -> None:
    assert str(InvalidBody([{"pointer": "", "detail": "is a list"}])) == "the body: is a list"


def test_documented_statuses_carry_the_schema_of_a_problem() -> None:
    app = FastAPI()

    @app.get("/", responses=problems.documented(404, 503))
    async def root() -> None: ...

    responses = app.openapi()["paths"]["/"]["get"]["responses"]
    assert set(responses["404"]["content"]) == {"application/problem+json"}
    assert "503" in responses
