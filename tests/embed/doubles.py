"""A provider for tests of everything else: fast, deterministic, and similar texts are near.

`python -m embed.doubles --port 9000 --dimension 64` serves it as `polaris embedder` serves the model;
`serving(HashedProvider())` does so in a thread of the test's own process.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
import sys
import threading
import time
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import httpx
import numpy as np
import uvicorn

from kube import leash
from polaris.errors import EmbedderRefused
from polaris_service.embed.models import final_texts
from polaris_service.embed.provider import Kind, OfferedModel, Provider, Vectors, check_texts
from polaris_service.embed.server import create_app

_WORDS = re.compile(r"\w+|[^\w\s]")
MAX_TOKENS = 512
_READY_SECONDS = 60  # repacking the real model takes 2 s, on a busy machine 20


class HashedProvider:
    """Words and their trigrams, hashed to the dimensions of a vector of length 1."""

    def __init__(self, dimension: int = 64, model: str = "hashed", name: str = "default") -> None:
        assert 32 <= dimension <= 512
        self.name = name
        self.offered = OfferedModel(model, "1", dimension, MAX_TOKENS)
        self.embedded = 0
        """Texts embedded so far, for tests that count."""

    async def models(self) -> list[OfferedModel]:
        return [self.offered]

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        self._check(model, texts)
        self.embedded += len(texts)
        dimension = self.offered.dimension
        vectors = np.zeros((len(texts), dimension), np.float32)
        for number, text in enumerate(final_texts(model, texts, kind)):
            # An empty text has a direction too.
            vectors[number, 0] = 0.05
            for word in _words(text)[:MAX_TOKENS]:
                np.add.at(vectors[number], *_features(word, dimension))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    async def count_tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        self._check(model, texts)
        return [len(_words(text)) for text in texts]

    async def close(self) -> None:
        pass

    def _check(self, model: str, texts: Sequence[str]) -> None:
        if model != self.offered.model:
            raise EmbedderRefused(f"there is no model {model} here")
        check_texts(texts)


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.casefold())
    return _WORDS.findall("".join(c for c in plain if not unicodedata.combining(c)))


@lru_cache(maxsize=65536)
def _features(word: str, dimension: int) -> tuple[list[int], list[float]]:
    """Return where a word goes and with what weight: itself, and its trigrams for its inflections."""
    framed = f"<{word}>"
    parts = [word, *(framed[i : i + 3] for i in range(len(framed) - 2))]
    hashes = [zlib.crc32(part.encode()) for part in parts]
    weights = [0.7, *[1 / (len(parts) - 1) ** 0.5] * (len(parts) - 1)]
    # Words that are in every sentence say little.
    scale = 0.2 if len(word) < 4 else 1.0
    signed = [(scale if h & 1 else -scale) * weight for h, weight in zip(hashes, weights, strict=True)]
    return [(h >> 1) % dimension for h in hashes], signed


@contextlib.contextmanager
def serving(provider: Provider) -> Iterator[str]:
    """Serve a provider on a free port by a thread, and yield the server's address once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(_config(provider))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        try:
            _wait_until_ready(url)
            yield url
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def process(port: int, folder: Path, dimension: int = 64) -> Iterator[None]:
    """Serve a HashedProvider by a process of its own that dies with the context: SIGKILL, no goodbye."""
    command = [sys.executable, "-m", "embed.doubles", "--port", str(port), "--dimension", str(dimension)]
    with (folder / f"embedder-{port}.log").open("ab") as output:
        started = leash.start(command, output, cwd=Path(__file__).parent.parent)
        try:
            yield
        finally:
            leash.stop(started)


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while httpx.get(f"{url}/readyz", timeout=_READY_SECONDS).status_code != 200:
        assert time.monotonic() < deadline, "the embedding server does not get ready"
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


def _config(provider: Provider, port: int = 0) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(provider), host="127.0.0.1", port=port, ws="none", log_config=None, access_log=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--model", default="hashed")
    given = parser.parse_args()
    uvicorn.Server(_config(HashedProvider(given.dimension, given.model), given.port)).run()


if __name__ == "__main__":
    main()
