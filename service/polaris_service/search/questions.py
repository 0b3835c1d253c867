"""Vectors of questions: each asked of the provider once, and remembered for a while.

People ask the same things, and clients repeat themselves; an embedding costs ten times a search.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from polaris.errors import EmbedderRefused
from polaris.spec import Embedding
from polaris_service.embed.provider import Kind
from polaris_service.embed.registry import Embedders
from polaris_service.vectors import Vector, check

Embed: TypeAlias = Callable[[Embedding, str], Awaitable[Vector]]
"""Embeds one question; raises EmbedderUnavailable and EmbedderRefused."""
_Key: TypeAlias = tuple[str, str, str, int, bytes]

_REMEMBERED = 2048


def of_providers(embedders: Embedders) -> Embed:
    """Return what embeds a question by the provider that the index names."""

    async def embed(embedding: Embedding, question: str) -> Vector:
        provider = embedders.get(embedding.provider)
        vector: Vector = (await provider.embed(embedding.model, [question], Kind.QUERY))[0]
        return vector

    return embed


class Questions:
    """A bounded memory of questions' vectors; those who ask the same at the same time share one call."""

    def __init__(self, embed: Embed, remembered: int = _REMEMBERED) -> None:
        self._embed = embed
        self._remembered = remembered
        self._known: OrderedDict[_Key, Vector] = OrderedDict()
        self._asking: dict[_Key, asyncio.Task[Vector]] = {}

    async def vector(self, embedding: Embedding, question: str) -> Vector:
        """Return the question's vector, one that the index can compare with (`vectors.check`).

        Raises EmbedderUnavailable and EmbedderRefused; failures are not remembered.
        """
        key = _key(embedding, question)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.create_task(self._ask(key, embedding, question))
            self._asking[key] = asking
            asking.add_done_callback(lambda task: self._asked(key, task))
        # Whoever leaves early does not take the answer from the others.
        return await asyncio.shield(asking)

    async def _ask(self, key: _Key, embedding: Embedding, question: str) -> Vector:
        vector = await self._embed(embedding, question)
        wrong = check(vector, embedding)
        if wrong:
            raise EmbedderRefused(f"the vector of {embedding.provider}'s {embedding.model} {wrong}")
        self._known[key] = vector
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)
        return vector

    def _asked(self, key: _Key, task: asyncio.Task[Vector]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # Looked at, also where everybody who asked has gone.


def _key(embedding: Embedding, question: str) -> _Key:
    # The digest: questions are not kept longer than they are needed. Type and metric decide `check`.
    told = f"{embedding.type}\x00{embedding.metric}\x00{question}".encode()
    digest = hashlib.sha256(told).digest()
    return (embedding.provider, embedding.model, embedding.revision, embedding.dimension, digest)
