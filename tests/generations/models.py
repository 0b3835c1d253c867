"""An embedder with several models, as one embedding service often is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from embed.doubles import HashedProvider
from polaris.errors import EmbedderRefused
from polaris_service.embed.provider import Kind, OfferedModel, Vectors


class Several:
    """Delegates to the provider of the model that is asked for."""

    name = "default"

    def __init__(self, *providers: HashedProvider) -> None:
        self._of = {provider.offered.model: provider for provider in providers}
        self.passages: Counter[str] = Counter()
        """Texts that were embedded so far, by model; questions, which end as such, do not count."""
        self.refused: dict[str, str] = {}
        """By model, a word that it does not embed."""

    async def models(self) -> list[OfferedModel]:
        return [provider.offered for provider in self._of.values()]

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        word = self.refused.get(model)
        if word is not None and any(word in text for text in texts):
            raise EmbedderRefused(f"{model} knows no {word}")
        self.passages[model] += sum(not text.endswith("?") for text in texts)
        return await self._asked(model).embed(model, texts, kind)

    async def count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        return await self._asked(model).count_tokens(model, texts)

    async def close(self) -> None:
        pass

    def _asked(self, model: str) -> HashedProvider:
        if model not in self._of:
            raise EmbedderRefused(f"there is no model {model} here")
        return self._of[model]
