"""The worker's process: lanes that bring every generation of every index level, fairly.

Two lanes work at a time, so that one cuts and writes while the other embeds: the embedder is the
bottleneck and never waits. They take the generation that waits the longest; several workers share the
work by row locks, and need not know of each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Counter, Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from polaris.errors import PolarisError, Unavailable
from polaris.names import CATALOG_CHANNEL, TRACE_CHANNEL, WORK_CHANNEL
from polaris.settings import WorkerSettings
from polaris.spec import Embedding
from polaris.telemetry import configure_logging, configure_tracing, logger
from polaris_service.database import SWEEP_SECONDS, Database, Purpose
from polaris_service.documents.behind import BACKLOG_DOCUMENTS, Level, Outcome, WorkLimits
from polaris_service.documents.traces import Traces
from polaris_service.embed.measured import measured
from polaris_service.embed.provider import OfferedModel, Provider
from polaris_service.embed.registry import Embedders
from polaris_service.indexes import ServedIndex, all_generations
from polaris_service.metrics import Metrics
from polaris_service.observed import flush_spans
from polaris_service.serving import serve

_log = logger(__name__)

LANES = 2
_GRACE_SECONDS = 25.0
# Levels are looked up anew so often; NOTIFY makes it at once.
_REFRESH_SECONDS = 5.0
REPORT_MODELS_SECONDS = 30.0
_REPORT_AGAIN_SECONDS = 2.0
# About as often as Prometheus asks. Only what is behind costs a statement.
_MEASURE_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 30.0
# A look at an idle generation costs 0.3 ms: with many, looks are spread so that they stay below 5 %.
_LOOK_SECONDS = 0.006

_REPORT_MODELS = """
INSERT INTO polaris.models (provider, model, revision, reporter, dimension, max_tokens, reported_at)
SELECT $1, g.model, g.revision, $2, g.dimension, g.max_tokens, now()
FROM unnest($3::text[], $4::text[], $5::integer[], $6::integer[])
  AS g(model, revision, dimension, max_tokens)
ON CONFLICT (provider, model, revision, reporter) DO UPDATE SET dimension = excluded.dimension,
  max_tokens = excluded.max_tokens, reported_at = excluded.reported_at
"""
_FORGET_MODELS = """
DELETE FROM polaris.models WHERE (provider = $1 AND reporter = $2 AND model <> ALL ($3::text[]))
  OR reported_at < now() - make_interval(secs => $4)
"""
_LEAVE = "DELETE FROM polaris.models WHERE reporter = $1"


@dataclass(frozen=True)
class WorkerMetrics:
    """What a worker measures besides."""

    applied: Counter
    chunks: Counter
    embedded: Counter
    failed: Counter
    given_up: Counter
    behind: Gauge
    documents: Gauge
    age: Gauge

    @classmethod
    def of(cls, metrics: Metrics) -> WorkerMetrics:
        """Make them in the process's registry."""
        labels, registry = ("namespace", "name"), metrics.registry
        return cls(
            Counter("polaris_documents_applied", "Documents made searchable.", labels, registry=registry),
            Counter("polaris_chunks_written", "Chunks written.", labels, registry=registry),
            Counter("polaris_chunks_embedded", "Chunks embedded anew.", labels, registry=registry),
            Counter(
                "polaris_documents_failed", "Tries of a document that failed.", labels, registry=registry
            ),
            Counter(
                "polaris_documents_given_up",
                "Documents that are not tried again until they change.",
                labels,
                registry=registry,
            ),
            Gauge(
                "polaris_sequences_behind",
                "Sequences from the last settled one to the clock.",
                labels,
                registry=registry,
            ),
            Gauge(
                "polaris_documents_behind",
                f"Documents that wait to be made searchable; {BACKLOG_DOCUMENTS} stands for more too.",
                labels,
                registry=registry,
            ),
            Gauge(
                "polaris_oldest_behind_seconds",
                "Age of the oldest change that waits to be made searchable; 0 where none waits.",
                labels,
                registry=registry,
            ),
        )

    def forget(self, namespace: str, name: str) -> None:
        """Say no more how far behind an index is that is gone."""
        for gauge in (self.behind, self.documents, self.age):
            with contextlib.suppress(KeyError):
                gauge.remove(namespace, name)


