"""What writes answers: a service over HTTP that streams, or `extractive`, which needs none.

Two forms are spoken: OpenAI's `chat/completions` (vLLM, Ollama, llama.cpp and most others too) and
Gemini's `streamGenerateContent`. Whatever a service does, a stream ends: in text, in GeneratorUnavailable
(no answer, overload, a connection that breaks) or in GeneratorRefused (it said no, or what is not
its own form). Of its errors, what may be repeated is in `polaris_service.said`: free text may quote the
passages, the question or the key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import httpx
import orjson

from polaris.errors import GeneratorRefused, GeneratorUnavailable
from polaris.settings import ServiceSettings
from polaris.telemetry import trace_headers
from polaris_service.answer.extractive import Extractive
from polaris_service.answer.prompt import Prompt
from polaris_service.said import code, codes, media_type, summary
from polaris_service.trust import transport

TRUNCATED = "answer-truncated"
"""In `degraded`: the generator ended at its limit of tokens."""
_MAX_TOKENS = 1024
_CONNECT_SECONDS = 5.0
_LONGEST_LINE = 2**20
_LONGEST_ERROR = 2**14
_UNNAMED = "its own log says why"


class Generator(Protocol):
    """Writes an answer to a prompt."""

    @property
    def name(self) -> str:
        """What the answer says it was written by."""
        ...

    def stream(self, prompt: Prompt, notes: list[str]) -> AsyncGenerator[str, None]:
        """Yield the text in pieces; add to `notes` what the answer must say in `degraded`.

        Raises GeneratorUnavailable and GeneratorRefused. Closing the iterator ends the request.
        """
        ...

    async def stop(self) -> None:
        """Close connections."""
        ...


def of(settings: ServiceSettings) -> Generator:
    """Return the generator that the settings name; nothing is opened yet."""
    if settings.generator == "extractive":
        return Extractive()
    made = OpenAI if settings.generator == "openai" else Gemini
    return made(
        Remote(
            settings.generator_url,
            settings.generator_model,
            Path(settings.generator_key_file) if settings.generator_key_file else None,
            settings.generator_timeout_seconds,
            Path(settings.generator_ca_file) if settings.generator_ca_file else None,
        )
    )


@dataclass(frozen=True)
class Remote:
    """Where a generator is, and how to ask it."""

    url: str
    """Base address; without a path, the usual one of its form is taken."""
    model: str
    key_file: Path | None = None
    """Read at each use, so that a new key needs no restart."""
    seconds: float = 60.0
    """Longest silence."""
    ca_file: Path | None = None
    """Authorities that are believed about its certificate; followed. None: the public ones."""


class OpenAI:
    """OpenAI's streaming form: `POST {url}/chat/completions` with `stream: true`."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._url = _base(remote.url, "/v1") + "/chat/completions"
        self._client = _client(remote)
        self._refused: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """`openai/MODEL`."""
        return f"openai/{self._remote.model}"

    async def stop(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def stream(self, prompt: Prompt, notes: list[str]) -> AsyncGenerator[str, None]:
        """Yield the text in pieces."""
        while True:
            try:
                async with aclosing(self._stream(prompt, notes)) as pieces:
                    async for piece in pieces:
                        yield piece
            except _ParameterRefused as refused:
                self._refused |= {refused.parameter}
            else:
                return

    async def _stream(self, prompt: Prompt, notes: list[str]) -> AsyncGenerator[str, None]:
        options = {
            name: value
            for name, value in (("temperature", 0), ("max_tokens", _MAX_TOKENS))
            if name not in self._refused
        }
        body = {
            "model": self._remote.model,
            "stream": True,
            "messages": [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": prompt.user},
            ],
            **options,
        }
        key = await _key(self._remote.key_file)
        headers = {"Authorization": f"Bearer {key}"} if key else {}

        def refusal(status: int, told: Mapping[str, Any]) -> Exception | None:
            parameter = told.get("param")
            return _ParameterRefused(str(parameter)) if status == 400 and parameter in options else None

        finished = False
        async with aclosing(_events(self._client, self._url, headers, body, refusal)) as events:
            async for event in events:
                if event == b"[DONE]":
                    finished = True
                    break
                text, reason = _of_openai(_json(event))
                finished = finished or reason is not None
                if reason == "length":
                    notes.append(TRUNCATED)
                if text:
                    yield text
        _check_finished(finished)


class _ParameterRefused(Exception):
    """The model does not take an optional parameter: the request is tried again without it."""

    def __init__(self, parameter: str) -> None:
        super().__init__(parameter)
        self.parameter = parameter


def _of_openai(event: dict[str, Any]) -> tuple[str, str | None]:
    """Return the text of a chunk, and why it is the last one."""
    if event.get("error"):
        raise _ended(event)
    choices = event.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise _rubbish("a chunk without choices")
    if not choices:
        return "", None  # The figures of its use.
    delta = choices[0].get("delta") or {}
    text = delta.get("content") if isinstance(delta, dict) else None
    reason = choices[0].get("finish_reason")
    if reason == "content_filter":
        raise GeneratorRefused("the generator's filter stopped the answer")
    return _text(text), reason


class Gemini:
    """Gemini's own form: `POST {url}/models/{model}:streamGenerateContent?alt=sse`."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        model = quote(remote.model.removeprefix("models/"), safe="")
        self._url = f"{_base(remote.url, '/v1beta')}/models/{model}:streamGenerateContent?alt=sse"
        self._client = _client(remote)

    @property
    def name(self) -> str:
        """`gemini/MODEL`."""
        return f"gemini/{self._remote.model}"

    async def stop(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def stream(self, prompt: Prompt, notes: list[str]) -> AsyncGenerator[str, None]:
        """Yield the text in pieces."""
        body = {
            "systemInstruction": {"parts": [{"text": prompt.system}]},
            "contents": [{"role": "user", "parts": [{"text": prompt.user}]}],
            "generationConfig": {"temperature": 0, "maxOutputTokens": _MAX_TOKENS},
        }
        key = await _key(self._remote.key_file)
        headers = {"x-goog-api-key": key} if key else {}
        finished = False
        async with aclosing(_events(self._client, self._url, headers, body)) as events:
            async for event in events:
                text, reason = _of_gemini(_json(event))
                finished = finished or reason is not None
                if reason == "MAX_TOKENS":
                    notes.append(TRUNCATED)
                if text:
                    yield text
        _check_finished(finished)


def _of_gemini(event: dict[str, Any]) -> tuple[str, str | None]:
    """Return the text of a chunk, and why it is the last one."""
    if event.get("error"):
        raise _ended(event)
    feedback = event.get("promptFeedback")
    blocked = feedback.get("blockReason") if isinstance(feedback, dict) else None
    if blocked:
        raise GeneratorRefused(f"the generator blocked the prompt: {code(blocked) or _UNNAMED}")
    candidates = event.get("candidates") or []
    if not isinstance(candidates, list) or not all(isinstance(c, dict) for c in candidates):
        raise _rubbish("a chunk whose candidates are no list of objects")
    if not candidates:
        return "", None
    reason = candidates[0].get("finishReason")
    if reason not in (None, "STOP", "MAX_TOKENS"):
        raise GeneratorRefused(f"the generator stopped the answer: {code(reason) or _UNNAMED}")
    content = candidates[0].get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    parts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    # A thought is not part of the answer.
    return "".join(_text(part.get("text")) for part in parts if not part.get("thought")), reason


# --- what both share -----------------------------------------------------------------------------


def _base(url: str, usual_path: str) -> str:
    """Return the base address without a slash at its end."""
    stripped = url.rstrip("/")
    return stripped if urlsplit(stripped).path else stripped + usual_path


def _client(remote: Remote) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        timeout=httpx.Timeout(remote.seconds, connect=min(_CONNECT_SECONDS, remote.seconds)),
        headers={"Accept": "text/event-stream", "Accept-Encoding": "identity"},
        transport=transport(remote.ca_file),
        follow_redirects=False,  # A redirect would carry the passages elsewhere.
    )


async def _key(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return (await asyncio.to_thread(file.read_text, encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError):
        raise GeneratorUnavailable("the file with the generator's key cannot be read") from None


async def _events(
    client: httpx.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    refusal: Callable[[int, Mapping[str, Any]], Exception | None] = lambda _, __: None,
) -> AsyncGenerator[bytes, None]:
    """Yield the data of each server-sent event.

    `refusal` may return an error of its own for a status and the error object that came with it.
    """
    asked = orjson.dumps(body)
    sent = {**headers, **trace_headers(), "Content-Type": "application/json"}
    try:
        async with client.stream("POST", url, content=asked, headers=sent) as response:
            if response.status_code != 200:
                content = await _head(response)
                raise refusal(response.status_code, _told(content)) or _failure(response, content)
            kind = media_type(response.headers.get("content-type", ""))
            if kind != "text/event-stream":
                raise _rubbish(f"no stream of events ({kind})")
            async with aclosing(_lines(response)) as lines:
                async for line in lines:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()
    except httpx.TimeoutException:
        raise GeneratorUnavailable("the generator did not answer in time") from None
    except httpx.HTTPError as error:
        # Of an answer that could not be read, the message may quote some of it.
        why = str(error) if isinstance(error, httpx.ConnectError) and str(error) else type(error).__name__
        raise GeneratorUnavailable(f"the generator is not reachable: {why}") from None
    except (httpx.InvalidURL, UnicodeError):
        raise GeneratorUnavailable("the generator's address or key cannot be used") from None


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
        if len(rest) > _LONGEST_LINE:
            raise _rubbish(f"a line of more than {_LONGEST_LINE} bytes")
    yield rest


async def _head(response: httpx.Response) -> bytes:
    raw = bytearray()
    async for piece in response.aiter_bytes():
        raw += piece
        if len(raw) > _LONGEST_ERROR:
            break
    return bytes(raw)


def _told(content: bytes) -> dict[str, Any]:
    """Return the error object of a refusal; empty where there is none."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def _failure(response: httpx.Response, content: bytes) -> Exception:
    status = response.status_code
    message = f"the generator answered {summary(status, content)}"
    if status in (408, 409, 425, 429) or status >= 500:
        after = response.headers.get("retry-after", "")
        return GeneratorUnavailable(message, float(after) if after.isdecimal() else None)
    advice = _advice(status)
    return GeneratorRefused(f"{message}: {advice}" if advice else message)


def _advice(status: int) -> str:
    """Return what a person can do about a refusal."""
    match status:
        case 401 | 403:
            return "it does not accept the key of the settings, or wants one"
        case 404:
            return "it has no model of the settings' name, or the address is not that of its API"
        case 400 | 413 | 422:
            return "it does not take what was sent; its own log says why"
    return ""


def _ended(event: Mapping[str, Any]) -> GeneratorRefused:
    names = ", ".join(codes(event)) or _UNNAMED
    return GeneratorRefused(f"the generator ended with an error: {names}")


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _rubbish("an event that is not JSON") from None
    if not isinstance(value, dict):
        raise _rubbish("an event that is no object")
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _rubbish("text that is no string")
    return value.replace("\x00", "")


def _rubbish(what: str) -> GeneratorRefused:
    return GeneratorRefused(f"the generator sent {what}")


def _check_finished(finished: bool) -> None:
    if not finished:
        raise GeneratorUnavailable("the generator's answer broke off")
