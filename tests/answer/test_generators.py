"""Generators over the wire: what a real server and its doubles send becomes text or a clear error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from answer.doubles import Behaviour, Double, Form, event, serving, until
from polaris.errors import GeneratorRefused, GeneratorUnavailable
from polaris.settings import ServiceSettings
from polaris_service.answer import generators
from polaris_service.answer.extractive import Extractive
from polaris_service.answer.generators import TRUNCATED, Gemini, Generator, OpenAI, Remote
from polaris_service.answer.passages import Passage
from polaris_service.answer.prompt import Prompt, build

pytestmark = pytest.mark.anyio

PASSAGE = Passage(1, "faq", 1, 0, 24, "Debian is free software.", None, None, 0.9)
PROMPT = build("What is Debian?", [PASSAGE], "0123456789abcdef")
MADE: dict[Form, type[OpenAI | Gemini]] = {"openai": OpenAI, "gemini": Gemini}


@pytest.fixture(params=["openai", "gemini"])
def double(request: pytest.FixtureRequest) -> Iterator[Double]:
    with serving(request.param) as running:
        yield running


def generator(double: Double, key_file: Path | None = None, seconds: float = 5.0) -> Generator:
    return MADE[double.form](Remote(double.url, "test-model", key_file, seconds))


async def written(made: Generator, prompt: Prompt = PROMPT) -> tuple[list[str], list[str]]:
    """The pieces and the notes."""
    notes: list[str] = []
    try:
        async with aclosing(made.stream(prompt, notes)) as stream:
            pieces = [piece async for piece in stream]
    finally:
        await made.stop()
    return pieces, notes


# --- the same for the real one and the doubles ---


@pytest.fixture(params=["double openai", "double gemini", "llama-server"])
def any_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Generator]:
    key = tmp_path / "key"
    key.write_text("secret-of-llama\n")
    if request.param == "llama-server":
        yield OpenAI(Remote(request.getfixturevalue("llama_server"), "smollm2", key, 240))
        return
    form: Literal["openai", "gemini"] = "gemini" if "gemini" in request.param else "openai"
    with serving(form) as running:
        yield generator(running, key)


async def test_a_server_streams_text_in_pieces(any_server: Generator) -> None:
    pieces, notes = await written(any_server)
    assert len(pieces) > 1
    assert "".join(pieces).strip()
    assert set(notes) <= {TRUNCATED}


async def test_a_stream_can_be_left_at_any_piece_and_another_begun(any_server: Generator) -> None:
    for _ in range(2):
        async with aclosing(any_server.stream(PROMPT, [])) as stream:
            assert isinstance(await anext(stream), str)
    await any_server.stop()


async def test_the_real_server_refuses_a_wrong_key_and_a_prompt_that_is_too_long(
    llama_server: str, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("wrong")
    with pytest.raises(GeneratorRefused, match="401"):
        await written(OpenAI(Remote(llama_server, "smollm2", key, 240)))
    key.write_text("secret-of-llama")
    with pytest.raises(GeneratorRefused, match="400"):
        await written(
            OpenAI(Remote(llama_server, "smollm2", key, 240)), build("word " * 6000, [PASSAGE], "mark")
        )


# --- what is asked ---


async def test_openai_is_asked_in_its_form(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    with serving("openai") as double:
        pieces, notes = await written(generator(double, key))
        [request] = double.requests
    assert ("".join(pieces), notes) == ("Debian is free software [1].", [])
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == "Bearer s3cret"
    body = request["body"]
    assert (body["model"], body["stream"], body["temperature"]) == ("test-model", True, 0)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert "Debian is free software." in body["messages"][1]["content"]


async def test_gemini_is_asked_in_its_form(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    with serving("gemini") as double:
        pieces, notes = await written(generator(double, key))
        [request] = double.requests
    assert ("".join(pieces), notes) == ("Debian is free software [1].", [])
    assert request["path"] == "/v1beta/models/test-model:streamGenerateContent?alt=sse"
    assert request["headers"]["x-goog-api-key"] == "s3cret"
    assert "Debian is free software." in request["body"]["contents"][0]["parts"][0]["text"]
    assert request["body"]["systemInstruction"]["parts"][0]["text"] == PROMPT.system


async def test_a_key_that_changes_is_used_at_once(double: Double, tmp_path: Path) -> None:
    key = tmp_path / "key"
    made = generator(double, key)
    for value in ("one", "two"):
        key.write_text(value)
        async with aclosing(made.stream(PROMPT, [])) as stream:
            assert [piece async for piece in stream]
    await made.stop()
    sent = [r["headers"].get("Authorization", r["headers"].get("x-goog-api-key")) for r in double.requests]
    assert [value.removeprefix("Bearer ") for value in sent] == ["one", "two"]


async def test_the_trace_of_the_request_goes_along(double: Double) -> None:
    context = SpanContext(0xAB, 0xCD, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    with use_span(NonRecordingSpan(context)):
        await written(generator(double))
    (request,) = double.requests
    assert request["headers"]["traceparent"] == f"00-{0xAB:032x}-{0xCD:016x}-01"


async def test_an_address_with_a_path_is_taken_as_it_is() -> None:
    with serving("openai") as double:
        made = OpenAI(Remote(f"{double.url}/v1beta/openai/", "m"))
        await written(made)
        assert double.requests[0]["path"] == "/v1beta/openai/chat/completions"


async def test_a_parameter_that_the_model_refuses_is_left_out_from_then_on() -> None:
    with serving("openai") as double:
        double.behaviour = Behaviour(refused_parameters=("temperature", "max_tokens"))
        made = OpenAI(Remote(double.url, "reasoner"))
        for _ in range(2):
            async with aclosing(made.stream(PROMPT, [])) as stream:
                assert [piece async for piece in stream]
        await made.stop()
        bodies = [request["body"] for request in double.requests]
    assert [("temperature" in b, "max_tokens" in b) for b in bodies] == [
        (True, True),
        (False, True),
        (False, False),
        (False, False),
    ]


async def test_an_answer_that_ends_at_its_limit_says_so(double: Double) -> None:
    double.behaviour = Behaviour(finish="length")
    _, notes = await written(generator(double))
    assert notes == [TRUNCATED]


# --- what goes wrong ---

FAULTS: list[tuple[str, Behaviour, type[Exception], str]] = [
    (
        "500",
        Behaviour(status=500, error={"message": "a bug", "type": "server_error"}),
        GeneratorUnavailable,
        r"500 \(server_error, \d+ bytes\)$",
    ),
    (
        "429",
        Behaviour(status=429, error={"code": 429, "status": "RESOURCE_EXHAUSTED"}),
        GeneratorUnavailable,
        "429 .RESOURCE_EXHAUSTED",
    ),
    ("503 without words", Behaviour(status=503), GeneratorUnavailable, "503"),
    ("401", Behaviour(status=401, error={"message": "bad key"}), GeneratorRefused, "401 .*the key"),
    ("404", Behaviour(status=404, error={"message": "no model"}), GeneratorRefused, "404 .*no model"),
    ("400", Behaviour(status=400, error={"message": "x\n" * 900}), GeneratorRefused, "400 .*its own log"),
    ("a redirect", Behaviour(status=307, headers={"Location": "http://x/"}), GeneratorRefused, "307"),
    ("no end", Behaviour(finish=None), GeneratorUnavailable, "broke off"),
    ("death", Behaviour(die=True), GeneratorUnavailable, r"not reachable|broke off"),
    ("nothing at all", Behaviour(raw=b""), GeneratorUnavailable, "broke off"),
    ("HTML", Behaviour(raw=b"<html>", headers={"Content-Type": "text/html"}), GeneratorRefused, "text/html"),
    ("not JSON", Behaviour(raw=b"data: {oops\n\n"), GeneratorRefused, "not JSON"),
    ("no object", Behaviour(raw=b"data: [1]\n\n"), GeneratorRefused, "no object"),
    ("bytes", Behaviour(raw=b"data: \xff\xfe\n\n"), GeneratorRefused, "not JSON"),
    ("an error", Behaviour(raw=b'data: {"error":{"type":"boom"}}\n\n'), GeneratorRefused, "error: boom"),
    ("an error in words", Behaviour(raw=b'data: {"error":"a b"}\n\n'), GeneratorRefused, "its own log"),
    ("a line without end", Behaviour(raw=b"data: " + b"x" * 2**21), GeneratorRefused, "a line of more"),
]


@pytest.mark.parametrize("fault", [r[1:] for r in FAULTS], ids=[r[0] for r in FAULTS])
async def test_whatever_a_server_does_ends_in_a_clear_error(
    double: Double, fault: tuple[Behaviour, type[Exception], str]
) -> None:
    double.behaviour, error, words = fault
    with pytest.raises(error, match=words) as caught:
        await written(generator(double))
    assert len(str(caught.value)) < 300


SECRET = "s3cr3t of Maria, CPF 529.982.247-25"
ECHOES = [
    *(Behaviour(status=status, error={"message": SECRET}) for status in (400, 401, 403, 404, 422, 429, 500)),
    Behaviour(status=400, error={"type": SECRET, "code": SECRET, "status": SECRET, "param": SECRET}),
    Behaviour(raw=b'data: {"error": {"message": "%s", "type": "%s"}}\n\n' % ((SECRET.encode(),) * 2)),
    Behaviour(raw=b'data: {"error": "%s"}\n\n' % SECRET.encode()),
    Behaviour(raw=b'data: {"promptFeedback": {"blockReason": "%s"}}\n\n' % SECRET.encode()),
    Behaviour(raw=b'data: {"candidates": [{"finishReason": "%s"}]}\n\n' % SECRET.encode()),
    Behaviour(raw=b"data: %s\n\n" % SECRET.encode()),
    Behaviour(raw=b"", headers={"Content-Type": SECRET}),
]


@pytest.mark.parametrize("echo", ECHOES)
async def test_what_a_server_echoes_is_not_repeated(
    double: Double, echo: Behaviour, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    double.behaviour = echo
    with pytest.raises((GeneratorRefused, GeneratorUnavailable)) as caught:
        await written(generator(double))
    for shown in (str(caught.value), caplog.text, "".join(capsys.readouterr())):
        assert not any(word in shown for word in ("s3cr3t", "Maria", "529"))


RUBBISH: list[tuple[Form, Any, str]] = [
    ("openai", {}, "without choices"),
    ("openai", {"choices": "x"}, "without choices"),
    ("openai", {"choices": [7]}, "without choices"),
    ("openai", {"choices": [{"delta": {"content": 7}}]}, "no string"),
    ("openai", {"choices": [{"delta": {}, "finish_reason": "content_filter"}]}, "filter"),
    ("gemini", {"candidates": "x"}, "candidates"),
    ("gemini", {"candidates": [{"content": {"parts": [{"text": 7}]}}]}, "no string"),
    ("gemini", {"promptFeedback": {"blockReason": "SAFETY"}}, "blocked the prompt: SAFETY"),
    ("gemini", event("gemini", "", "RECITATION"), "stopped the answer: RECITATION"),
]


@pytest.mark.parametrize(("form", "value", "words"), RUBBISH)
async def test_what_is_not_of_the_servers_own_form_is_refused(form: Form, value: Any, words: str) -> None:
    with serving(form) as double:
        double.behaviour = Behaviour(raw=b"data: " + json.dumps(value).encode() + b"\n\n")
        with pytest.raises(GeneratorRefused, match=words):
            await written(generator(double))


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("openai", {"choices": []}),
        ("openai", {"choices": [{"delta": None}]}),
        ("openai", {"choices": [{"delta": "x"}]}),
        ("gemini", {}),
        ("gemini", {"candidates": [{}]}),
        ("gemini", {"candidates": [{"content": {"parts": [7, {"text": "hm", "thought": True}]}}]}),
    ],
)
async def test_what_holds_no_text_is_passed_over(form: Form, value: Any) -> None:
    end = json.dumps(event(form, "text", "stop")).encode()
    with serving(form) as double:
        double.behaviour = Behaviour(raw=b"data: %s\n\ndata: %s\n\n" % (json.dumps(value).encode(), end))
        assert (await written(generator(double)))[0] == ["text"]


@pytest.mark.parametrize("hang", ["before", "after"])
async def test_a_server_that_hangs_is_given_up_when_it_is_left(
    double: Double, hang: Literal["before", "after"]
) -> None:
    double.behaviour = Behaviour(hang=hang)
    task = asyncio.create_task(written(generator(double)))
    await until(lambda: bool(double.requests))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if hang == "after":
        await until(double.left.is_set)


async def test_silence_ends_in_time(double: Double) -> None:
    double.behaviour = Behaviour(hang="before")
    with pytest.raises(GeneratorUnavailable, match="in time"):
        await written(generator(double, seconds=0.2))


async def test_a_generator_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(GeneratorUnavailable, match="not reachable"):
        await written(OpenAI(Remote("http://127.0.0.1:1", "m", seconds=3)))


async def test_a_key_that_cannot_be_read_or_sent_is_told_without_its_text(
    double: Double, tmp_path: Path
) -> None:
    with pytest.raises(GeneratorUnavailable, match="key cannot be read"):
        await written(generator(double, tmp_path / "missing"))
    key = tmp_path / "key"
    key.write_text("clé-secrète-東")
    with pytest.raises(GeneratorUnavailable) as caught:
        await written(generator(double, key))
    assert "secr" not in str(caught.value)


async def test_retry_after_is_passed_on() -> None:
    with serving("openai") as double:
        double.behaviour = Behaviour(status=429, headers={"Retry-After": "17"})
        with pytest.raises(GeneratorUnavailable) as caught:
            await written(generator(double))
    assert caught.value.retry_after == 17


@pytest.mark.parametrize(
    ("form", "kind"), [("extractive", Extractive), ("openai", OpenAI), ("gemini", Gemini)]
)
async def test_settings_name_the_generator(form: str, kind: type) -> None:
    settings = ServiceSettings.model_validate(
        {"generator": form, "generator_url": "http://127.0.0.1:1", "generator_model": "m"}
    )
    made = generators.of(settings)
    assert isinstance(made, kind)
    assert made.name.startswith(form)
    await made.stop()
