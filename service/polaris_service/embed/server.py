"""The embedding server: OpenAI's `/v1/embeddings` around any provider.

It embeds what it is sent: prefixes are the caller's (`models.final_texts`). Concurrent requests share
batches in the provider (`batching`), so a question does not wait behind a bulk load.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import Counter
from starlette.requests import ClientDisconnect

import polaris
from polaris.certificate import Certificate
from polaris.errors import EmbedderUnavailable, InvalidInput, NotFound, PolarisError, TooLarge
from polaris.telemetry import logger
from polaris_service import problems
from polaris_service.bodies import read_json
from polaris_service.embed.provider import Kind, OfferedModel, Provider, Vectors
from polaris_service.metrics import HttpMetrics
from polaris_service.observed import Observed
from polaris_service.problems import Kind as ProblemKind
from polaris_service.problems import problem_response

MAX_INPUTS = 2048
MAX_BODY_BYTES = 32 * 2**20
_RETRY_SECONDS = 1.0
_MAX_MODEL_NAME = 256

_log = logger(__name__)


def create_app(
    provider: Provider,
    metrics: HttpMetrics | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    certificate: Certificate | None = None,
) -> FastAPI:
    """Return the application. It warms the provider up when it starts, and closes it when it stops."""
    metrics = metrics or HttpMetrics()
    server = _Server(provider, metrics, max_body_bytes, certificate)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(server.warm_up())
        try:
            yield
        finally:
            warming.cancel()
            await asyncio.gather(warming, return_exceptions=True)
            await provider.close()

    app = FastAPI(
        title="POLARIS embedder",
        version=polaris.__version__,
        description="Text to vectors, in the shape of OpenAI's API. Errors are problem documents (RFC 9457).",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # `Observed` makes the spans, of the trace that service and worker hand over.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    # What is a part that fails to the service is ourselves to our callers.
    problems.install(app, {EmbedderUnavailable: ProblemKind(503, "overloaded", "Overloaded")})
    server.add_routes(app)
    app.middleware_stack = Observed(app.build_middleware_stack(), metrics)
    return app


class _Server:
    """The routes' common ground."""

    def __init__(
        self,
        provider: Provider,
        metrics: HttpMetrics,
        max_body_bytes: int,
        certificate: Certificate | None,
    ) -> None:
        self._provider = provider
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._certificate = certificate
        self._not_ready: str | None = "the model is being loaded"
        labels = ("model",)
        registry = metrics.registry
        self._texts = Counter("polaris_embedded_texts", "Texts embedded.", labels, registry=registry)
        self._tokens = Counter(
            "polaris_embedded_tokens", "Tokens of embedded texts.", labels, registry=registry
        )

    async def warm_up(self) -> None:
        """Embed a word with each model, again until it works: then the server is ready."""
        while reason := await self._why_not_ready():
            self._not_ready = reason
            _log.warning("not ready", reason=reason)
            await asyncio.sleep(_RETRY_SECONDS)
        self._not_ready = None
        _log.info("ready")

    async def _why_not_ready(self) -> str | None:
        try:
            for offered in await self._provider.models():
                await self._provider.embed(offered.model, ["ready"], Kind.RAW)
        except PolarisError as error:
            return str(error)
        except Exception:  # noqa: BLE001  (a task that died would leave no trace of why)
            _log.exception("the model fails")
            return "the model fails in a way that nobody foresaw; the log says how"
        return None

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes."""
        refusals = problems.documented(400, 404, 413, 415, 422, 503)

        def post(path: str, schema: dict[str, Any], summary: str) -> Any:
            content = {"application/json": {"schema": schema}}
            extra = {"requestBody": {"required": True, "content": content}}
            return app.post(path, summary=summary, responses=refusals, openapi_extra=extra)

        post("/v1/embeddings", _EMBEDDINGS_SCHEMA, "Vectors of texts")(self.embeddings)
        post("/tokenize", _TOKENIZE_SCHEMA, "How many tokens texts have")(self.tokenize)
        app.get("/v1/models", summary="The models that are served")(self.models)
        app.get("/livez", summary="The process is alive")(self.livez)
        app.get("/readyz", summary="The model is loaded")(self.readyz)
        app.get("/metrics", summary="Metrics in Prometheus' format")(self.exposition)

    async def embeddings(self, request: Request) -> Response:
        body = _object(await read_json(request, self._max_body_bytes))
        texts = _texts(body.get("input"), "input")
        as_base64 = _encoding(body)
        offered = await self._offered(body)
        _check_dimensions(body, offered)
        # A caller that timed out asks again: what it no longer waits for must not take its place.
        vectors = await _while_connected(request, self._provider.embed(offered.model, texts, Kind.RAW))
        tokens = sum(await self._counts(offered, texts))
        self._texts.labels(offered.model).inc(len(texts))
        self._tokens.labels(offered.model).inc(tokens)
        return _json(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": number, "embedding": embedding}
                    for number, embedding in enumerate(_encoded(vectors, as_base64))
                ],
                "model": offered.model,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    async def tokenize(self, request: Request) -> Response:
        """Answer in vLLM's shape; a list of prompts is our addition, and so is `counts`."""
        body = _object(await read_json(request, self._max_body_bytes))
        texts = _texts(body.get("prompt"), "prompt")
        offered = await self._offered(body)
        counts = await self._provider.count_tokens(offered.model, texts)
        return _json({"count": sum(counts), "counts": counts, "max_model_len": offered.max_tokens})

    async def models(self) -> Response:
        return _json(
            {
                "object": "list",
                "data": [
                    {
                        "id": offered.model,
                        "object": "model",
                        "created": 0,
                        "owned_by": "polaris",
                        "revision": offered.revision,
                        "dimension": offered.dimension,
                        "max_model_len": offered.max_tokens,
                    }
                    for offered in await self._provider.models()
                ],
            }
        )

    async def livez(self) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def readyz(self) -> Response:
        if self._not_ready:
            retry = {"Retry-After": "1"}
            return problem_response(503, "not-ready", "Not ready", self._not_ready, headers=retry)
        note = self._certificate.problem if self._certificate else None
        return Response(f"{note or 'ok'}\n", media_type="text/plain")

    async def exposition(self, request: Request) -> Response:
        content, headers = self._metrics.exposition(request.headers.get("accept"))
        return Response(content, headers=headers)

    async def _offered(self, body: dict[str, Any]) -> OfferedModel:
        wanted = body.get("model")
        if not isinstance(wanted, str) or not 0 < len(wanted) <= _MAX_MODEL_NAME:
            raise InvalidInput(f"must name a model, in at most {_MAX_MODEL_NAME} characters", "/model")
        offered = await self._provider.models()
        for model in offered:
            if model.model == wanted:
                return model
        there = ", ".join(model.model for model in offered) or "none"
        raise NotFound(f"there is no model {wanted} here; there is {there}")

    async def _counts(self, offered: OfferedModel, texts: list[str]) -> list[int]:
        """Return how many tokens of each text were read."""
        counts = await self._provider.count_tokens(offered.model, texts)
        limit = offered.max_tokens
        return counts if limit is None else [min(count, limit) for count in counts]


