"""The body of a search and its vector: what is refused, and where."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from polaris.errors import InvalidInput, TooLarge
from polaris.spec import Embedding
from polaris_service import vectors
from polaris_service.search.requests import Limits, parse

pytestmark = pytest.mark.unit

REFUSED: list[tuple[str, Any, str]] = [
    ("a list", [], ""),
    ("text", "query", ""),
    ("null", None, ""),
    ("neither query nor vector", {"k": 3}, ""),
    ("both", {"query": "x", "vector": [1]}, ""),
    ("an unknown field", {"query": "x", "filters": {}}, "/filters"),
    ("an unknown field with a slash", {"query": "x", "a/b~": 1}, "/a~1b~0"),
    ("a query that is no text", {"query": 7}, "/query"),
    ("an empty query", {"query": ""}, "/query"),
    ("a blank query", {"query": " \n\t"}, "/query"),
    ("k of 0", {"query": "x", "k": 0}, "/k"),
    ("k of a thousand million", {"query": "x", "k": 10**9}, "/k"),
    ("k of -1", {"query": "x", "k": -1}, "/k"),
    ("k of a half", {"query": "x", "k": 0.5}, "/k"),
    ("k as text", {"query": "x", "k": "10"}, "/k"),
    ("k of true", {"query": "x", "k": True}, "/k"),
    ("an unknown mode", {"query": "x", "mode": "magic"}, "/mode"),
    ("a mode to come", {"query": "x", "mode": "hybrid"}, "/mode"),
    ("a mode that is no text", {"query": "x", "mode": 1}, "/mode"),
    ("a tenant", {"query": "x", "tenant": "a"}, "/tenant"),
    ("no time", {"query": "x", "timeout_ms": 0}, "/timeout_ms"),
    ("a negative sequence", {"query": "x", "after_sequence": -1}, "/after_sequence"),
    ("65 bits of sequence", {"query": "x", "after_sequence": 2**63}, "/after_sequence"),
    ("explain as text", {"query": "x", "explain": "yes"}, "/explain"),
    ("generation 0", {"query": "x", "generation": 0}, "/generation"),
]


@pytest.mark.parametrize(("body", "pointer"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_body_that_is_wrong_is_refused_with_a_pointer(body: Any, pointer: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(body, Limits())
    assert caught.value.pointer == pointer


def test_a_query_that_is_too_long_is_too_large() -> None:
    with pytest.raises(TooLarge, match="8193 characters, at most 8192") as caught:
        parse({"query": "x" * 8193}, Limits())
    assert caught.value.pointer == "/query"


def test_what_is_not_said_has_its_default_and_null_is_not_said() -> None:
    nothing = dict.fromkeys(("k", "mode", "filter", "tenant", "after_sequence", "timeout_ms", "explain"))
    assert parse({"query": "x", **nothing}, Limits()) == parse({"query": "x"}, Limits())
    assert parse({"query": "x"}, Limits()).k == 10
    assert parse({"query": "x"}, Limits(max_k=5)).k == 5
    assert parse({"query": "x", "mode": "dense", "k": 1000}, Limits()).k == 1000


def test_a_caller_can_ask_for_less_time_and_not_for_more() -> None:
    assert parse({"query": "x", "timeout_ms": 250}, Limits(seconds=30)).seconds == 0.25
    assert parse({"query": "x", "timeout_ms": 10**9}, Limits(seconds=30)).seconds == 30


# --- vectors ---


def embedding(metric: str = "cosine", kind: str = "halfvec", dimension: int = 3) -> Embedding:
    return Embedding.model_validate({"model": "m", "dimension": dimension, "metric": metric, "type": kind})


def encoded(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, dtype="<f4").tobytes()).decode()


WRONG_VECTORS: list[tuple[str, Any, str, str, str]] = [
    ("too short", [1.0, 2.0], "cosine", "halfvec", "has 2 dimensions"),
    ("too long", [1.0] * 4, "cosine", "halfvec", "has 4 dimensions"),
    ("empty", [], "l2", "vector", "has 0 dimensions"),
    ("text among numbers", [1, "2", 3], "cosine", "halfvec", "entry 1 is not a number"),
    ("true among numbers", [1, 2, True], "cosine", "halfvec", "entry 2 is not a number"),
    ("null among numbers", [None, 2, 3], "cosine", "halfvec", "entry 0 is not a number"),
    ("not a number", [1, float("nan"), 3], "cosine", "halfvec", "entry 1 is not a finite"),
    ("infinite", [1, 2, float("inf")], "l2", "vector", "entry 2 is not a finite"),
    ("beyond float32", [1e39, 0, 0], "l2", "vector", "entry 0 is not a finite"),
    ("beyond a double", [10**400, 0, 0], "l2", "vector", "beyond float32"),
    ("beyond a halfvec", [70000.0, 0, 0], "l2", "halfvec", "beyond 65504"),
    ("squared beyond float32", [1e30, 0, 0], "ip", "vector", "too long"),
    ("zero", [0, 0, 0], "cosine", "vector", "is zero"),
    ("zero as a halfvec", [1e-9, 0, 0], "cosine", "halfvec", "is zero"),
    ("an object", {"0": 1}, "cosine", "halfvec", "list of numbers"),
    ("a number", 1.0, "cosine", "halfvec", "list of numbers"),
    ("no base64", "zero one two", "cosine", "halfvec", "not base64"),
    ("base64 of accents", "é", "cosine", "halfvec", "not base64"),
    ("base64 of two", encoded(1, 2), "cosine", "halfvec", "has 8 bytes"),
    ("base64 of NaN", encoded(1, float("nan"), 2), "cosine", "halfvec", "entry 1 is not a finite"),
    ("base64 of infinity", encoded(float("-inf"), 1, 2), "l2", "vector", "entry 0 is not a finite"),
]


@pytest.mark.parametrize(
    ("value", "metric", "kind", "words"), [r[1:] for r in WRONG_VECTORS], ids=[r[0] for r in WRONG_VECTORS]
)
def test_a_vector_that_the_index_cannot_compare_is_refused(
    value: Any, metric: str, kind: str, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        vectors.parse(value, embedding(metric, kind))
    assert caught.value.pointer == "/vector"


def test_numbers_and_base64_say_the_same() -> None:
    listed = vectors.parse([1, -2.5, 3e-3], embedding())
    assert listed.dtype == np.float32
    assert np.array_equal(listed, vectors.parse(encoded(1, -2.5, 3e-3), embedding()))


def test_zero_has_a_distance_where_direction_does_not_count() -> None:
    assert vectors.parse([0, 0, 0], embedding("l2")).tolist() == [0, 0, 0]
    assert vectors.parse([0, 0, 0], embedding("ip")).tolist() == [0, 0, 0]
