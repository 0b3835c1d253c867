"""Assembly of the query service: parts from settings, an application from parts, a process from both."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path

from fastapi import FastAPI

import polaris
from polaris.certificate import Certificate
from polaris.settings import ServiceSettings
from polaris.telemetry import configure_logging, configure_tracing, logger
from polaris_service import problems
from polaris_service.answer import generators
from polaris_service.answer.answerer import Answerer
from polaris_service.answer.measured import MeasuredGenerator
from polaris_service.database import Database, Purpose, Standby
from polaris_service.direct import Direct
from polaris_service.documents.loading import Loading
from polaris_service.documents.store import Store
from polaris_service.embed.measured import measured
from polaris_service.embed.registry import Embedders
from polaris_service.gate import Gate, Policy
from polaris_service.gate.open import LoopbackOnly, OpenPolicy
from polaris_service.gate.tokens import TokensPolicy
from polaris_service.indexes import Indexes
from polaris_service.metrics import Metrics
from polaris_service.observed import Observed, flush_spans
from polaris_service.parts import Parts
from polaris_service.routes import answer, documents, health, indexes, search
from polaris_service.search.questions import Questions, of_providers
from polaris_service.search.requests import Limits
from polaris_service.search.sample import Sample
from polaris_service.search.searcher import Searcher
from polaris_service.serving import serve

_log = logger(__name__)

_DESCRIPTION = """
Documents in, passages and answers with citations out, of the indexes of one database.

Who may ask is Kubernetes RBAC: send a token for the service's audience as `Authorization: Bearer TOKEN`.
Every error is a problem document (RFC 9457) with a `code` that stays the same.
"""


def build_parts(settings: ServiceSettings, embedders: Embedders | None = None) -> Parts:
    """Make the parts that the settings ask for, but for those that are given; nothing is opened yet."""
    metrics = Metrics()
    standby = Standby(settings.read_host, settings.read_port) if settings.read_host else None
    # Where an index is served, for `status.queryURL`: by who takes documents too.
    query_url = None if standby else settings.query_url or None
    database = Database(
        Path(settings.database_secret),
        Purpose("query", query_url, standby),
        metrics,
        size=settings.pool_size,
        statement_seconds=settings.request_timeout_seconds,
    )
    catalog = Indexes(database)
    embedders = measured(embedders or Embedders.of(settings), metrics.registry)
    generator = MeasuredGenerator(generators.of(settings), metrics.registry)
    # A standby takes no rows.
    sample = Sample(database) if settings.sample_questions and standby is None else None
    searcher = Searcher(database, catalog, Questions(of_providers(embedders)), Limits.of(settings), sample)
    return Parts(
        settings=settings,
        metrics=metrics,
        database=database,
        indexes=catalog,
        gate=Gate(_policy(settings)),
        embedders=embedders,
        store=Store(database),
        loading=Loading(database, catalog),
        searcher=searcher,
        sample=sample,
        answerer=Answerer(searcher, database, generator, settings.generator_timeout_seconds),
        certificate=Certificate.of(settings, metrics.registry),
    )


def _policy(settings: ServiceSettings) -> Policy:
    if settings.auth == "none":
        return OpenPolicy()
    if settings.auth == "tokens":
        return TokensPolicy(Path(settings.tokens_file))
    # Imported here: life without a cluster need not carry its client.
    from polaris_service.gate.kubernetes_api import KubernetesPolicy  # noqa: PLC0415

    audiences = [audience.strip() for audience in settings.audiences.split(",") if audience.strip()]
    return KubernetesPolicy(audiences, settings.auth_cache_seconds)


def create_app(parts: Parts) -> FastAPI:
    """Return the application. Its lifespan starts the parts, and stops them in the other order."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(flush_spans)
            for part in (parts.embedders, parts.gate, parts.database, parts.answerer, parts.sample):
                if part is not None:
                    await part.start()
                    stack.push_async_callback(part.stop)
            for ended in (parts.store, parts.loading):
                stack.push_async_callback(ended.stop)
            yield

    app = FastAPI(
        title="POLARIS",
        version=polaris.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # FastAPI's own spans hold paths, and so the ids of documents; `Observed` makes ours without.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    problems.install(app)
    asked_most = (search.router(parts), answer.router(parts))
    others = (documents.router(parts), indexes.router(parts), health.router(parts))
    for router in (*asked_most, *others):
        app.include_router(router)
    direct = Direct(app.build_middleware_stack(), chain.from_iterable(r.routes for r in asked_most))
    admitted = LoopbackOnly(direct) if parts.settings.auth == "none" else direct
    # Around all that FastAPI builds, so that `Observed` sees what any part answers.
    app.middleware_stack = Observed(admitted, parts.metrics)
    return app


def run(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT; what is in flight is finished first."""
    configure_logging(settings.log_level, straight=True)
    configure_tracing("polaris-service")
    parts = build_parts(settings)
    serve(create_app(parts), settings.host, settings.port, certificate=parts.certificate)