@dataclass
class _Turn:
    """A generation, and when it is looked at next."""

    level: Level
    serves: bool = True
    """Whether queries are answered from it: others take what is left of our time."""
    due: float = 0.0
    served: float = float("-inf")
    """When a lane took it last: who waits the longest is next."""
    lanes: int = 0
    woken: bool = False
    """There was a NOTIFY while a lane was at it."""
    troubles: int = 0
    """Steps in a row that met a part that does not answer."""


class Worker:
    """Lanes over all generations, and the reports to the operator."""

    def __init__(
        self, database: Database, embedders: Embedders, settings: WorkerSettings, metrics: Metrics
    ) -> None:
        self._database = database
        self._embedders = embedders
        self._poll = settings.poll_seconds
        self._limits = WorkLimits(settings.batch_chunks, settings.max_tries, settings.bulk_documents)
        self._backfill = settings.backfill_percent / 100
        self._metrics = WorkerMetrics.of(metrics)
        self._turns: dict[tuple[int, int], _Turn] = {}
        self._offered: dict[str, list[OfferedModel]] = {}
        self._told: set[str] = set()
        self._wake = asyncio.Event()
        self._refresh_now = asyncio.Event()
        self._stopping = False
        self._lanes: set[asyncio.Task[None]] = set()
        self._others: set[asyncio.Task[None]] = set()
        database.listen(WORK_CHANNEL, self._heard_work)
        database.listen(CATALOG_CHANNEL, self._heard_catalog)
        self._traces = Traces()
        database.listen(TRACE_CHANNEL, self._traces.heard)

    # --- life ---

    async def start(self) -> None:
        """Begin."""
        others = (self._follow(), self._report_models(), self._measure())
        self._others = {asyncio.create_task(work) for work in others}
        self._lanes = {asyncio.create_task(self._lane()) for _ in range(LANES)}

    async def stop(self) -> None:
        """Finish the batches that are in work, and end."""
        self._stopping = True
        self._wake.set()
        if self._lanes:
            await asyncio.wait(self._lanes, timeout=_GRACE_SECONDS)
        for task in (*self._lanes, *self._others):
            task.cancel()
        await asyncio.gather(*self._lanes, *self._others, return_exceptions=True)
        with contextlib.suppress(PolarisError, TimeoutError):
            async with asyncio.timeout(2), self._database.connection("report") as connection:
                await connection.execute(_LEAVE, self._database.consumer)

    @property
    def alive(self) -> bool:
        """Whether everything that should run does."""
        return bool(self._lanes) and not any(task.done() for task in (*self._lanes, *self._others))

    def _heard_work(self, payload: str | None) -> None:
        for (index, _), turn in self._turns.items():
            if payload is None or payload == str(index):
                turn.due, turn.woken = 0.0, True
        self._wake.set()

    def _heard_catalog(self, _: str | None) -> None:
        self._refresh_now.set()

    # --- which generations there are ---

    async def _follow(self) -> None:
        while True:
            try:
                await self._refresh()
            except PolarisError as error:
                _log.debug("catalog not read", why=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_SECONDS):
                    await self._refresh_now.wait()
            self._refresh_now.clear()
            await asyncio.sleep(0.05)  # One look for several words at once.

    async def _refresh(self) -> None:
        async with self._database.connection("catalog") as connection:
            found = await all_generations(connection)
        turns: dict[tuple[int, int], _Turn] = {}
        family = defaultdict(list)
        for index in found:
            family[index.id].append(index)
        for index in found:
            key = (index.id, index.generation)
            turn = self._turns.get(key)
            provider = self._provider(index)
            level = Level(self._database, provider, index, self._limits, _siblings(index, family[index.id]))
            if turn is None or _changed(turn.level, level):
                turn = _Turn(level)
            turn.serves = index.serves
            turns[key] = turn
        for gone in _named(self._turns) - _named(turns):
            self._metrics.forget(*gone)
        self._turns = turns
        self._wake.set()

    def _provider(self, index: ServedIndex) -> Provider | None:
        """Return who embeds the generation's model; None where nobody here does."""
        wanted = index.embedding
        which = f"{index.namespace}/{index.name}"
        offered = self._offered.get(wanted.provider)
        if offered is None and wanted.provider in self._embedders.names:
            return None  # Not asked yet.
        if any(
            (model.model, model.revision, model.dimension)
            == (wanted.model, wanted.revision, wanted.dimension)
            for model in offered or ()
        ):
            self._told.discard(which)
            return self._embedders.get(wanted.provider)
        if which not in self._told:
            self._told.add(which)
            _log.warning(
                "nobody here embeds this",
                index=which,
                provider=wanted.provider,
                model=wanted.model,
                revision=wanted.revision,
            )
        return None

    # --- lanes ---

    async def _lane(self) -> None:
        while not self._stopping:
            turn = self._next()
            if turn is None:
                await self._sleep()
                continue
            turn.lanes += 1
            turn.served = time.monotonic()
            turn.woken = False
            try:
                wait = await self._take(turn)
            finally:
                turn.lanes -= 1
            turn.due = 0.0 if turn.woken else time.monotonic() + wait

    def _next(self) -> _Turn | None:
        now = time.monotonic()
        due = [turn for turn in self._turns.values() if turn.due <= now]
        return min(due, key=lambda turn: (not turn.serves, turn.lanes, turn.served), default=None)

    async def _sleep(self) -> None:
        self._wake.clear()
        now = time.monotonic()
        until = min((turn.due for turn in self._turns.values()), default=now + self._poll)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(until - now, self._poll))):
                await self._wake.wait()

    async def _take(self, turn: _Turn) -> float:
        """Take one step of a generation; return the seconds until it is due again."""
        index = turn.level.index
        begun = time.time_ns()
        try:
            outcome = await turn.level.step()
        except Unavailable as error:
            turn.troubles += 1
            wait = _back_off(turn.troubles, error.retry_after)
            _log.warning("waiting", index=f"{index.namespace}/{index.name}", why=str(error), seconds=wait)
            return wait
        except PolarisError as error:
            turn.troubles += 1
            _log.warning("step failed", index=f"{index.namespace}/{index.name}", why=str(error))
            return _back_off(turn.troubles, None)
        except Exception:  # noqa: BLE001  a bug in one index must not stop the others
            turn.troubles += 1
            _log.exception("step failed", index=f"{index.namespace}/{index.name}")
            return _back_off(turn.troubles, None)
        turn.troubles = 0
        self._count(index, outcome)
        self._traces.applied(index.id, outcome.applied, begun, time.time_ns())
        if outcome.more:
            self._wake.set()
            spent = (time.time_ns() - begun) / 1e9
            return 0.0 if turn.serves else spent * (1 / self._backfill - 1)
        idle = max(self._poll, len(self._turns) * _LOOK_SECONDS)
        return idle if outcome.look_again is None else min(idle, outcome.look_again)

    def _count(self, index: ServedIndex, outcome: Outcome) -> None:
        labels = (index.namespace, index.name)
        self._metrics.applied.labels(*labels).inc(outcome.documents)
        self._metrics.chunks.labels(*labels).inc(outcome.chunks)
        self._metrics.embedded.labels(*labels).inc(outcome.embedded)
        self._metrics.failed.labels(*labels).inc(outcome.failed)
        self._metrics.given_up.labels(*labels).inc(outcome.given_up)
        if index.serves:
            self._metrics.behind.labels(*labels).set(outcome.behind)

    # --- how far behind ---

    async def _measure(self) -> None:
        """Measure what waits, every 10 s, whoever works at it."""
        while True:
            for turn in [turn for turn in self._turns.values() if turn.serves]:
                with contextlib.suppress(PolarisError):  # The next look may find more.
                    await self._measure_one(turn)
            await asyncio.sleep(_MEASURE_SECONDS)

    async def _measure_one(self, turn: _Turn) -> None:
        index = turn.level.index
        documents, seconds = await turn.level.backlog()
        if (index.id, index.generation) in self._turns:  # It may have gone meanwhile.
            self._metrics.documents.labels(index.namespace, index.name).set(documents)
            self._metrics.age.labels(index.namespace, index.name).set(seconds)

    # --- what can be embedded here ---

    async def _report_models(self) -> None:
        """Say in the catalog, every 30 s, what this worker embeds."""
        told: dict[str, str] = {}
        while True:
            wait = REPORT_MODELS_SECONDS
            for provider in self._embedders.all():
                try:
                    await self._report_provider(provider)
                except PolarisError as error:
                    # What was reported stays until it is old: a short absence stalls no manifest.
                    wait = _REPORT_AGAIN_SECONDS
                    if told.get(provider.name) != str(error):
                        _log.warning("models not reported", provider=provider.name, why=str(error))
                    told[provider.name] = str(error)
                else:
                    told.pop(provider.name, None)
            await asyncio.sleep(wait)

    async def _report_provider(self, provider: Provider) -> None:
        offered = await provider.models()
        if self._offered.get(provider.name) != offered:
            self._offered[provider.name] = offered
            self._refresh_now.set()
        async with self._database.transaction("report") as connection:
            await connection.execute(
                _REPORT_MODELS,
                provider.name,
                self._database.consumer,
                [model.model for model in offered],
                [model.revision for model in offered],
                [model.dimension for model in offered],
                [model.max_tokens for model in offered],
            )
            await connection.execute(
                _FORGET_MODELS,
                provider.name,
                self._database.consumer,
                [model.model for model in offered],
                SWEEP_SECONDS,
            )


