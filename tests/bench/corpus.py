"""Documents with ready vectors: deterministic, and with neighbourhoods as embeddings of texts have.

Uniform noise has no near neighbours: every graph fails on it, and nobody searches it. Here a document
is a point in 192 dimensions, around one of some hundred subjects, which belong to topics of very
unequal size. A linear map with a falling spectrum takes it to all 384; what all texts have in common
and a little noise are added. Queries are drawn in the same way, and are none of the documents.

The numbers are such that it looks like multilingual-e5-small on 4,000 short descriptions of Debian's
packages (November 2026; its value, then ours): mean cosine of any two .86, .85; intrinsic dimension,
estimated from the 10 nearest 29, 31, from the 50 nearest 28, 28; distance of the tenth nearest over the
mean distance .80, .76.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

SEED = 20261122
DIMENSION = 384
TEXT_CHARACTERS = 500
"""Of each document's text, about a paragraph; one chunk spans all of it."""

_LATENT = 192
_TOPICS = 60
_SUBJECTS = 12
"""In each topic."""
_SUBJECT_SPREAD, _DOCUMENT_SPREAD = 1.0, 1.8
_FALL = -0.4
"""Exponent of the spectrum."""
_COMMON, _NOISE = 17.0, 1.0

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Documents 0 … rows-1 and queries beside them."""

    rows: int
    queries: int
    seed: int = SEED

    @cached_property
    def _points(self) -> tuple[Halves, Floats]:
        random = np.random.default_rng(self.seed)
        world = _World(random)
        return world.vectors(self.rows).astype(np.float16), world.vectors(self.queries)

    @property
    def vectors(self) -> Halves:
        """Of the documents, as a halfvec holds them: (rows, DIMENSION)."""
        return self._points[0]

    @property
    def questions(self) -> Floats:
        """Vectors that are looked for: (queries, DIMENSION)."""
        return self._points[1]

    @cached_property
    def texts(self) -> list[str]:
        """Of the documents: words that were drawn, cut to TEXT_CHARACTERS."""
        random = np.random.default_rng(self.seed + 1)
        letters = np.array(list("aeiourstlnmdcp"))
        words = ["".join(random.choice(letters, length)) for length in random.integers(2, 11, 4000)]
        drawn = random.integers(0, len(words), (self.rows, TEXT_CHARACTERS // 5))
        texts = (" ".join(words[word] for word in row) for row in drawn)
        return [text[: TEXT_CHARACTERS - 1].ljust(TEXT_CHARACTERS - 1, "a") + "." for text in texts]

    def nearest(self, k: int) -> Ids:
        """Return the k nearest documents of each query by cosine, found by comparing all: (queries, k)."""
        documents = self.vectors.astype(np.float32)
        documents /= np.linalg.norm(documents, axis=1, keepdims=True)
        # The database compares halves: the query is rounded as it is.
        asked = self.questions.astype(np.float16).astype(np.float32)
        found = np.empty((self.queries, k), dtype=np.int64)
        for begin in range(0, self.queries, 64):
            similar = asked[begin : begin + 64] @ documents.T
            found[begin : begin + 64] = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        return found

    def bodies(self, k: int) -> Iterator[str]:
        """Yield the body of a search for each query."""
        for vector in self.questions:
            yield json.dumps({"vector": _base64(vector), "k": k})

    def write_ndjson(self, path: Path, model: str) -> None:
        """Write the documents as the service takes them, with their vectors."""
        with path.open("w", encoding="ascii") as file:
            for number, (text, vector) in enumerate(zip(self.texts, self.vectors, strict=True)):
                chunk = {"span": [0, len(text)], "vector": _base64(vector.astype(np.float32))}
                line = {"id": name(number), "text": text, "model": model, "chunks": [chunk]}
                file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def write_copy(self, folder: Path) -> dict[str, Path]:
        """Write what a search reads as PostgreSQL's binary COPY; return the file of each kind of table.

        The columns are those of `COPY_COLUMNS`.
        """
        rows = {
            "documents": self._document_rows(),
            "versions": self._version_rows(),
            "chunks": self._chunk_rows(),
        }
        files = {}
        for kind, tuples in rows.items():
            files[kind] = folder / f"{kind}.copy"
            with files[kind].open("wb") as file:
                file.write(b"PGCOPY\n\xff\r\n\x00" + bytes(8))
                for fields in tuples:
                    file.write(struct.pack("!h", len(fields)))
                    file.writelines(struct.pack("!i", len(field)) + field for field in fields)
                file.write(struct.pack("!h", -1))
        return files

    def _document_rows(self) -> Iterator[tuple[bytes, ...]]:
        for number, text in enumerate(self.texts):
            yield _int8(number + 1), name(number).encode(), _int4(1), _int8(number + 1), _hash(text)

    def _version_rows(self) -> Iterator[tuple[bytes, ...]]:
        for number, text in enumerate(self.texts):
            yield _int8(number + 1), _int4(1), _int8(number + 1), _hash(text), text.encode()

    def _chunk_rows(self) -> Iterator[tuple[bytes, ...]]:
        head = struct.pack("!HH", DIMENSION, 0)
        for number, (text, vector) in enumerate(zip(self.texts, self.vectors, strict=True)):
            span = _int4(0), _int4(len(text))
            half = head + vector.astype(">f2").tobytes()
            yield _int8(number + 1), _int4(1), _int4(0), *span, _hash(text), half


COPY_COLUMNS = {
    "documents": ("id", "external_id", "version", "sequence", "content_hash"),
    "versions": ("document_id", "version", "sequence", "content_hash", "text"),
    "chunks": ("document_id", "version", "ordinal", "span_start", "span_end", "text_hash", "embedding"),
}


class _World:
    """Where documents come from: topics, subjects in them, and the map to all dimensions."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        topics = self._normal(_TOPICS, 1, _LATENT)
        self._centres = topics + _SUBJECT_SPREAD * self._normal(_TOPICS, _SUBJECTS, _LATENT)
        weights = 1 / np.arange(1, _TOPICS + 1)
        self._weights = weights / weights.sum()
        spectrum = (np.arange(1, _LATENT + 1) ** _FALL).astype(np.float32)
        self._map = np.linalg.qr(self._normal(DIMENSION, _LATENT))[0].T * spectrum[:, None]
        common = self._normal(DIMENSION)
        self._common = _COMMON * common / np.linalg.norm(common)

    def vectors(self, rows: int) -> Floats:
        """Draw points, and return their vectors of length 1: (rows, DIMENSION)."""
        topic = self._random.choice(_TOPICS, rows, p=self._weights)
        subject = self._random.integers(0, _SUBJECTS, rows)
        points = self._centres[topic, subject] + _DOCUMENT_SPREAD * self._normal(rows, _LATENT)
        noise = _NOISE / DIMENSION**0.5 * self._normal(rows, DIMENSION)
        vectors: Floats = points @ self._map + self._common + noise
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def _normal(self, *shape: int) -> Floats:
        return self._random.standard_normal(shape, dtype=np.float32)


def name(number: int) -> str:
    """Return the id of a document."""
    return f"document-{number:07d}"


def number(name_: str) -> int:
    """Return the document that has this id."""
    return int(name_.rpartition("-")[2])


def recall(found: list[list[int]], nearest: Ids) -> float:
    """Return the share of the nearest that was found, over all queries."""
    right = sum(len(set(one) & set(true.tolist())) for one, true in zip(found, nearest, strict=True))
    return right / nearest.size


def _base64(vector: Floats) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _int4(value: int) -> bytes:
    return struct.pack("!i", value)


def _int8(value: int) -> bytes:
    return struct.pack("!q", value)
