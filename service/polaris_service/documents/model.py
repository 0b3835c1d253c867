"""A document as a caller sends it, checked: limits, attributes against their declared types, vectors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from polaris import attributes as declared_attributes
from polaris.errors import Conflict, InvalidInput, TooLarge
from polaris.spec import AttributeType, Embedding
from polaris_service import vectors
from polaris_service.bodies import escape
from polaris_service.documents.chunking import Span
from polaris_service.problems import Fault, InvalidBody, validated

TITLE_CHARACTERS = 1024
URI_CHARACTERS = 4096
ATTRIBUTES = 128
ATTRIBUTES_BYTES = 16 * 1024
"""Attributes stand beside each chunk, in a page of 8 KiB with its vector."""
ATTRIBUTE_NAME_CHARACTERS = 128
ATTRIBUTE_VALUES = 256
READY_CHUNKS = 16_384

# Control characters, separators of lines and paragraphs, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Document(BaseModel):
    """The body of a PUT."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    text: Annotated[str, Field(min_length=1)]
    """What is cut, embedded and cited; spans count its Unicode code points."""
    title: Annotated[str, Field(max_length=TITLE_CHARACTERS)] | None = None
    """Shown with hits, and embedded before each chunk."""
    uri: Annotated[str, Field(max_length=URI_CHARACTERS)] | None = None
    """Where a reader finds the original."""
    attributes: Annotated[dict[str, JsonValue], Field(default_factory=dict)]
    """JSON scalars, or lists of them. Filters may use those that the index declares."""
    tenant: str | None = None
    """Only for indexes with tenants; this version has none."""

    @field_validator("text")
    @classmethod
    def _not_white(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("must hold something to find, and is white space only")
        return text

    @field_validator("tenant")
    @classmethod
    def _no_tenant(cls, tenant: str | None) -> str | None:
        if tenant is not None:
            raise ValueError("the index has no tenants: its spec.tenancy.mode is none")
        return tenant


class Line(Document):
    """A line of a batch: a document with its id, and perhaps with vectors that are ready."""

    id: str
    """The document's id."""
    model: str | None = None
    """The model that made the vectors; it must be the one that serves."""
    chunks: Annotated[list[Any], Field(min_length=1, max_length=READY_CHUNKS)] | None = None
    """`{"span": [a, b], "vector": numbers or base64 of little-endian float32}`, each."""


@dataclass(frozen=True)
class Ready:
    """A document's chunks with their vectors, made elsewhere with the serving model."""

    spans: tuple[Span, ...]
    raw: bytes
    """The vectors one after the other, little-endian float32."""


@dataclass(frozen=True)
class Write:
    """A document to be written, all checked."""

    id: str
    text: str
    title: str | None
    uri: str | None
    attributes: str
    """As JSON text."""
    content_hash: bytes
    ready: Ready | None = None

    @property
    def bytes(self) -> int:
        """About how much of memory and of a transaction it takes."""
        return len(self.text) + len(self.attributes) + (len(self.ready.raw) if self.ready else 0)


@dataclass(frozen=True)
class Limits:
    """Limits that settings say."""

    document_bytes: int
    id_bytes: int


def check_id(external_id: str, limits: Limits, pointer: str = "") -> str:
    """Return the id; raise InvalidInput or TooLarge where it is none."""
    if not external_id:
        raise InvalidInput("the document's id is empty", pointer)
    found = _UNPRINTABLE.search(external_id)
    if found:
        raise InvalidInput(
            f"the document's id holds {found.group()!a}: only printable characters may be in it", pointer
        )
    size = len(external_id.encode())
    if size > limits.id_bytes:
        raise TooLarge(
            f"the document's id has {size:,} bytes of UTF-8, the limit is {limits.id_bytes:,}", pointer
        )
    return external_id


def parse_document(
    external_id: str, body: Any, declared: Mapping[str, AttributeType], limits: Limits
) -> Write:
    """Return what a PUT says; raise InvalidInput with a pointer for each fault, or TooLarge."""
    document = validated(Document, _object(body))
    return _write(external_id, document, declared, limits, None)


def parse_line(
    body: Any, declared: Mapping[str, AttributeType], limits: Limits, embedding: Embedding
) -> Write:
    """Return what a line of a batch says; raise InvalidInput, TooLarge, or Conflict (another model).

    The numbers of its vectors are still to be looked at, those of many lines at once: `unusable`.
    """
    line = validated(Line, _object(body))
    check_id(line.id, limits, "/id")
    return _write(line.id, line, declared, limits, _ready(line, embedding))


def _object(body: Any) -> Any:
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    return body


def _write(
    external_id: str,
    document: Document,
    declared: Mapping[str, AttributeType],
    limits: Limits,
    ready: Ready | None,
) -> Write:
    # A code point has one to four bytes: only in between it has to be encoded to know.
    size = len(document.text)
    if size <= limits.document_bytes < 4 * size:
        size = len(document.text.encode())
    if size > limits.document_bytes:
        raise TooLarge(f"the text has {size:,} bytes, the limit is {limits.document_bytes:,}", "/text")
    return Write(
        id=external_id,
        text=document.text,
        title=document.title,
        uri=document.uri,
        attributes=_attributes(document.attributes, declared),
        content_hash=_content_hash(document, ready),
        ready=ready,
    )


def _attributes(given: Mapping[str, JsonValue], declared: Mapping[str, AttributeType]) -> str:
    """Return the attributes as JSON text; raise InvalidBody with all that is wrong with them."""
    if len(given) > ATTRIBUTES:
        raise TooLarge(f"there are {len(given)} attributes, the limit is {ATTRIBUTES}", "/attributes")
    faults: list[Fault] = []
    for name, value in given.items():
        kind = declared.get(name)
        wrong = _name_fault(name) or (
            declared_attributes.problem(kind, value) if kind else _undeclared_fault(value)
        )
        if wrong:
            faults.append({"pointer": f"/attributes/{escape(name)}", "detail": wrong})
    if faults:
        raise InvalidBody(faults)
    text = orjson.dumps(given)
    if len(text) > ATTRIBUTES_BYTES:
        raise TooLarge(
            f"the attributes have {len(text):,} bytes, the limit is {ATTRIBUTES_BYTES:,}", "/attributes"
        )
    return text.decode()


def _name_fault(name: str) -> str | None:
    if 0 < len(name) <= ATTRIBUTE_NAME_CHARACTERS:
        return None
    return f"an attribute's name has 1 to {ATTRIBUTE_NAME_CHARACTERS} characters"


def _undeclared_fault(value: JsonValue) -> str | None:
    if isinstance(value, dict):
        return "must be a scalar or a list of scalars, not an object"
    if not isinstance(value, list):
        return None
    if len(value) > ATTRIBUTE_VALUES:
        return f"has {len(value)} entries, the limit is {ATTRIBUTE_VALUES}"
    if any(isinstance(entry, dict | list) for entry in value):
        return "must be a scalar or a list of scalars, not a list of lists or objects"
    return None


def _content_hash(document: Document, ready: Ready | None) -> bytes:
    """Return the SHA-256 of all that makes one version different from another."""
    content = [document.text, document.title, document.uri, document.attributes]
    digest = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
    if ready:
        digest.update(orjson.dumps([(span.start, span.end) for span in ready.spans]))
        digest.update(ready.raw)
    return digest.digest()


# --- ready vectors -----------------------------------------------------------------------------


def _ready(line: Line, embedding: Embedding) -> Ready | None:
    if line.chunks is None:
        if line.model is not None:
            raise InvalidInput("a line that names a model brings its chunks too", "/chunks")
        return None
    if line.model is None:
        raise InvalidInput("a line with chunks names the model that made their vectors", "/model")
    if line.model != embedding.model:
        raise Conflict(f"the vectors are of {line.model}, and {embedding.model} serves")
    spans, made = [], []
    for number, chunk in enumerate(line.chunks):
        at = f"/chunks/{number}"
        if not isinstance(chunk, dict) or chunk.keys() != {"span", "vector"}:
            raise InvalidInput("a chunk is an object with span and vector", at)
        spans.append(_span(chunk["span"], len(line.text), f"{at}/span"))
        made.append(vectors.decode(chunk["vector"], embedding.dimension, f"{at}/vector"))
    return Ready(tuple(spans), b"".join(made))


def _span(value: Any, length: int, pointer: str) -> Span:
    if not (type(value) is list and len(value) == 2 and type(value[0]) is type(value[1]) is int):
        raise InvalidInput("a span is a list of two whole numbers, [a, b)", pointer)
    start, end = value
    if not 0 <= start < end <= length:
        raise InvalidInput(f"[{start}, {end}) is no span of a text of {length:,} code points", pointer)
    return Span(start, end)


def stacked(ready: Iterable[Ready], dimension: int) -> npt.NDArray[np.float32]:
    """Return all vectors in order, of the shape (chunks, dimension)."""
    raw = b"".join(one.raw for one in ready)
    return np.frombuffer(raw, "<f4").astype(np.float32, copy=False).reshape(-1, dimension)


def unusable(writes: Sequence[Write], embedding: Embedding) -> dict[str, InvalidInput]:
    """Return what is wrong with the ready vectors of some documents, by their ids."""
    bringing = [(write.id, write.ready) for write in writes if write.ready]
    if not bringing:
        return {}
    wrong = vectors.unusable(stacked((ready for _, ready in bringing), embedding.dimension), embedding)
    if not wrong:
        return {}
    places = [(id_, number) for id_, ready in bringing for number in range(len(ready.spans))]
    found: dict[str, InvalidInput] = {}
    for row, why in wrong.items():
        id_, number = places[row]
        found.setdefault(id_, InvalidInput(why, f"/chunks/{number}/vector"))
    return found
