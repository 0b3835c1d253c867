"""Is it alive, is it ready, what does it measure."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from polaris_service.parts import Parts


def router(parts: Parts) -> APIRouter:
    """Return /livez, /readyz and /metrics. Nobody is asked who they are: they tell nothing of documents."""
    routes = APIRouter(tags=["health"])

    @routes.get("/livez", summary="The process is alive")
    async def livez() -> Response:
        return Response("ok\n", media_type="text/plain")

    @routes.get("/readyz", summary="The process takes requests")
    async def readyz() -> Response:
        """200 with what is wrong: with the database, with the certificate that is served.

        It stays 200 while the database is away: a service that is taken out of its Service could tell
        nobody why (503 with a reason), and would come back later than it could. A catalog of another
        level is another matter: there a release stops, and pods of the version before it go on.
        """
        note = parts.certificate.problem if parts.certificate else None
        problems = [str(problem) for problem in (parts.database.problem, note) if problem]
        status = 200 if parts.database.suited else 503
        return Response(f"{'; '.join(problems) or 'ok'}\n", status, media_type="text/plain")

    @routes.get("/metrics", summary="Metrics in Prometheus' format")
    async def metrics(request: Request) -> Response:
        content, headers = parts.metrics.exposition(request.headers.get("accept"))
        return Response(content, headers=headers)

    return routes
