"""Answering questions from an index, at once or as it is written.

With `stream`, the response is Server-Sent Events, in this order: any number of `delta` (`{"text"}`), then
a `citation` for each citation, then one `answer`, which is the same object as without `stream` and
decides. Where the search or the generator fails before anything was written, the response is a problem
document with its status; after that, an `error` event with the problem ends the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from polaris.errors import PolarisError
from polaris_service.answer.answerer import Delta, Event, citation_document, parse
from polaris_service.bodies import read_json
from polaris_service.gate import Access
from polaris_service.parts import Parts
from polaris_service.problems import documented, kind_of, problem
from polaris_service.routes import schemas

T = TypeVar("T")

# Proxies must not hold back, nor anybody keep, what is written for one reader.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def router(parts: Parts) -> APIRouter:
    """Return POST /v1/indexes/{namespace}/{name}/answer."""
    routes = APIRouter(tags=["answer"])
    answered = schemas.json_response("The answer with its citations.", schemas.ANSWERED)
    answered["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[int | str, dict[str, Any]] = {
        200: answered,
        **documented(400, 401, 403, 404, 413, 415, 422, 424, 503, 504),
    }

    @routes.post(
        "/v1/indexes/{namespace}/{name}/answer",
        summary="Answer a question from an index",
        openapi_extra=schemas.json_request(schemas.answer(parts.answerer.limits)),
        responses=responses,
    )
    async def answer(request: Request, namespace: str, name: str) -> Response:
        """Answer with citations, each checked against the stored text before it leaves.

        `stream` gives Server-Sent Events: `delta`…, `citation`…, and `answer` last; or `error`.
        Needs the verb `get` on `polarisindexes/query`.
        """
        await parts.gate.admit(request, Access.QUERY, namespace, name)
        body = await read_json(request, parts.settings.max_body_bytes)
        wanted = parse(body, parts.answerer.limits)
        index = await parts.indexes.get(namespace, name)
        if not wanted.stream:
            result = await _while_connected(request, parts.answerer.answer(index, wanted))
            return Response(result.body(), media_type="application/json")
        events = parts.answerer.events(index, wanted)
        first = await _while_connected(request, anext(events))
        return StreamingResponse(_sse(first, events), headers=_HEADERS, media_type="text/event-stream")

    return routes


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Return what the work returns; end it when the client leaves: nobody would read it."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _sse(first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """Yield events as text; a failure is the last event."""
    async with aclosing(events):
        try:
            for line in _event(first):
                yield line
            async for event in events:
                for line in _event(event):
                    yield line
        except PolarisError as error:
            yield _message("error", problem(*kind_of(error), detail=str(error)))


def _event(event: Event) -> list[bytes]:
    if isinstance(event, Delta):
        return [_message("delta", {"text": event.text})]
    citations = [_message("citation", citation_document(citation)) for citation in event.citations]
    return [*citations, _message("answer", event.document())]


def _message(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"
