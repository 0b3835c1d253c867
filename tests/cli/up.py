"""`polaris up` on a data folder, as a person runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

from cli.program import Done, command, environment, here
from docs.pages import ROOT
from polaris_cli.up import ports


class Up:
    """One of them, started and stopped."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = ports.any_free()
        self.address = f"http://127.0.0.1:{self.port}"
        self.command = command("up", "--data", data, "--port", str(self.port))
        self._log = data.parent / "up.log"
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start it, and do not wait."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(PYTHONWARNINGS="default"),
                start_new_session=True,
            )

    def start(self, seconds: float = 120) -> str:
        """Start it; return what it said once it is ready."""
        begin = self._log.stat().st_size if self._log.exists() else 0
        self.begin()
        assert self._process is not None
        until = time.monotonic() + seconds
        while True:
            said = self._log.read_bytes()[begin:].decode()
            if "POLARIS is ready" in said:
                return said
            assert self._process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def processes(self) -> list[psutil.Process]:
        """All that runs of it."""
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; return its exit code. Nothing of it runs any more."""
        assert self._process is not None
        running = self.processes()
        if number == signal.SIGINT:
            os.killpg(self.pid, number)  # as a terminal sends it
        else:
            self._process.send_signal(number)
        code = self._process.wait(60)
        assert [process for process in running if process.is_running()] == []
        return code

    def kill(self) -> None:
        """SIGKILL, to every process of it."""
        assert self._process is not None
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait(10)

    def end(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            try:
                os.kill(self.pid, signal.SIGTERM)
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()

    def polaris(self, *arguments: str | Path) -> Done:
        """Run another command against it."""
        variables = {"POLARIS_SERVER": self.address, "POLARIS_DATA": str(self.data)}
        return here(*arguments, variables=variables)
