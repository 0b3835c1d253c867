"""The program `polaris` as a person runs it."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import structlog

from polaris_cli import main


def environment(**variables: str) -> dict[str, str]:
    """An environment in which no setting of this machine's user counts."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "POLARIS_CACHE" or not name.startswith(("POLARIS_", "PG"))
    }
    return {**kept, "PYTHONWARNINGS": "error", "KUBECONFIG": "/nowhere", **variables}


class Done(NamedTuple):
    """What a run of the program came to."""

    code: int
    out: str
    err: str


def polaris(
    *arguments: str | Path,
    timeout: float = 60,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Done:
    """Run the program to its end, in a process of its own."""
    done = subprocess.run(
        command(*arguments),
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=environment(**(variables or {})),
    )
    return Done(done.returncode, done.stdout, done.stderr)


def here(*arguments: str | Path, variables: Mapping[str, str] | None = None) -> Done:
    """Run the program in this process: quick, for commands that do not stay."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), _as_in_a_process(environment(**(variables or {}))):
        given, debug = main.take_debug([str(argument) for argument in arguments])
        code = main.run(given, debug=debug)
    return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def _as_in_a_process(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the environment, and undo what a program does to it and to logging."""
    before, handlers, level = dict(os.environ), logging.root.handlers[:], logging.root.level
    try:
        os.environ.clear()
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        structlog.reset_defaults()


def command(*arguments: str | Path) -> list[str]:
    """The program with arguments, in this Python."""
    return [sys.executable, "-m", "polaris_cli.main", *map(str, arguments)]
