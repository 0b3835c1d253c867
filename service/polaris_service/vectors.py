"""Vectors: from JSON to what the driver sends in binary, and scores from distances."""

from __future__ import annotations

import binascii
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from polaris.errors import InvalidInput
from polaris.spec import Embedding, Metric, VectorType

Vector: TypeAlias = "npt.NDArray[np.float32]"
"""One dimension, native float32."""
Held: TypeAlias = "npt.NDArray[np.float16] | Vector"
"""As PostgreSQL holds it."""

# pgvector sums squares in float32: beyond these a distance is infinite or not a number.
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


def parse(value: Any, embedding: Embedding, pointer: str = "/vector") -> Vector:
    """Return a vector given as a list of numbers or as base64 of little-endian float32.

    Raises InvalidInput where it is not one that the index can compare (see `check`).
    """
    vector = np.frombuffer(decode(value, embedding.dimension, pointer), "<f4").astype(np.float32)
    wrong = check(vector, embedding)
    if wrong:
        raise InvalidInput(wrong, pointer)
    return vector


def decode(value: Any, dimension: int, pointer: str = "/vector") -> bytes:
    """Return a vector as the bytes of little-endian float32; `unusable` looks at its numbers.

    Raises InvalidInput where it is not one of that dimension.
    """
    if isinstance(value, str):
        return _from_base64(value, dimension, pointer)
    if isinstance(value, list):
        return _from_numbers(value, dimension, pointer)
    raise InvalidInput("must be a list of numbers, or base64 of little-endian float32", pointer)


def _from_base64(text: str, dimension: int, pointer: str) -> bytes:
    try:
        # Strict as base64.b64decode(validate=True) is, without its regular expression: a tenth of the time.
        raw = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # binascii.Error, or what is not ASCII
        raise InvalidInput("is not base64", pointer) from None
    if len(raw) != 4 * dimension:
        raise InvalidInput(
            f"has {len(raw)} bytes, and {dimension} dimensions of float32 have {4 * dimension}", pointer
        )
    return raw


def _from_numbers(numbers: list[Any], dimension: int, pointer: str) -> bytes:
    if len(numbers) != dimension:
        raise InvalidInput(f"has {len(numbers)} dimensions, the index has {dimension}", pointer)
    # Exact types: a bool is an int to isinstance, and numpy would take the string "1" for a number.
    kinds = set(map(type, numbers))
    if not kinds <= {int, float}:
        at = next(i for i, number in enumerate(numbers) if type(number) not in (int, float))
        raise InvalidInput(f"entry {at} is not a number", pointer)
    try:
        with np.errstate(over="ignore"):
            return np.array(numbers, dtype=np.float64).astype("<f4").tobytes()
    except OverflowError:
        raise InvalidInput("has an entry beyond float32", pointer) from None


def check(vector: Vector, embedding: Embedding) -> str | None:
    """Return why the index cannot compare with this vector; None where it can.

    What counts is the vector as PostgreSQL will hold it: a half-precision number ends at 65,504, and
    what is below 6e-8 becomes zero.
    """
    if vector.shape != (embedding.dimension,):
        return f"has {vector.size} dimensions, the index has {embedding.dimension}"
    return unusable(vector[np.newaxis], embedding).get(0)


def unusable(rows: npt.NDArray[np.float32], embedding: Embedding) -> dict[int, str]:
    """Return why the index cannot compare with some of the rows, by their number; see `check`.

    `rows` has the shape (rows, dimension). All at once: one at a time costs twenty times that.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        held = rows.astype(np.float16) if embedding.type == VectorType.HALFVEC else rows
        wide = held.astype(np.float64)
        squares = np.einsum("rd,rd->r", wide, wide)
        # An entry that is not finite makes the sum so: one comparison is all that a right vector costs.
        right = (squares >= _SMALLEST) & (squares <= _LARGEST)
    found = {
        int(row): _why_not(rows[row], held[row], float(squares[row]), embedding.metric)
        for row in np.flatnonzero(~right)
    }
    return {row: why for row, why in found.items() if why}


def _why_not(vector: Vector, held: Held, square: float, metric: Metric) -> str | None:
    finite = np.isfinite(vector)
    if not finite.all():
        return f"entry {int(np.argmin(finite))} is not a finite number of float32"
    if not np.isfinite(held).all():
        return "has an entry beyond 65504, the largest of a halfvec"
    if square > _LARGEST:
        return "is too long: its squared length is beyond float32"
    if metric == Metric.COSINE:
        return "is zero, and has no direction that cosine could compare"
    return None


def score(distance: float, metric: Metric) -> float:
    """Return the score of a hit, higher is better.

    Cosine similarity (1 to -1); for l2 the distance with its sign changed; for ip the inner product
    (pgvector's own distance is the negative one).
    """
    return 1.0 - distance if metric == Metric.COSINE else -distance
