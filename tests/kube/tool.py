"""How the tests run command line tools."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


class ToolError(Exception):
    """A tool failed; the message says which call, and what it said."""


def run(
    command: list[str | Path],
    environment: Mapping[str, str],
    *,
    stdin: str | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end; raises ToolError when it fails, unless `check` is False."""
    done = subprocess.run(command, env=environment, input=stdin, text=True, capture_output=True, check=False)
    if check and done.returncode:
        shown = " ".join(map(str, [Path(command[0]).name, *command[1:]]))
        raise ToolError(f"{shown} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done
