"""Rows of a generation's table of chunks, as COPY takes them."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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


class Version(NamedTuple):
    """The version that chunks are of."""

    document: int
    version: int
    attributes: str
    """JSON text."""


class Chunks(NamedTuple):
    """The chunks of one version, without their vectors."""

    of: Version
    spans: Sequence[Span]
    hashes: Sequence[bytes]
    """Of each chunk, as `text_hash` makes them."""


# The columns before the attributes, each after its length; a vector's length, dimension and a zero.
_HEAD = struct.Struct(">hiqiiiiiiiii32s")
_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = struct.pack(">h", -1)


def copy_of_chunks(
    documents: Iterable[Chunks], vectors: npt.NDArray[np.floating[Any]], kind: VectorType
) -> io.BytesIO:
    """Return rows of chunks as binary COPY takes them, in the order of CHUNK_COLUMNS.

    `vectors` holds those of all chunks in order: (chunks, dimension). The driver's own encoder takes
    values one at a time, which costs three times as much.
    """
    wires, width = _wires(vectors, kind)
    parts: list[bytes | memoryview] = [_SIGNATURE]
    at = 0
    for chunks in documents:
        attributes = chunks.of.attributes.encode()
        # jsonb's binary form is a version, 1, and the text.
        middle = struct.pack(">ib", len(attributes) + 1, 1) + attributes
        for ordinal, (span, hashed) in enumerate(zip(chunks.spans, chunks.hashes, strict=True)):
            parts += (_head(chunks.of, ordinal, span, hashed), middle, wires[at : at + width])
            at += width
    if at != len(wires):
        raise ValueError("there is not one vector for each chunk")
    parts.append(_END)
    return io.BytesIO(b"".join(parts))


def _head(of: Version, ordinal: int, span: Span, hashed: bytes) -> bytes:
    fields = len(CHUNK_COLUMNS)
    return _HEAD.pack(
        fields, 8, of.document, 4, of.version, 4, ordinal, 4, span.start, 4, span.end, len(hashed), hashed
    )


def _wires(vectors: npt.NDArray[np.floating[Any]], kind: VectorType) -> tuple[memoryview, int]:
    """Return each vector with its length before it, and how many bytes each takes.

    pgvector's binary form: dimension and a zero, 16 bits each, then the entries, all big-endian.
    """
    count, dimension = vectors.shape
    entry = np.dtype(">f2" if kind == VectorType.HALFVEC else ">f4")
    size = 4 + dimension * entry.itemsize
    made = np.empty(
        count, [("size", ">i4"), ("dimension", ">u2"), ("zero", ">u2"), ("entries", entry, (dimension,))]
    )
    made["size"], made["dimension"], made["zero"], made["entries"] = size, dimension, 0, vectors
    return memoryview(made.tobytes()), 4 + size
