"""A generator whose answers are counted, timed and traced; in everything else it is the one inside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from opentelemetry.trace import SpanKind, Status, StatusCode, use_span
from prometheus_client import CollectorRegistry, Counter, Histogram

from polaris.telemetry import started
from polaris_service.answer.generators import Generator
from polaris_service.answer.prompt import Prompt

# Seconds. `extractive` takes milliseconds, a model on a busy GPU a minute.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

ABANDONED = "Abandoned"
"""In place of an error: it took longer than it may, or whoever asked went away."""


class MeasuredGenerator:
    """Measures `stream`; asks the generator inside for everything."""

    def __init__(self, generator: Generator, registry: CollectorRegistry) -> None:
        self._generator = generator
        self._seconds = Histogram(
            "polaris_generator_call_seconds",
            "From asking the generator to the end of its text, failed and abandoned ones too.",
            ("generator",),
            buckets=_BUCKETS,
            registry=registry,
        )
        self._first = Histogram(
            "polaris_generator_first_text_seconds",
            "From asking the generator to the first piece of its text.",
            ("generator",),
            buckets=_BUCKETS,
            registry=registry,
        )
        self._errors = Counter(
            "polaris_generator_call_errors",
            "Calls to the generator that failed, by how.",
            ("generator", "error"),
            registry=registry,
        )

    @property
    def name(self) -> str:
        """The generator's."""
        return self._generator.name

    async def stream(self, prompt: Prompt, notes: list[str]) -> AsyncGenerator[str, None]:
        """Yield the generator's text."""
        begun = time.perf_counter()
        first = True
        call = started("generate", SpanKind.CLIENT)
        try:
            async with aclosing(self._generator.stream(prompt, notes)) as pieces:
                while True:
                    # The current one only here: whoever takes the text does so in a span of their own.
                    with use_span(call, record_exception=False, set_status_on_exception=False):
                        piece = await anext(pieces, None)
                    if piece is None:
                        break
                    if first:
                        self._first.labels(self.name).observe(time.perf_counter() - begun)
                        first = False
                    yield piece
        except asyncio.CancelledError:
            self._errors.labels(self.name, ABANDONED).inc()
            raise
        except Exception as error:
            self._errors.labels(self.name, type(error).__name__).inc()
            call.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            call.end()
            self._seconds.labels(self.name).observe(time.perf_counter() - begun)

    async def stop(self) -> None:
        """Stop the generator."""
        await self._generator.stop()
