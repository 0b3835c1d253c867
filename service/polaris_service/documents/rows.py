"""Rows of a generation's table of chunks, as COPY takes them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pgvector import HalfVector
from pgvector import Vector as FullVector

from polaris.spec import VectorType
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


class _WireHalf(HalfVector):  # type: ignore[misc,unused-ignore]
    """A halfvec that is encoded already; the driver's codec asks for nothing else."""

    def __init__(self, wire: bytes) -> None:
        self._wire = wire

    def to_binary(self) -> bytes:
        """Return what goes over the wire."""
        return self._wire


class _WireFull(FullVector):  # type: ignore[misc,unused-ignore]
    """A vector that is encoded already."""

    def __init__(self, wire: bytes) -> None:
        self._wire = wire

    def to_binary(self) -> bytes:
        """Return what goes over the wire."""
        return self._wire


def wire_vectors(rows: npt.NDArray[np.float32], kind: VectorType) -> list[Any]:
    """Return each row as the driver sends it, encoded all at once: one at a time costs four times that.

    pgvector's binary form: dimension and a zero, 16 bits each, then the entries, all big-endian.
    """
    made, entry = (_WireHalf, ">f2") if kind == VectorType.HALFVEC else (_WireFull, ">f4")
    head = struct.pack(">HH", rows.shape[1], 0)
    return [made(head + row.tobytes()) for row in rows.astype(entry)]


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
