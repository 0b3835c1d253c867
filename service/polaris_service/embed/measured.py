"""A provider whose calls are counted, timed and traced; in everything else it is the one inside."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry, Counter, Histogram

from polaris.telemetry import span
from polaris_service.embed.provider import Kind, OfferedModel, Provider, Vectors
from polaris_service.embed.registry import Embedders

# Seconds. A question takes 5 ms of a local model, a batch of chunks seconds.
_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class EmbedderMetrics:
    """What a program measures of the embedders that it asks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("provider", "kind")
        self.seconds = Histogram(
            "polaris_embedder_call_seconds",
            "Time of a call to an embedder, failed ones too.",
            labels,
            buckets=_BUCKETS,
            registry=registry,
        )
        self.texts = Counter(
            "polaris_embedder_call_texts", "Texts that embedders were asked for.", labels, registry=registry
        )
        self.errors = Counter(
            "polaris_embedder_call_errors",
            "Calls to an embedder that failed, by how.",
            ("provider", "error"),
            registry=registry,
        )


class MeasuredProvider:
    """Measures `embed`; asks the provider inside for everything."""

    def __init__(self, provider: Provider, metrics: EmbedderMetrics) -> None:
        self.name = provider.name
        self._provider = provider
        self._metrics = metrics

    async def models(self) -> list[OfferedModel]:
        """Return what the provider offers."""
        return await self._provider.models()

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return the provider's vectors."""
        self._metrics.texts.labels(self.name, kind.value).inc(len(texts))
        with self._call(kind):
            return await self._provider.embed(model, texts, kind)

    async def count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        """Return the provider's counts."""
        return await self._provider.count_tokens(model, texts)

    async def close(self) -> None:
        """Close the provider."""
        await self._provider.close()

    @contextmanager
    def _call(self, kind: Kind) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            with span("embed", SpanKind.CLIENT):
                yield
        except Exception as error:
            self._metrics.errors.labels(self.name, type(error).__name__).inc()
            raise
        finally:
            self._metrics.seconds.labels(self.name, kind.value).observe(time.perf_counter() - begun)


def measured(embedders: Embedders, registry: CollectorRegistry) -> Embedders:
    """Return the same providers, each measured in a program's registry."""
    metrics = EmbedderMetrics(registry)
    return Embedders(MeasuredProvider(provider, metrics) for provider in embedders.all())
