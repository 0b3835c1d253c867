"""What search and answer take and give, for the OpenAPI document.

Bodies are read by `search.requests` and `answer.answerer`, and written by hand for speed; a test holds
these descriptions against what those really take and give.
"""

from __future__ import annotations

from typing import Any

from polaris_service.answer.answerer import DEFAULT_K as ANSWER_K
from polaris_service.answer.answerer import MAX_K
from polaris_service.search.requests import DEFAULT_K, MAX_QUERY_CHARACTERS, Limits

Schema = dict[str, Any]

_SPAN: Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0},
    "minItems": 2,
    "maxItems": 2,
    "description": "[a, b) in Unicode code points of that version's text.",
}
_NULLABLE_TEXT: Schema = {"type": ["string", "null"]}
_TIMINGS: Schema = {"type": "object", "additionalProperties": {"type": "number"}}
_DEGRADED: Schema = {
    "type": "array",
    "items": {"type": "string"},
    "description": "What was left out to keep a deadline or a limit.",
}
_GENERATION: Schema = {"type": "integer", "description": "The generation that answered."}


def _object(properties: Schema, optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


FOUND: Schema = _object(
    {
        "hits": {
            "type": "array",
            "items": _object(
                {
                    "document": {"type": "string"},
                    "version": {"type": "integer"},
                    "chunk": {"type": "integer"},
                    "span": _SPAN,
                    "score": {"type": "number", "description": "Higher is better."},
                    "text": {"type": "string"},
                    "title": _NULLABLE_TEXT,
                    "uri": _NULLABLE_TEXT,
                    "attributes": {"type": "object"},
                }
            ),
        },
        "generation": _GENERATION,
        "strategy": {"type": "string", "enum": ["exact", "hnsw", "iterative"]},
        "degraded": _DEGRADED,
        "timings_ms": _TIMINGS,
        "explain": {"type": "object"},
    },
    optional=("explain",),
)
ANSWERED: Schema = _object(
    {
        "answer": {"type": "string", "description": "Its markers [n] are those of the citations."},
        "refused": {"type": "boolean", "description": "Nothing in the index answers the question."},
        "citations": {
            "type": "array",
            "items": _object(
                {
                    "marker": {"type": "integer"},
                    "document": {"type": "string"},
                    "version": {"type": "integer"},
                    "span": _SPAN,
                    "sha256": {"type": "string", "description": "Of the text in UTF-8, hexadecimal."},
                    "text": {"type": "string"},
                }
            ),
        },
        "generator": {"type": "string"},
        "generation": _GENERATION,
        "degraded": _DEGRADED,
        "timings_ms": _TIMINGS,
    }
)


def _k(most: int, default: int) -> Schema:
    return {"type": "integer", "minimum": 1, "maximum": most, "default": min(default, most)}


def _shared(limits: Limits) -> Schema:
    return {
        "filter": {
            "type": "object",
            "description": "and, or, not, and eq, ne, gt, gte, lt, lte, in: [attribute, value]. At most"
            f" {limits.filter.depth} deep, with {limits.filter.terms} comparisons and list entries.",
        },
        "tenant": {"type": "string", "description": "Refused where the index has no tenants."},
        "after_sequence": {
            "type": "integer",
            "minimum": 0,
            "description": "Wait until what was written up to this sequence can be found.",
        },
        "timeout_ms": {"type": "integer", "minimum": 1, "description": f"At most {limits.seconds * 1000:g}."},
    }


def search(limits: Limits) -> Schema:
    """Return the body of a search. Exactly one of query and vector is given."""
    properties = {
        "query": {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARACTERS},
        "vector": {
            "oneOf": [
                {"type": "array", "items": {"type": "number"}},
                {"type": "string", "format": "byte", "description": "Little-endian float32."},
            ]
        },
        "k": _k(limits.max_k, DEFAULT_K),
        "mode": {"type": "string", "enum": ["dense"]},
        **_shared(limits),
        "explain": {"type": "boolean", "default": False},
        "generation": {
            "type": "integer",
            "minimum": 1,
            "description": "What the vector was made for; 409 with the model now served when it is gone.",
        },
    }
    return _object(properties, optional=tuple(properties))


def answer(limits: Limits) -> Schema:
    """Return the body of a question."""
    properties = {
        "question": {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARACTERS},
        "k": _k(min(limits.max_k, MAX_K), ANSWER_K),
        **_shared(limits),
        "stream": {"type": "boolean", "default": False},
    }
    return _object(properties, optional=tuple(name for name in properties if name != "question"))


def json_request(schema: Schema) -> Schema:
    """Return a request body of this schema."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def json_response(description: str, schema: Schema) -> Schema:
    """Return a response of this schema."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}
