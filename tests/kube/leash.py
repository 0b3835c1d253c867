"""Runs a command that never outlives the process that started it.

The leash is a small process between the two. It ends the command's whole process group when it is
told to (SIGTERM), and when its own parent has gone away, however that came about: SIGKILL too. It
runs alone in a session of its own, so that Ctrl-C in a terminal reaches only the parent, which then
stops its commands in the order it wants. Should the leash itself be killed, Linux kills the command.

Usage: leash.py PARENT_PID FOLDER AFTERWARDS COMMAND… - FOLDER, when not empty, is removed if the parent
goes away without having told the leash to stop. AFTERWARDS is a list in JSON: when it is not empty, the
command that the leash runs when the other has ended, however that came about.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_POLL_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1


def start(
    command: Sequence[str | Path],
    output: IO[bytes],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    remove_if_orphaned: Path | None = None,
    afterwards: Sequence[str | Path] = (),
) -> subprocess.Popen[bytes]:
    """Start `command` on a leash held by this process; both its streams go to `output`.

    `afterwards` is a command that clears away what the first may leave behind.
    """
    leash = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(remove_if_orphaned or "")]
    return subprocess.Popen(
        [*leash, json.dumps([*map(str, afterwards)]), *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )


def stop(*processes: subprocess.Popen[bytes]) -> None:
    """Kill what these leashes hold, and return when all of it is gone."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _spawn(command: list[str]) -> int:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    leash = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores, and exec would keep
        if libc:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == leash:
            os.execvp(command[0], command)  # noqa: S606 - what it is for
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def _hold(parent: int, command: list[str]) -> tuple[int, bool]:
    """Run `command` until it or its reason ends: its exit code, and whether the parent is gone."""
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = _spawn(command)
    # The child is not reaped before its group is killed: until then nobody else can get its number.
    exited = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not told and os.getppid() == parent and os.waitid(os.P_PID, child, exited) is None:
        if select.select([wake], [], [], _POLL_SECONDS)[0]:
            os.read(wake, 512)
    orphaned = os.getppid() != parent
    # The child itself too: it may not have made its group yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), orphaned


def _main(arguments: Sequence[str]) -> int:
    parent, folder, afterwards, *command = arguments
    code, orphaned = _hold(int(parent), command)
    if clear := json.loads(afterwards):
        subprocess.run(clear, check=False)
    if orphaned and folder:
        shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