async def _while_connected(request: Request, work: Coroutine[Any, Any, Vectors]) -> Vectors:
    """Return what the work returns; cancel it, and raise ClientDisconnect, when the caller leaves."""
    working = asyncio.ensure_future(work)
    # With the body read, the next message is that of the end.
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object", "")
    return body


def _texts(value: Any, field: str) -> list[str]:
    """Return the texts of a field that takes one or a list of them."""
    if isinstance(value, str):
        return [value]
    pointer = f"/{field}"
    if not isinstance(value, list) or not value:
        raise InvalidInput("must be a text, or a list of texts that is not empty", pointer)
    if len(value) > MAX_INPUTS:
        raise TooLarge(f"has {len(value):,} texts, the limit is {MAX_INPUTS:,}", pointer)
    for number, text in enumerate(value):
        if isinstance(text, int | list):
            raise InvalidInput("is of tokens; send the text itself", f"{pointer}/{number}")
        if not isinstance(text, str):
            raise InvalidInput("is no text", f"{pointer}/{number}")
    return value


def _encoding(body: dict[str, Any]) -> bool:
    """Return True for base64, False for numbers."""
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise InvalidInput("must be float or base64", "/encoding_format")
    return bool(encoding == "base64")


def _check_dimensions(body: dict[str, Any], offered: OfferedModel) -> None:
    dimensions = body.get("dimensions")
    if dimensions is not None and dimensions != offered.dimension:
        raise InvalidInput(f"{offered.model} has {offered.dimension} dimensions", "/dimensions")


def _encoded(vectors: Vectors, as_base64: bool) -> list[Any]:
    if not as_base64:
        return list(vectors)
    return [base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") for row in vectors]


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


_TEXTS_SCHEMA = {
    "oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_INPUTS},
    ]
}
_EMBEDDINGS_SCHEMA = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {
        "model": {"type": "string"},
        "input": _TEXTS_SCHEMA,
        "encoding_format": {"enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "description": "The model's own, or nothing."},
    },
}
_TOKENIZE_SCHEMA = {
    "type": "object",
    "required": ["model", "prompt"],
    "properties": {"model": {"type": "string"}, "prompt": _TEXTS_SCHEMA},
}
