"""Rows of a generation's table of chunks, as COPY takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polaris_service.documents.chunking import Span

CHUNK_COLUMNS = (
    "document_id",
    "version",
    "ordinal",
    "span_start",
    "span_end",
    "text_hash",
    "attributes",
    "embedding",
)


def text_hash(text: str) -> bytes:
    """Return the SHA-256 of what is embedded: the same text of a document is not embedded twice."""
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class Version:
    """The version that chunks are of."""

    document: int
    version: int
    attributes: str
    """JSON text."""


def chunk_rows(
    of: Version, spans: Sequence[Span], hashes: Sequence[bytes], vectors: Iterable[Any]
) -> Iterator[tuple[Any, ...]]:
    """Yield one record a chunk, in the order of CHUNK_COLUMNS."""
    for ordinal, (span, hashed, vector) in enumerate(zip(spans, hashes, vectors, strict=True)):
        yield of.document, of.version, ordinal, span.start, span.end, hashed, of.attributes, vector
