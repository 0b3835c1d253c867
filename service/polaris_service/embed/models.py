"""What is known of embedding models by their name: prefixes, dimension, limit.

The one place where prefixes are put before texts, so that any server gets the final text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polaris_service.embed.provider import Kind


@dataclass(frozen=True)
class KnownModel:
    """What a model's card says of it."""

    dimension: int
    max_tokens: int
    query_prefix: str = ""
    passage_prefix: str = ""


_E5 = ("query: ", "passage: ")
_NOMIC = ("search_query: ", "search_document: ")

KNOWN: dict[str, KnownModel] = {
    "multilingual-e5-small": KnownModel(384, 512, *_E5),
    "multilingual-e5-base": KnownModel(768, 512, *_E5),
    "multilingual-e5-large": KnownModel(1024, 512, *_E5),
    "e5-small-v2": KnownModel(384, 512, *_E5),
    "e5-base-v2": KnownModel(768, 512, *_E5),
    "e5-large-v2": KnownModel(1024, 512, *_E5),
    "nomic-embed-text-v1.5": KnownModel(768, 8192, *_NOMIC),
    "nomic-embed-text": KnownModel(768, 8192, *_NOMIC),
    "bge-m3": KnownModel(1024, 8192),
    "text-embedding-3-small": KnownModel(1536, 8192),
    "text-embedding-3-large": KnownModel(3072, 8192),
}

_UNKNOWN = KnownModel(0, 0)


def known(model: str) -> KnownModel | None:
    """Return what is known of a model: `intfloat/multilingual-e5-small` and `bge-m3:latest` too."""
    return KNOWN.get(model.rpartition("/")[2].partition(":")[0].lower())


def final_texts(model: str, texts: Sequence[str], kind: Kind) -> list[str]:
    """Return the texts as the model wants to read them."""
    about = known(model) or _UNKNOWN
    prefix = {
        Kind.QUERY: about.query_prefix,
        Kind.PASSAGE: about.passage_prefix,
        Kind.RAW: "",
    }[kind]
    return [prefix + text for text in texts]
