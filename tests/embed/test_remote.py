"""The client of embedding servers: ours, others', restarted ones, and those that answer rubbish."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed.doubles import HashedProvider, free_port, process, serving
from embed.scripted import HANG, Asked, Scripted, http, ok
from polaris.errors import EmbedderRefused, EmbedderUnavailable
from polaris_service.embed.local import MODEL, LocalProvider
from polaris_service.embed.provider import Kind, OfferedModel
from polaris_service.embed.remote import (
    BATCH_CHARACTERS,
    BATCH_TEXTS,
    DeclaredModel,
    RemoteProvider,
    batches,
    estimate,
)

pytestmark = pytest.mark.anyio

HANDBOOK = Path(__file__).parents[2] / "service/polaris_cli/handbook"
ROWS = [[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]]


def embeddings(*rows: Any, **more: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": "m", **more}


def as_base64(row: list[float]) -> str:
    return base64.b64encode(np.array(row, "<f4").tobytes()).decode()


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with Scripted(lambda _: ok(embeddings(*ROWS))).serving() as made:
        yield made


@pytest.fixture
async def client(server: Scripted) -> AsyncIterator[RemoteProvider]:
    made = RemoteProvider(
        server.url, name="vectors", timeout_seconds=1, declared=[DeclaredModel("m", "7", 3, 64)]
    )
    yield made
    await made.close()


async def ask(client: RemoteProvider) -> list[list[float]]:
    vectors = await client.embed("m", ["um", "dois"], Kind.PASSAGE)
    return [[round(float(x), 4) for x in row] for row in vectors]


class TestAServerThatWorks:
    @pytest.mark.parametrize("encode", [list, as_base64], ids=["numbers", "base64"])
    async def test_may_send_vectors_as(self, encode: Any, server: Scripted, client: RemoteProvider) -> None:
        server.reply = lambda _: ok(embeddings(*map(encode, ROWS)))
        assert await ask(client) == ROWS
        assert server.asked[0].body == {"model": "m", "input": ["um", "dois"], "encoding_format": "base64"}

    async def test_may_send_them_in_any_order(self, server: Scripted, client: RemoteProvider) -> None:
        answer = embeddings(*ROWS)
        answer["data"].reverse()
        server.reply = lambda _: ok(answer)
        assert await ask(client) == ROWS

    @pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
    async def test_is_found_with_and_without_v1_in_its_address(self, suffix: str, server: Scripted) -> None:
        client = RemoteProvider(server.url + suffix)
        await ask(client)
        assert server.asked[0].path == "/v1/embeddings"
        await client.close()

    async def test_gets_prefixes_already_put_before_the_texts(self, server: Scripted) -> None:
        client = RemoteProvider(server.url, declared=[DeclaredModel("e5-small-v2", dimension=3)])
        await client.embed("e5-small-v2", ["um", "dois"], Kind.QUERY)
        assert server.asked[0].body["input"] == ["query: um", "query: dois"]
        await client.close()

    async def test_is_asked_in_batches_and_answers_in_order(self) -> None:
        double = HashedProvider()
        texts = [f"texto {number}" for number in range(3 * BATCH_TEXTS + 1)]
        with serving(double) as url:
            client = RemoteProvider(url)
            got = await client.embed("hashed", texts, Kind.PASSAGE)
            await client.close()
        np.testing.assert_allclose(got, await double.embed("hashed", texts, Kind.PASSAGE), atol=1e-6)

    async def test_sees_the_key_that_is_in_the_file_now(self, server: Scripted, tmp_path: Path) -> None:
        file = tmp_path / "key"
        client = RemoteProvider(server.url, key_file=file)
        for key in ("first", "second"):
            file.write_text(f"{key}\n")
            await ask(client)
        assert [asked.headers["authorization"] for asked in server.asked] == ["Bearer first", "Bearer second"]
        await client.close()

    @pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff\xfe"])
    async def test_is_not_asked_without_the_key_that_it_needs(
        self, content: bytes | None, server: Scripted, tmp_path: Path
    ) -> None:
        file = tmp_path / "key"
        if content is not None:
            file.write_bytes(content)
        client = RemoteProvider(server.url, key_file=file)
        with pytest.raises(EmbedderUnavailable, match="needs a key") as error:
            await ask(client)
        assert "two words" not in str(error.value)
        assert server.asked == []
        await client.close()

    async def test_says_which_models_it_has(self) -> None:
        with serving(HashedProvider(128)) as url:
            client = RemoteProvider(url)
            assert await client.models() == [OfferedModel("hashed", "1", 128, 512)]
            await client.close()

    async def test_may_list_models_that_only_we_know_the_dimension_of(self, server: Scripted) -> None:
        listed = [{"id": "intfloat/multilingual-e5-large"}, {"id": "bge-m3:latest"}, {"id": "gpt-99"}, 7]
        server.reply = lambda _: ok({"object": "list", "data": listed})
        client = RemoteProvider(server.url)
        assert await client.models() == [
            OfferedModel("intfloat/multilingual-e5-large", "1", 1024, 512),
            OfferedModel("bge-m3:latest", "1", 1024, 8192),
        ]
        await client.close()

    async def test_is_asked_for_the_dimension_that_nobody_declared(self, server: Scripted) -> None:
        server.reply = lambda _: ok(embeddings(ROWS[0]))
        client = RemoteProvider(
            server.url, declared=[DeclaredModel("own", "3"), DeclaredModel("m", "7", 9, 64)]
        )
        assert await client.models() == [OfferedModel("own", "3", 3, None), OfferedModel("m", "7", 9, 64)]
        await client.close()

    async def test_may_have_closed_a_connection_that_was_kept(
        self, server: Scripted, client: RemoteProvider
    ) -> None:
        answers = iter([ok(embeddings(*ROWS)), b"", ok(embeddings(*ROWS))])
        server.reply = lambda _: next(answers)
        assert await ask(client) == ROWS
        assert await ask(client) == ROWS


REFUSED = [
    ("too few embeddings", ok(embeddings(ROWS[0])), "returned 1 embeddings for 2 texts"),
    ("too many embeddings", ok(embeddings(*ROWS, ROWS[0])), "returned 3 embeddings for 2 texts"),
    ("another dimension", ok(embeddings([1.0], [1.0])), "1 dimensions, expected are 3"),
    ("two dimensions at once", ok(embeddings([1.0], [1.0, 0.0])), r"different dimensions: \[1, 2\]"),
    ("no entries", ok(embeddings([], [])), "is empty"),
    (
        "NaN as base64",
        ok(embeddings(as_base64(ROWS[0]), as_base64([0, float("nan"), 0]))),
        "vector of text 1",
    ),
    ("infinity", ok(embeddings(ROWS[0], [1e300, 0, 0])), "vector of text 1"),
    ("NaN as Python writes it", ok(embeddings(ROWS[0], [float("nan"), 0, 0])), "no JSON"),
    ("null", ok(embeddings(ROWS[0], None)), "neither base64 nor a list of numbers"),
    ("words", ok(embeddings(ROWS[0], ["a", "b", "c"])), "neither base64 nor a list of numbers"),
    ("what is no base64", ok(embeddings(ROWS[0], "!!!")), "no base64 of float32"),
    ("base64 of 5 bytes", ok(embeddings(ROWS[0], "AAAAAAA=")), "no base64 of float32"),
    ("one index twice", ok({"data": [{"index": 0, "embedding": row} for row in ROWS]}), "numbered otherwise"),
    (
        "an index of another type",
        ok({"data": [{"index": [], "embedding": r} for r in ROWS]}),
        "numbered otherwise",
    ),
    ("a list", ok([1, 2]), "no list of embeddings"),
    ("data of numbers", ok({"data": [1, 2]}), "no list of embeddings"),
    ("HTML", http(200, "<html>Welcome to nginx</html>", "text/html"), r"no JSON \(text/html\)"),
    ("nothing", http(200, ""), "no JSON"),
    (
        "a wrong key",
        http(401, json.dumps({"error": {"message": "bad key", "type": "invalid_request_error"}})),
        r"401 \(invalid_request_error, 66 bytes\): it wants a key, and the settings name no key file",
    ),
    (
        "no such model",
        http(404, json.dumps({"detail": "no model m", "code": "no-such-model"})),
        r"404 \(no-such-model, 49 bytes\): it has no model m, or the address is not",
    ),
    (
        "a request that it does not take",
        http(422, json.dumps({"error": "um is not allowed"})),
        r"422 \(30 bytes\): it does not take what was sent",
    ),
    ("a redirect", http(307, "", Location="http://127.0.0.1:1/"), "307"),
]
UNAVAILABLE = [
    (
        "an error of its own",
        http(500, "Internal Server Error", "text/plain"),
        "answered /v1/embeddings with 500",
        None,
    ),
    ("that it is overloaded", http(503, "{}", Retry_After="7"), "503", 7),
    (
        "that we ask too much",
        http(429, json.dumps({"error": {"message": "slow", "code": "rate_limit"}}), Retry_After="1.5"),
        "rate_limit",
        1.5,
    ),
    ("a date to come back at", http(503, "{}", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), "503", 0),
    ("a date that is none", http(503, "{}", Retry_After="soon"), "503", None),
    ("that a gateway failed", http(502, "<html>", "text/html"), "502", None),
    ("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer", None),
    (
        "half of an answer",
        http(200, "{}").replace(b"Length: 2", b"Length: 9"),
        "does not answer|did not answer",
        None,
    ),
    ("nothing at all", HANG, "did not answer within 1 s", None),
]


SECRET = "sk-Zeca7-and-the-text"
ECHOES = [
    http(422, json.dumps({"error": {"message": SECRET, "type": SECRET, "code": SECRET, "param": SECRET}})),
    http(400, json.dumps({"detail": SECRET, "code": f"{SECRET} x", "title": SECRET})),
    http(401, json.dumps({"error": SECRET})),
    http(500, SECRET, "text/plain"),
    http(503, json.dumps([SECRET])),
    http(200, SECRET, SECRET),
    f"HTTP/1.1 200 {SECRET}\x01\r\n{SECRET}\r\n\r\n".encode(),
]


class TestAServerThatEchoes:
    @pytest.mark.parametrize("answer", ECHOES)
    async def test_is_not_repeated(self, answer: bytes, server: Scripted, client: RemoteProvider) -> None:
        server.reply = lambda _: answer
        with pytest.raises((EmbedderRefused, EmbedderUnavailable)) as raised:
            await ask(client)
        assert "Zeca" not in str(raised.value)

    async def test_is_told_of_a_key_that_it_does_not_take(self, server: Scripted, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text(SECRET)
        server.reply = lambda _: http(403, json.dumps({"error": {"message": f"bad key {SECRET}"}}))
        client = RemoteProvider(server.url, key_file=file)
        with pytest.raises(EmbedderRefused, match="does not accept the key in") as raised:
            await ask(client)
        assert "Zeca" not in str(raised.value)
        await client.close()


class TestAServerThatAnswers:
    @pytest.mark.parametrize(("answer", "why"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
    async def test_rubbish_is_refused(
        self, answer: bytes, why: str, server: Scripted, client: RemoteProvider
    ) -> None:
        server.reply = lambda _: answer
        with pytest.raises(EmbedderRefused, match=why) as error:
            await ask(client)
        assert str(error.value).startswith(f"the embedding provider vectors at {server.url}")

    @pytest.mark.parametrize(
        ("answer", "why", "after"), [row[1:] for row in UNAVAILABLE], ids=[row[0] for row in UNAVAILABLE]
    )
    async def test_no_vectors_for_now_is_unavailable(
        self, answer: bytes | None, why: str, after: float | None, server: Scripted, client: RemoteProvider
    ) -> None:
        server.reply = lambda _: answer
        with pytest.raises(EmbedderUnavailable, match=why) as error:
            await ask(client)
        assert error.value.retry_after == after

    async def test_vectors_again_after_it_failed_is_asked_again(
        self, server: Scripted, client: RemoteProvider
    ) -> None:
        server.reply = lambda _: http(503, "{}")
        with pytest.raises(EmbedderUnavailable):
            await ask(client)
        server.reply = lambda _: ok(embeddings(*ROWS))
        assert await ask(client) == ROWS

    async def test_without_an_end_is_cut_off(
        self, server: Scripted, client: RemoteProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("polaris_service.embed.remote._MAX_ANSWER_BYTES", 1000)
        server.reply = lambda _: http(200, " " * 1001)
        with pytest.raises(EmbedderRefused, match="more than 1,000 bytes"):
            await ask(client)

    async def test_its_models_with_rubbish_is_refused(self, server: Scripted) -> None:
        client = RemoteProvider(server.url)
        server.reply = lambda _: ok({"data": "none"})
        with pytest.raises(EmbedderRefused, match="no list of models"):
            await client.models()
        await client.close()


async def test_nobody_there_is_unavailable() -> None:
    client = RemoteProvider(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(EmbedderUnavailable, match="does not answer"):
        await ask(client)
    await client.close()


async def test_who_is_away_for_a_moment_is_waited_for() -> None:
    port = free_port()
    client = RemoteProvider(f"http://127.0.0.1:{port}", declared=[DeclaredModel("m", "7", 3, 64)])
    asking = asyncio.create_task(ask(client))
    await asyncio.sleep(0.2)  # it has been refused by then, or will be answered at once
    async with Scripted(lambda _: ok(embeddings(*ROWS)), port=port).serving():
        np.testing.assert_allclose(await asking, ROWS, rtol=1e-6)
        await client.close()


async def test_who_stays_away_is_not_waited_for_again_until_it_has_answered() -> None:
    port = free_port()
    client = RemoteProvider(f"http://127.0.0.1:{port}", declared=[DeclaredModel("m", "7", 3, 64)])
    with pytest.raises(EmbedderUnavailable, match="does not answer"):
        await ask(client)
    assert not client._bridges()
    async with Scripted(lambda _: ok(embeddings(*ROWS)), port=port).serving():
        await ask(client)
    assert client._bridges()
    await client.close()


async def test_an_address_that_is_none_is_refused() -> None:
    client = RemoteProvider("http://[::1")
    with pytest.raises(EmbedderRefused, match="no valid address"):
        await ask(client)
    await client.close()


async def test_a_server_killed_and_started_again_under_load_is_unavailable_and_then_answers(
    tmp_path: Path,
) -> None:
    port = free_port()
    client = RemoteProvider(f"http://127.0.0.1:{port}", timeout_seconds=5)
    expected = await HashedProvider().embed("hashed", ["olá mundo"], Kind.QUERY)
    outcomes: list[str] = []
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            try:
                vectors = await client.embed("hashed", ["olá mundo"], Kind.QUERY)
                np.testing.assert_allclose(vectors, expected, atol=1e-6)
                outcomes.append("answered")
            except EmbedderUnavailable:
                outcomes.append("unavailable")
            await asyncio.sleep(0.005)

    async def next_outcome(wanted: str) -> None:
        outcomes.clear()
        async with asyncio.timeout(60):
            while wanted not in outcomes:  # noqa: ASYNC110  (of several tasks)
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(load())
        with process(port, tmp_path):
            await next_outcome("answered")
        await next_outcome("unavailable")
        with process(port, tmp_path):
            await next_outcome("answered")
            stop.set()
    await client.close()


class TestTokens:
    async def test_are_counted_by_our_own_server(self, remote: RemoteProvider, local: LocalProvider) -> None:
        texts = ["Uma frase.", "", "Another sentence, in English."] * 50
        counted = await remote.count_tokens(MODEL.model, texts)
        assert counted == await local.count_tokens(MODEL.model, texts)

    async def test_are_counted_by_a_server_that_takes_one_text_at_a_time(
        self, server: Scripted, client: RemoteProvider
    ) -> None:
        def vllm(asked: Asked) -> bytes:
            prompt = asked.body["prompt"]
            if not isinstance(prompt, str):
                return http(422, json.dumps({"detail": "prompt must be a string"}))
            return ok({"count": len(prompt), "max_model_len": 512, "tokens": [7] * len(prompt)})

        server.reply = vllm
        assert await client.count_tokens("m", ["a", "bb"]) == [1, 2]
        assert await client.count_tokens("m", ["ccc"]) == [3]
        assert server.asked[0].body == {"model": "m", "prompt": ["a", "bb"], "add_special_tokens": False}
        assert [asked.body["prompt"] for asked in server.asked[1:]] == ["a", "bb", "ccc"]

    @pytest.mark.parametrize(
        "answer",
        [
            http(404, "{}"),
            http(405, "{}"),
            http(422, "{}"),
            ok({"tokens": []}),
            ok({"count": "two"}),
            ok([[1, 2]]),
        ],
        ids=["404", "405", "422", "tokens only", "no number", "another shape"],
    )
    async def test_are_estimated_where_the_server_counts_none(
        self, answer: bytes, server: Scripted, client: RemoteProvider
    ) -> None:
        server.reply = lambda _: answer
        assert await client.count_tokens("m", ["uma frase", ""]) == [estimate("uma frase"), 0]
        before = len(server.asked)
        await client.count_tokens("m", ["outra"])
        assert len(server.asked) == before, "it is not asked again at once"

    @pytest.mark.parametrize(
        ("answer", "error"), [(http(503, "{}"), EmbedderUnavailable), (http(401, "{}"), EmbedderRefused)]
    )
    async def test_are_not_estimated_where_the_server_only_fails(
        self, answer: bytes, error: type[Exception], server: Scripted, client: RemoteProvider
    ) -> None:
        server.reply = lambda _: answer
        with pytest.raises(error):
            await client.count_tokens("m", ["a"])

    async def test_are_estimated_rather_too_many_than_too_few(self, local: LocalProvider) -> None:
        """Portuguese and English prose with code in it, in pieces of about a chunk."""
        pieces = list(chunks())
        languages = {language for language, _ in pieces}
        assert languages == {"en", "pt"}
        counted = await local.count_tokens(MODEL.model, [text for _, text in pieces])
        ratios = [estimate(text) / count for (_, text), count in zip(pieces, counted, strict=True)]
        assert min(ratios) >= 1.1
        assert np.mean(ratios) <= 1.6

    def test_are_never_none_of_a_text_that_has_any(self) -> None:
        for text in ("a", "1", "ß", "日", "😀", "_"):
            assert estimate(text) == 1
        assert estimate(" \n\t") == 0


def chunks() -> Iterator[tuple[str, str]]:
    for file in sorted(HANDBOOK.glob("*/*.md")):
        words = file.read_text(encoding="utf-8").split(" ")
        for begin in range(0, len(words), 200):
            yield file.parent.name, " ".join(words[begin : begin + 200])


def test_batches_hold_all_texts_in_order_within_both_limits() -> None:
    texts = ["a" * 10] * 70 + ["b" * BATCH_CHARACTERS * 2] + ["c" * (BATCH_CHARACTERS // 2)] * 3
    made = list(batches(texts))
    assert [text for batch in made for text in batch] == texts
    assert [len(batch) for batch in made] == [32, 32, 6, 1, 2, 1]
    assert list(batches([])) == []
