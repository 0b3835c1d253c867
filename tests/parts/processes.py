"""Ending processes in tests, and waiting for their end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from polaris_cli.up.process import has_ended

Part = LocalPostgres | LocalOpenBao

_PATIENCE_SECONDS = 60.0


def kill(*processes: psutil.Process) -> None:
    """Kill with -9, and return when it is done."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait(processes)


def wait(processes: Sequence[psutil.Process]) -> None:
    """Return when all have ended; AssertionError with those that do not."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while alive := [process for process in processes if not has_ended(process)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.01)


def crash(part: Part, *others: psutil.Process) -> None:
    """Kill the process of a part, and others, and return when its owner knows."""
    kill(psutil.Process(part.pid), *others)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while part.poll() is None:  # a process with many threads may take a moment more
        assert time.monotonic() < deadline
        time.sleep(0.01)


def family(pid: int | None) -> list[psutil.Process]:
    """Return a process and all below it."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]
