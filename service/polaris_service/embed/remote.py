"""The provider over HTTP: any server that speaks OpenAI's `/v1/embeddings`.

Ours (`polaris embedder`), vLLM, Text Embeddings Inference, Ollama, OpenAI itself. What differs between
them is asked for and not presumed: vectors come as base64 or as numbers, models say their dimension or
not, tokens are counted by the server or estimated.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from polaris.errors import EmbedderRefused, EmbedderUnavailable
from polaris.telemetry import trace_headers
from polaris_service.embed.models import final_texts, known
from polaris_service.embed.provider import (
    Kind,
    OfferedModel,
    Vectors,
    check_texts,
    check_vectors,
)
from polaris_service.said import media_type, summary
from polaris_service.trust import transport

BATCH_TEXTS = 32
BATCH_CHARACTERS = 50_000
"""Limits of one request: about 12,000 tokens, a few seconds of a CPU."""
_MAX_ANSWER_BYTES = 64 * 2**20
_ESTIMATE_SECONDS = 300
"""How long a server is believed that said it counts no tokens."""
_BRIDGED_SECONDS = 2.0
"""How long refused connections are tried again: while a pod is replaced, a Service may lead nowhere."""
_BRIDGED_PAUSE_SECONDS = 0.1
_TRANSIENT = frozenset({408, 425, 429})
_NOT_OFFERED = frozenset({400, 404, 405, 422, 501})
_KEY = re.compile(r"[!-~]+")
_DEFAULT_REVISION = "1"


@dataclass(frozen=True)
class DeclaredModel:
    """A model that the settings say a server embeds with; what is not said is asked."""

    model: str
    revision: str = _DEFAULT_REVISION
    dimension: int | None = None
    max_tokens: int | None = None


class RemoteProvider:
    """A server that embeds. Opens connections when first used; belongs to one event loop."""

    def __init__(  # noqa: PLR0913  what an entry of the settings says
        self,
        url: str,
        *,
        name: str = "default",
        key_file: Path | None = None,
        ca_file: Path | None = None,
        timeout_seconds: float = 30,
        declared: Sequence[DeclaredModel] = (),
    ) -> None:
        """`url` may end in `/v1` or not; `timeout_seconds` is of one request, answer included."""
        self.name = name
        self._root = url.rstrip("/").removesuffix("/v1")
        self._key_file = key_file
        self._ca_file = ca_file
        self._timeout = timeout_seconds
        self._declared = {model.model: model for model in declared}
        self._dimensions: dict[str, int] = {}
        self._estimate_until = 0.0
        self._one_by_one = False
        self._refused_since: float | None = None
        self._client: httpx.AsyncClient | None = None

    async def models(self) -> list[OfferedModel]:
        """Return the declared models; without any, those of `/v1/models` whose dimension is known."""
        if self._declared:
            return [await self._offered(model) for model in self._declared.values()]
        listed = await self._ask("GET", "/v1/models")
        entries = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(entries, list):
            raise self._refused("its /v1/models is no list of models")
        offered = [model for entry in entries if (model := _listed(entry))]
        self._dimensions.update({model.model: model.dimension for model in offered})
        return offered

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one vector a text, in order; see Provider."""
        check_texts(texts)
        expected = self._dimension(model)
        parts = []
        for batch in batches(final_texts(model, texts, kind)):
            part = await self._embed_batch(model, batch, expected)
            # A server that changes its mind amid a call is caught too.
            expected = part.shape[1]
            parts.append(part)
        if not parts:
            return np.empty((0, expected or 0), np.float32)
        return np.concatenate(parts)

    async def count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text as the server counts them; where it does not, `estimate`s."""
        check_texts(texts)
        if time.monotonic() < self._estimate_until:
            return [estimate(text) for text in texts]
        counts: list[int] = []
        try:
            for batch in batches(texts):
                counts += await self._count_batch(model, batch)
        except _NotOffered:
            self._estimate_until = time.monotonic() + _ESTIMATE_SECONDS
            return [estimate(text) for text in texts]
        return counts

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _dimension(self, model: str) -> int | None:
        """Return the dimension that a model's vectors must have; None until somebody has said."""
        declared = self._declared.get(model)
        if declared and declared.dimension:
            return declared.dimension
        if model in self._dimensions:
            return self._dimensions[model]
        about = known(model)
        return about.dimension if about else None

    async def _offered(self, declared: DeclaredModel) -> OfferedModel:
        about = known(declared.model)
        dimension = self._dimension(declared.model)
        if dimension is None:
            dimension = (await self.embed(declared.model, ["dimension"], Kind.RAW)).shape[1]
            self._dimensions[declared.model] = dimension
        limit = declared.max_tokens or (about.max_tokens if about else None)
        return OfferedModel(declared.model, declared.revision, dimension, limit)

    async def _embed_batch(self, model: str, texts: Sequence[str], expected: int | None) -> Vectors:
        body = {"model": model, "input": list(texts), "encoding_format": "base64"}
        answer = await self._ask("POST", "/v1/embeddings", body)
        try:
            vectors = _vectors(answer, len(texts))
            check_vectors(vectors, expected)
        except (EmbedderRefused, ValueError) as error:
            raise self._refused(str(error)) from None
        return vectors

    async def _count_batch(self, model: str, texts: Sequence[str]) -> list[int]:
        if not self._one_by_one:
            try:
                return _counts(await self._tokenize(model, list(texts)), len(texts))
            except _NotOffered:
                self._one_by_one = True  # as vLLM has it
        try:
            return [_counts(await self._tokenize(model, text), 1)[0] for text in texts]
        except _NotOffered:
            self._one_by_one = False
            raise

    async def _tokenize(self, model: str, prompt: list[str] | str) -> Any:
        body = {"model": model, "prompt": prompt, "add_special_tokens": False}
        return await self._ask("POST", "/tokenize", body)

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON of an answer; raise EmbedderUnavailable, EmbedderRefused, _NotOffered."""
        try:
            async with asyncio.timeout(self._timeout):
                status, headers, content = await self._exchange(method, path, body)
        except (TimeoutError, httpx.TimeoutException):
            raise self._unavailable(f"did not answer within {self._timeout:g} s") from None
        except httpx.InvalidURL as error:
            raise self._refused(f"has no valid address: {error}") from None
        except httpx.HTTPError as error:
            raise self._unavailable(f"does not answer: {_words(error)}") from None
        self._check_status(path, body or {}, status, headers, content)
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            raise self._refused(
                f"answered {path} with what is no JSON ({media_type(headers.get('content-type', ''))})"
            ) from None

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[int, httpx.Headers, bytes]:
        content = None if body is None else orjson.dumps(body)
        while True:
            try:
                answer = await self._exchange_again(method, path, content)
            except httpx.ConnectError:
                if not self._bridges():
                    raise
                await asyncio.sleep(_BRIDGED_PAUSE_SECONDS)
            else:
                self._refused_since = None
                return answer

    def _bridges(self) -> bool:
        """Return whether a refused connection is tried again: not where all were refused for a while.

        Nothing was sent, so nothing is done twice; and an absence that lasts is told at once.
        """
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        return now < self._refused_since + _BRIDGED_SECONDS

    async def _exchange_again(
        self, method: str, path: str, content: bytes | None
    ) -> tuple[int, httpx.Headers, bytes]:
        try:
            return await self._send(method, path, content)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # A connection that was kept open and that the server has closed meanwhile: embedding twice
            # does no harm, so once more on another one.
            return await self._send(method, path, content)

    async def _send(self, method: str, path: str, content: bytes | None) -> tuple[int, httpx.Headers, bytes]:
        headers = {"Accept": "application/json", **trace_headers(), **self._authorization()}
        if content is not None:
            headers["Content-Type"] = "application/json"
        url = self._root + path
        async with self._opened().stream(method, url, content=content, headers=headers) as answer:
            received = bytearray()
            async for piece in answer.aiter_bytes():
                received += piece
                if len(received) > _MAX_ANSWER_BYTES:
                    raise self._refused(f"answered {path} with more than {_MAX_ANSWER_BYTES:,} bytes")
            return answer.status_code, answer.headers, bytes(received)

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            # No proxy of the environment and no redirect: documents go to the address of the settings.
            self._client = httpx.AsyncClient(
                timeout=self._timeout, trust_env=False, transport=transport(self._ca_file)
            )
        return self._client

    def _authorization(self) -> dict[str, str]:
        """Return the key's header; the file is read each time, so a rotated key is followed."""
        if self._key_file is None:
            return {}
        try:
            key = self._key_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise self._unavailable(f"needs a key, and its file cannot be read: {error}") from None
        if not _KEY.fullmatch(key):  # httpx would put it into its error
            raise self._unavailable(f"needs a key, and {self._key_file} holds none")
        return {"Authorization": f"Bearer {key}"}

    def _check_status(
        self, path: str, body: Mapping[str, Any], status: int, headers: httpx.Headers, content: bytes
    ) -> None:
        if status == HTTPStatus.OK:
            return
        if path == "/tokenize" and status in _NOT_OFFERED:
            raise _NotOffered
        said = f"answered {path} with {summary(status, content)}"
        if status in _TRANSIENT or status >= 500:
            raise self._unavailable(said, _retry_after(headers.get("retry-after")))
        advice = self._advice(status, body.get("model"))
        raise self._refused(f"{said}: {advice}" if advice else said)

    def _advice(self, status: int, model: Any) -> str:
        """Return what a person can do about a refusal."""
        match status:
            case 401 | 403 if self._key_file is None:
                return "it wants a key, and the settings name no key file"
            case 401 | 403:
                return f"it does not accept the key in {self._key_file}"
            case 404 if model is not None:
                return f"it has no model {model}, or the address is not that of an embeddings API"
            case 400 | 413 | 422:
                return "it does not take what was sent; its own log says why"
        return ""

    def _unavailable(self, what: str, retry_after: float | None = None) -> EmbedderUnavailable:
        return EmbedderUnavailable(f"the embedding provider {self.name} at {self._root} {what}", retry_after)

    def _refused(self, what: str) -> EmbedderRefused:
        return EmbedderRefused(f"the embedding provider {self.name} at {self._root}: {what}")


