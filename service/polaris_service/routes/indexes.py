"""The indexes that this service serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from polaris_service.documents.store import Counts
from polaris_service.gate import Access, Caller
from polaris_service.indexes import ServedIndex
from polaris_service.parts import Parts
from polaris_service.problems import documented

# SubjectAccessReviews that are asked at once for a list.
_ASKED_AT_ONCE = 16


def router(parts: Parts) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["indexes"])

    @routes.get(
        "/v1/indexes",
        summary="List indexes",
        responses={
            200: {"description": "Those that the caller may query."},
            **documented(401, 503),
        },
    )
    async def listing(request: Request) -> Response:
        """Return the indexes that the caller may query."""
        caller = await parts.gate.caller(request)
        found = await _allowed(parts, caller, await parts.indexes.all())
        return _answer({"indexes": [_index(index) for index in found]})

    @routes.get(
        "/v1/indexes/{namespace}/{name}",
        summary="Get an index",
        responses={
            200: {"description": "The index as it serves."},
            **documented(401, 403, 404, 503, 504),
        },
    )
    async def get(request: Request, namespace: str, name: str) -> Response:
        """Return how the index serves, and how much of it is searchable."""
        await parts.gate.admit(request, Access.QUERY, namespace, name)
        index = await parts.indexes.get(namespace, name)
        return _answer({**_index(index), **_counts(await parts.store.counts(index))})

    return routes


async def _allowed(parts: Parts, caller: Caller, indexes: Sequence[ServedIndex]) -> list[ServedIndex]:
    """Return those that the caller may query, asking for as much at once as RBAC can say."""

    async def may(namespace: str, name: str) -> bool:
        return await parts.gate.allowed(caller, Access.QUERY, namespace, name)

    if await may("", ""):
        return list(indexes)
    places = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def limited(namespace: str, name: str) -> bool:
        async with places:
            return await may(namespace, name)

    namespaces = list(dict.fromkeys(index.namespace for index in indexes))
    whole = dict(zip(namespaces, await asyncio.gather(*(limited(n, "") for n in namespaces)), strict=True))
    rest = [index for index in indexes if not whole[index.namespace]]
    answers = await asyncio.gather(*(limited(index.namespace, index.name) for index in rest))
    single = {index.id for index, yes in zip(rest, answers, strict=True) if yes}
    return [index for index in indexes if whole[index.namespace] or index.id in single]


def _index(index: ServedIndex) -> dict[str, Any]:
    embedding = index.embedding
    return {
        "namespace": index.namespace,
        "name": index.name,
        "generation": index.generation,
        "state": index.state,
        "model": embedding.model,
        "revision": embedding.revision,
        "dimension": embedding.dimension,
        "metric": embedding.metric,
        "attributes": {name: kind.value for name, kind in index.attribute_types.items()},
        "recall_percent": None if index.recall is None else round(index.recall * 100, 1),
        "target_recall_percent": index.spec.search.target_recall_percent,
    }


def _counts(counts: Counts) -> dict[str, Any]:
    return {
        "documents": counts.documents,
        "chunks": counts.chunks,
        "pending": counts.pending,
        "failed": counts.failed,
        "sequence": counts.sequence,
        "estimated": counts.estimated,
    }


def _answer(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