def _named(turns: dict[tuple[int, int], _Turn]) -> set[tuple[str, str]]:
    return {(turn.level.index.namespace, turn.level.index.name) for turn in turns.values()}


def _changed(before: Level, now: Level) -> bool:
    """Return whether what a worker goes by differs."""
    return before.provider is not now.provider or _goes_by(before) != _goes_by(now)


def _goes_by(level: Level) -> tuple[object, ...]:
    index = level.index
    return (index.schema, index.embedding, index.chunking, level.siblings)


def _siblings(index: ServedIndex, family: Iterable[ServedIndex]) -> list[int]:
    """Return which of an index's other generations have vectors of the same model."""
    return [
        other.generation
        for other in family
        if other.generation != index.generation and _model(other.embedding) == _model(index.embedding)
    ]


def _model(embedding: Embedding) -> tuple[object, ...]:
    return (embedding.provider, embedding.model, embedding.revision, embedding.dimension)


def _back_off(troubles: int, retry_after: float | None) -> float:
    """Return seconds to wait after so many failures in a row, jittered so that workers spread."""
    jitter = 0.5 + random.random()  # noqa: S311  spreads retries, guards nothing
    wait = jitter * min(_LONGEST_WAIT_SECONDS, 0.25 * 2.0 ** min(troubles, 10))
    # One failure is often over at once (a restart, a rotation), whatever its error asks for.
    return max(wait, retry_after or 0.0) if troubles > 1 else wait


