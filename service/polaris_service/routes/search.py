"""Searching an index."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from polaris_service.bodies import read_json
from polaris_service.gate import Access
from polaris_service.parts import Parts
from polaris_service.problems import documented
from polaris_service.routes import schemas
from polaris_service.search.requests import parse


def router(parts: Parts) -> APIRouter:
    """Return POST /v1/indexes/{namespace}/{name}/search."""
    routes = APIRouter(tags=["search"])
    responses: dict[int | str, dict[str, Any]] = {
        200: schemas.json_response("The nearest chunks, best first: min(k, matches) of them.", schemas.FOUND),
        **documented(400, 401, 403, 404, 409, 413, 415, 422, 424, 503, 504),
    }

    @routes.post(
        "/v1/indexes/{namespace}/{name}/search",
        summary="Search an index",
        openapi_extra=schemas.json_request(schemas.search(parts.searcher.limits)),
        responses=responses,
    )
    async def search(request: Request, namespace: str, name: str) -> Response:
        """Find the chunks nearest to a question, or to a vector.

        Scores are higher for what is nearer: cosine similarity, the distance with its sign changed
        for l2, the inner product for ip. Needs the verb `get` on `polarisindexes/query`.
        """
        await parts.gate.admit(request, Access.QUERY, namespace, name)
        body = await read_json(request, parts.settings.max_body_bytes)
        wanted = parse(body, parts.searcher.limits)
        index = await parts.indexes.get(namespace, name)
        result = await parts.searcher.search(index, wanted)
        return Response(result.body(), media_type="application/json")

    return routes
