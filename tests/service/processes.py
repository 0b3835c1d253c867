"""The service and the worker as processes of their own, on a leash."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from kube import leash
from service.made import Made

_PATIENCE_SECONDS = 60.0
_PROGRAM = "import os; from polaris.settings import {0} as S; from {1} import {2}; {2}(S.load(os.environ))"
_PROGRAMS = {
    "service": _PROGRAM.format("ServiceSettings", "polaris_service.app", "run"),
    "worker": _PROGRAM.format("WorkerSettings", "polaris_service.worker", "run_worker"),
}


class Program:
    """A process that listens on a port that it chose."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path, begin: int) -> None:
        self._popen = popen
        self._log = log
        self._begin = begin
        self.tls = False
        self.port = self._listening()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._popen.pid).children()[0]

    def _listening(self) -> int:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for line in self.log().splitlines():
                with contextlib.suppress(ValueError, KeyError):
                    if (event := json.loads(line))["event"] == "listening":
                        self.tls = event["tls"]
                        return int(event["port"])
            assert self._popen.poll() is None, self.log()
            time.sleep(0.02)
        raise AssertionError(self.log())

    def log(self) -> str:
        return self._log.read_bytes()[self._begin :].decode(errors="replace")

    def kill(self) -> None:
        """Kill -9, and return when it is gone."""
        leash.stop(self._popen)

    def terminate(self) -> None:
        """SIGTERM, as Kubernetes sends it."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Return its exit status."""
        return self._popen.wait(_PATIENCE_SECONDS)


@contextlib.contextmanager
def running(
    program: str, made: Made, folder: Path, variables: Mapping[str, str] | None = None, **settings: str
) -> Iterator[Program]:
    """Run a program until the context ends; it is killed then."""
    purpose = "query" if program == "service" else "worker"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("POLARIS_")},
        "POLARIS_DATABASE_SECRET": str(made.secrets[purpose].folder),
        "POLARIS_PORT": "0",
        "POLARIS_METRICS_PORT": "0",
        "POLARIS_AUTH": "none",
        **(variables or {}),
        **{f"POLARIS_{key.upper()}": value for key, value in settings.items()},
    }
    log = folder / f"{program}.log"
    with log.open("ab") as output:
        begin = output.tell()
        popen = leash.start([sys.executable, "-c", _PROGRAMS[program]], output, env=environment)
        try:
            yield Program(popen, log, begin)
        finally:
            leash.stop(popen)
