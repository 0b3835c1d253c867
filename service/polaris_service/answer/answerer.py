"""An answer from beginning to end: search, judge, choose, generate, cite, verify."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from polaris.errors import GeneratorUnavailable, InvalidInput
from polaris.spec import Embedding, Metric
from polaris_service.answer.citations import Citation, Cited, cite, keep
from polaris_service.answer.generators import TRUNCATED, Generator
from polaris_service.answer.passages import Passage, choose
from polaris_service.answer.prompt import Prompt, build
from polaris_service.answer.sentences import is_portuguese
from polaris_service.answer.stream import Growing
from polaris_service.answer.verification import verified
from polaris_service.database import Database
from polaris_service.indexes import ServedIndex
from polaris_service.search.dense import Hit
from polaris_service.search.requests import MAX_QUERY_CHARACTERS, Fields, Limits, SearchRequest
from polaris_service.search.searcher import Searcher, SearchResult, Timings

DEFAULT_K = 8
MAX_K = 50
"""The budget of the passages holds fewer chunks than this; more would only be read and thrown away."""
_MOST_CHARACTERS = 32_000

LEAST_COSINE = {"multilingual-e5-small": 0.865}
"""By model: a best hit of less has nothing to do with the question. e5's cosines are squeezed: unrelated
pairs average 0.765. A model that is not here never refuses by score: its scale is not known."""

_NOTHING_FOUND = "Nothing in this index answers the question."
_NADA_ENCONTRADO = "Nada neste índice responde à pergunta."

_FIELDS = frozenset({"question", "k", "filter", "tenant", "stream", "after_sequence", "timeout_ms"})
_INT64 = 2**63 - 1


@dataclass(frozen=True)
class AnswerRequest:
    """A question, and the search that it is answered from."""

    question: str
    search: SearchRequest
    stream: bool = False


def parse(body: Any, limits: Limits) -> AnswerRequest:
    """Return the question that a JSON body asks; raise InvalidInput or TooLarge with its pointer."""
    fields = Fields(body, _FIELDS)
    question = fields.text("question", MAX_QUERY_CHARACTERS)
    if question is None:
        raise InvalidInput("is missing", "/question")
    fields.check_tenant()
    timeout = fields.integer("timeout_ms", 1, _INT64)
    search = SearchRequest(
        k=fields.k(min(limits.max_k, MAX_K), DEFAULT_K),
        seconds=min(limits.seconds, timeout / 1000) if timeout else limits.seconds,
        query=question,
        filter=fields.get("filter"),
        after_sequence=fields.integer("after_sequence", 0, _INT64),
    )
    return AnswerRequest(question, search, fields.flag("stream"))


@dataclass(frozen=True)
class Delta:
    """A piece of the answer while it is written; the markers in it are of passages that were given."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The whole answer. Every citation was found in the stored text a moment ago."""

    text: str
    refused: bool
    citations: tuple[Citation, ...]
    generator: str
    generation: int
    degraded: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the response as JSON values."""
        return {
            "answer": self.text,
            "refused": self.refused,
            "citations": [citation_document(citation) for citation in self.citations],
            "generator": self.generator,
            "generation": self.generation,
            "degraded": self.degraded,
            "timings_ms": self.timings,
        }

    def body(self) -> bytes:
        """Return the response as JSON."""
        return orjson.dumps(self.document())


Event: TypeAlias = "Delta | Answer"


def citation_document(citation: Citation) -> dict[str, Any]:
    """Return a citation as JSON values; `marker` is the number that cites it in the answer."""
    return {
        "marker": citation.marker,
        "document": citation.document,
        "version": citation.version,
        "span": (citation.start, citation.end),
        "sha256": citation.sha256,
        "text": citation.text,
    }


class Answerer:
    """Answers questions from an index."""

    def __init__(self, searcher: Searcher, database: Database, generator: Generator, seconds: float) -> None:
        self.limits = searcher.limits
        self._searcher = searcher
        self._database = database
        self._generator = generator
        self._seconds = seconds

    async def start(self) -> None:
        """Nothing: the generator is asked when there is a question."""

    async def stop(self) -> None:
        """Close the generator's connections."""
        await self._generator.stop()

    async def answer(self, index: ServedIndex, request: AnswerRequest) -> Answer:
        """Return the answer; raises what `Searcher.search` does, GeneratorUnavailable, GeneratorRefused."""
        async with aclosing(self.events(index, request)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    return event
        raise AssertionError("the answer is the last event")

    async def events(self, index: ServedIndex, request: AnswerRequest) -> AsyncGenerator[Event, None]:
        """Yield pieces while they are written, and the whole answer last.

        The whole one decides: it lacks the markers of what could not be verified.
        """
        timings = Timings()
        result = await self._searcher.search(index, request.search)
        since = timings.lap("search", timings.begun)
        if not relevant(result.index.embedding, result.hits):
            yield self._refusal(request, result, timings, notes=[])
            return
        # Some milliseconds of many long hits, during which others are answered.
        passages = await asyncio.to_thread(choose, result.hits)
        prompt = build(request.question, passages, secrets.token_hex(8))
        growing = Growing({passage.number for passage in passages})
        notes: list[str] = []
        async with aclosing(self._written(prompt, notes)) as pieces:
            async for piece in pieces:
                shown = growing.add(piece)
                if shown:
                    yield Delta(shown)
        rest = growing.end()
        if rest:
            yield Delta(rest)
        since = timings.lap("generate", since)
        if growing.refused:
            yield self._refusal(request, result, timings, notes)
            return
        cited = await self._verified(result.index, growing.text, passages)
        timings.lap("verify", since)
        yield Answer(
            text=cited.text,
            refused=False,
            citations=cited.citations,
            generator=self._generator.name,
            generation=result.index.generation,
            degraded=(*result.degraded, *notes),
            timings=timings.told(),
        )

    async def _written(self, prompt: Prompt, notes: list[str]) -> AsyncGenerator[str, None]:
        """Yield what the generator writes, within its time and of bounded length."""
        until = asyncio.get_running_loop().time() + self._seconds
        written = 0
        async with aclosing(self._generator.stream(prompt, notes)) as pieces:
            while written < _MOST_CHARACTERS:
                try:
                    async with asyncio.timeout_at(until):
                        piece = await anext(pieces, None)
                except TimeoutError:
                    raise GeneratorUnavailable(
                        f"the generator took longer than {self._seconds:g} s"
                    ) from None
                if piece is None:
                    return
                written += len(piece)
                yield piece
        notes.append(TRUNCATED)

    async def _verified(self, index: ServedIndex, text: str, passages: list[Passage]) -> Cited:
        cited = await asyncio.to_thread(cite, text, passages)
        return keep(cited, await verified(self._database, index, cited.citations))

    def _refusal(
        self, request: AnswerRequest, result: SearchResult, timings: Timings, notes: list[str]
    ) -> Answer:
        return Answer(
            text=_NADA_ENCONTRADO if is_portuguese(request.question) else _NOTHING_FOUND,
            refused=True,
            citations=(),
            generator=self._generator.name,
            generation=result.index.generation,
            degraded=(*result.degraded, *notes),
            timings=timings.told(),
        )


def relevant(embedding: Embedding, hits: tuple[Hit, ...]) -> bool:
    """Return whether the best hit may have to do with the question."""
    if not hits:
        return False
    # `intfloat/multilingual-e5-small` and `multilingual-e5-small:latest` are the same model.
    name = embedding.model.rpartition("/")[2].partition(":")[0].lower()
    least = LEAST_COSINE.get(name) if embedding.metric == Metric.COSINE else None
    return least is None or hits[0].score >= least
