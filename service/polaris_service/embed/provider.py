"""What every embedding provider is, and what all of them check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from polaris.errors import EmbedderRefused

Vectors: TypeAlias = "npt.NDArray[np.float32]"
"""Shape (texts, dimension)."""

# What PostgreSQL's text (NUL) or UTF-8 (lone surrogates) cannot hold; routes refuse both before this.
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


class Kind(StrEnum):
    """What a text is to the model; models trained with prefixes embed a question unlike its answer."""

    QUERY = "query"
    PASSAGE = "passage"
    RAW = "raw"
    """Final as it is: whoever sent it has put the prefix before it."""


@dataclass(frozen=True)
class OfferedModel:
    """A model that a provider embeds with."""

    model: str
    revision: str
    dimension: int
    max_tokens: int | None
    """Tokens of a text beyond which the model reads no further; None where nobody says."""


class Provider(Protocol):
    """A source of vectors.

    All methods but `close` raise EmbedderUnavailable where trying again may help, and EmbedderRefused
    where it will not.
    """

    name: str
    """The name by which a manifest's `spec.embedding.provider` asks for it."""

    async def models(self) -> list[OfferedModel]:
        """Return what it embeds with at the moment."""
        ...

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one vector a text, in order, as the model delivers them (e5: of length 1).

        A text beyond the model's limit is cut at it. An empty one has a vector too.
        """
        ...

    async def count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, without prefix and without the model's special tokens.

        So the counts of sentences add up to about that of the paragraph. Where the model's tokenizer
        cannot be asked it is an estimate that is rather too high.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; what still waits fails with EmbedderUnavailable."""
        ...


def check_texts(texts: Sequence[str]) -> None:
    """Raise EmbedderRefused where something is no text: NUL and lone surrogates are in none."""
    for number, text in enumerate(texts):
        found = _NO_TEXT.search(text)
        if found:
            what = "NUL" if found.group() == "\x00" else "a lone surrogate"
            raise EmbedderRefused(f"text {number} holds {what} at character {found.start()}")


def check_vectors(vectors: Vectors, dimension: int | None) -> None:
    """Raise EmbedderRefused unless all entries are finite and the dimension is the one expected."""
    if dimension is not None and vectors.shape[1] != dimension:
        raise EmbedderRefused(f"the vectors have {vectors.shape[1]} dimensions, expected are {dimension}")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise EmbedderRefused(f"the vector of text {int(np.argmin(finite))} has an entry that is no number")