def build_worker(
    settings: WorkerSettings, metrics: Metrics, embedders: Embedders | None = None
) -> tuple[Database, Embedders, Worker]:
    """Make the parts of a worker, but for those that are given; nothing is opened yet."""
    database = Database(
        Path(settings.database_secret), Purpose("worker"), metrics, size=LANES + 3, statement_seconds=120.0
    )
    embedders = measured(embedders or Embedders.of(settings), metrics.registry)
    return database, embedders, Worker(database, embedders, settings, metrics)


def health_app(database: Database, embedders: Embedders, worker: Worker, metrics: Metrics) -> Starlette:
    """Return /livez, /readyz and /metrics; its lifespan runs the worker."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(flush_spans)
            for part in (embedders, database, worker):
                await part.start()
                stack.push_async_callback(part.stop)
            yield

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n") if worker.alive else PlainTextResponse("stopped\n", 500)

    async def readyz(_: Request) -> Response:
        return PlainTextResponse(f"{database.problem or 'ok'}\n", 200 if database.suited else 503)

    async def exposition(request: Request) -> Response:
        content, headers = metrics.exposition(request.headers.get("accept"))
        return Response(content, headers=headers)

    return Starlette(
        routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", exposition)],
        lifespan=lifespan,
    )


def run_worker(settings: WorkerSettings) -> None:
    """Work until SIGTERM or SIGINT; batches that are in work are finished first."""
    configure_logging(settings.log_level)
    configure_tracing("polaris-worker")
    metrics = Metrics()
    app = health_app(*build_worker(settings, metrics), metrics)
    serve(app, settings.metrics_host, settings.metrics_port, grace_seconds=5)