class _NotOffered(Exception):
    """The server counts no tokens in the way that is asked for."""


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts in order, in batches within the limits of one request."""
    begin = characters = 0
    for end, text in enumerate(texts):
        full = end - begin == BATCH_TEXTS or characters + len(text) > BATCH_CHARACTERS
        if full and end > begin:
            yield texts[begin:end]
            begin, characters = end, 0
        characters += len(text)
    if begin < len(texts):
        yield texts[begin:]


def _listed(entry: Any) -> OfferedModel | None:
    """Return a model of `/v1/models`, where its dimension is said or known.

    `dimension` and `revision` are ours, `max_model_len` vLLM's too.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        return None
    about = known(entry["id"])
    dimension = _positive(entry.get("dimension")) or (about.dimension if about else None)
    if dimension is None:
        return None
    limit = _positive(entry.get("max_model_len")) or (about.max_tokens if about else None)
    revision = entry.get("revision")
    return OfferedModel(
        entry["id"], revision if isinstance(revision, str) else _DEFAULT_REVISION, dimension, limit
    )


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _vectors(answer: Any, count: int) -> Vectors:
    """Return the vectors of an answer in the order of its `index`; raise EmbedderRefused."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise EmbedderRefused("its answer holds no list of embeddings")
    if len(data) != count:
        raise EmbedderRefused(f"it returned {len(data)} embeddings for {count} texts")
    places = [entry.get("index", number) for number, entry in enumerate(data)]
    if not all(type(place) is int for place in places) or sorted(places) != list(range(count)):
        raise EmbedderRefused("its embeddings are numbered otherwise than the texts")
    rows = [_vector(entry.get("embedding")) for entry in data]
    dimensions = {len(row) for row in rows}
    if len(dimensions) != 1:
        raise EmbedderRefused(f"its embeddings have different dimensions: {sorted(dimensions)}")
    vectors = np.empty((count, dimensions.pop()), np.float32)
    for place, row in zip(places, rows, strict=True):
        vectors[place] = row
    return vectors


def _vector(value: Any) -> Any:
    """Return one embedding: base64 of little-endian float32, or numbers."""
    if isinstance(value, str):
        try:
            row = np.frombuffer(base64.b64decode(value, validate=True), "<f4")
        except (binascii.Error, ValueError):
            raise EmbedderRefused("an embedding of its answer is no base64 of float32") from None
    elif isinstance(value, list) and all(type(number) in (int, float) for number in value):
        with np.errstate(over="ignore"):
            row = np.array(value, np.float64).astype(np.float32)
    else:
        raise EmbedderRefused("an embedding of its answer is neither base64 nor a list of numbers")
    if not len(row):
        raise EmbedderRefused("an embedding of its answer is empty")
    return row


def _counts(answer: Any, count: int) -> list[int]:
    """Return the counts of a `/tokenize` answer: ours has `counts`, vLLM's one `count`.

    Others have a route of that name and another shape: they do not offer what is asked for here.
    """
    given = answer if isinstance(answer, dict) else {}
    counts = given.get("counts", [given.get("count")])
    if not isinstance(counts, list) or len(counts) != count:
        raise _NotOffered
    if not all(type(number) is int and number >= 0 for number in counts):
        raise _NotOffered
    return counts


def _words(error: httpx.HTTPError) -> str:
    # Of an answer that could not be read, the message may quote some of it.
    return str(error) if isinstance(error, httpx.ConnectError) and str(error) else type(error).__name__


def _retry_after(header: str | None) -> float | None:
    """Return Retry-After in seconds; it may be a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


# One match a token: up to three letters of the Latin alphabet, two capitals, any other character.
_PIECES = re.compile(r"[A-ZÀ-Þ]?[a-zß-ɏ]{1,3}|[A-ZÀ-Þ]{1,2}|\S")


def estimate(text: str) -> int:
    """Return about how many tokens a text has, rather too many than too few.

    Against multilingual-e5's tokenizer: 1.3 to 1.5 times as many on Portuguese and English prose, 1.1 to
    1.5 on code; a monolingual tokenizer makes more of the other language than that one does.
    """
    return len(_PIECES.findall(text))
