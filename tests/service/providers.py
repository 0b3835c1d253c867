"""Providers that fail on purpose, around one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from embed.doubles import HashedProvider
from polaris.errors import EmbedderRefused, EmbedderUnavailable
from polaris_service.embed.provider import Kind, OfferedModel, Vectors

POISON = "poison"


class Failing:
    """Fails as it is told to; healthy until then."""

    def __init__(self) -> None:
        self.name = "default"
        self.inner = HashedProvider()
        self.away = False
        """Nobody answers."""
        self.refuses_all = False
        """A wrong key, say."""
        self.refuses_poison = False
        self.breaks_on_poison = False
        """A bug, or a network error that nobody translated."""
        self.pause = asyncio.Event()
        self.pause.set()
        """Embedding waits while it is clear."""
        self.asked = 0
        self.texts: list[str] = []

    async def models(self) -> list[OfferedModel]:
        return await self.inner.models()

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        self.asked += 1
        await self.pause.wait()
        if self.away:
            raise EmbedderUnavailable("the embedder does not answer", retry_after=0.1)
        if self.refuses_all:
            raise EmbedderRefused("401: who are you?")
        if any(POISON in text for text in texts):
            if self.refuses_poison:
                raise EmbedderRefused("400: I will not embed that")
            if self.breaks_on_poison:
                raise ZeroDivisionError(f"while embedding {texts}")
        self.texts += texts
        return await self.inner.embed(model, texts, kind)

    async def count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        return await self.inner.count_tokens(model, texts)

    async def close(self) -> None:
        await self.inner.close()
