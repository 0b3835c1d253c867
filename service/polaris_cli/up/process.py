"""One child process: started, waited for, ended within a bounded time, never left behind.

What holds on Linux: a child gets a signal from the kernel when we die, however we die
(PR_SET_PDEATHSIG). It is tied to the *thread* that started the child, so start from the main one.
Everywhere: a child that outlived us is found by its pid file and ended before the next one starts.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import re
import signal
import subprocess  # nosec B404
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from polaris.errors import Conflict, Unavailable

LOG_LIMIT = 10 * 1024 * 1024
"""Bytes: a log beyond it is set aside (one older file is kept) when its process starts."""

_POLL_SECONDS = 0.02
_COMPLAINT = re.compile(r"\b(fatal|panic|error|[a-z]*exception|[a-z]+error)\b", re.IGNORECASE)
_PR_SET_PDEATHSIG = 1
# Loaded here, not between fork and exec, where only what is already there may be used.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Lock:
    """A file that one holder at a time has locked, with the holder's pid in it.

    The kernel lets go of it when the holder dies, so there are no stale locks.
    """

    def __init__(self, file: Path, what: str) -> None:
        self.file = file
        self.what = what
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take it, or keep it; raise Conflict with the holder's pid where another has it."""
        if self._descriptor is not None:
            return
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise Conflict(f"{self.what} already runs on {self.file.parent} (process {holder})") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; nothing happens where it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True)
class Ending:
    """How to end a process: each signal in turn, with the seconds that it is given."""

    steps: tuple[tuple[signal.Signals, float], ...] = (
        (signal.SIGTERM, 10.0),
        (signal.SIGKILL, 5.0),
    )
    on_our_death: signal.Signals = signal.SIGKILL
    """What the kernel sends when we die without ending it; nobody is there to send a second."""


@dataclass
class Process:
    """A command that runs beside us, with its log and pid in files of `folder`.

    `command` is asked again at each start, so it may choose a port. `ready` must answer at once.
    """

    name: str
    folder: Path
    command: Callable[[], Sequence[str]]
    prepare: Callable[[], None] = lambda: None
    """Called before each start, when nobody else can be running it."""
    ready: Callable[[], bool] = lambda: True
    again: Callable[[], bool] = lambda: False
    """Asked after a start that failed: is another worth while?"""
    environment: Mapping[str, str] | None = None
    """None: our own."""
    directory: Path | None = None
    """To run in; None: our own."""
    user: pwd.struct_passwd | None = None
    """Another user than our own to run as; only root may say so."""
    ending: Ending = field(default_factory=Ending)
    log_to_stdout: bool = False
    """Into our own output, which in a container is the log; else into `log_file`."""
    start_seconds: float = 60.0
    unavailable: type[Unavailable] = Unavailable
    """What is raised when it does not come up."""
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _log_start: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self._lock = Lock(self.folder / f"{self.name}.lock", self.name)
        self._pid_file = self.folder / f"{self.name}.pid"

    @property
    def log_file(self) -> Path:
        """Where its output goes, both streams."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The running child's, else None."""
        return self._child.pid if self._child is not None and self.poll() is None else None

    def start(self) -> None:
        """Start it and return once it is ready; raise `unavailable` with its last words else."""
        for tries_left in (2, 1, 0):
            try:
                self.spawn()
                self.wait_until(self.ready)
            except self.unavailable:
                if not tries_left or not self.again():
                    raise
            else:
                return

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds; where it dies or takes too long, end it and raise."""
        deadline = time.monotonic() + self.start_seconds
        try:
            while not condition():
                self._check_alive(deadline)
                time.sleep(_POLL_SECONDS)
        except BaseException:  # Ctrl-C too: nothing half started stays
            self.stop()
            raise

    def spawn(self) -> None:
        """Start it, unless it runs, without waiting; end first what a killed owner left running."""
        if self.pid is not None:
            return
        self._lock.acquire()
        try:
            self._end_leftover()
            self.prepare()
            log = self._open_log()
            try:
                self._child = self._popen(log)
            finally:
                os.close(log)
            created = psutil.Process(self._child.pid).create_time()
            self._pid_file.write_text(f"{self._child.pid} {created}\n")
        except BaseException:
            self.stop()
            raise

    def poll(self) -> int | None:
        """Return the exit status (negative: the signal) once it has ended, None while it runs."""
        if self._child is None:
            return 0
        status = self._child.poll()
        if status is not None:
            self._lock.release()
        return status

    def stop(self) -> None:
        """End it within the seconds that `ending` allows; nothing happens where it is not running."""
        if self._child is not None:
            for step, seconds in self.ending.steps:
                if self._child.poll() is not None:
                    break
                self._child.send_signal(step)
                with suppress(subprocess.TimeoutExpired):
                    self._child.wait(seconds)
            self._pid_file.unlink(missing_ok=True)
        self._lock.release()

    def last_words(self) -> str:
        """Return what its log last complained about since it started, and where to read on."""
        if self.log_to_stdout:
            return "its log, above, says why"
        lines = _tail(self.log_file, self._log_start).splitlines()
        complaints = [line for line in lines if _COMPLAINT.search(line)]
        words = (complaints or lines or ["it said nothing"])[-1]
        return f"{words.strip()} (log: {self.log_file})"

    def _check_alive(self, deadline: float) -> None:
        if self.poll() is not None:
            raise self.unavailable(f"{self.name} did not start: {self.last_words()}")
        if time.monotonic() > deadline:
            late = f"{self.name} was not ready after {self.start_seconds:.0f} s"
            raise self.unavailable(f"{late}: {self.last_words()}")

    def _popen(self, log: int) -> subprocess.Popen[bytes]:
        user = self.user
        return subprocess.Popen(  # noqa: S603
            list(self.command()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env=None if self.environment is None else dict(self.environment),
            user=user and user.pw_uid,
            group=user and user.pw_gid,
            extra_groups=[] if user else None,
            # A session of its own: Ctrl-C in the terminal is for us, who then stop in order.
            start_new_session=True,
            # After the change of user, which would clear it; one system call, so safe after fork.
            preexec_fn=_dies_with(os.getpid(), self.ending.on_our_death),  # noqa: PLW1509
        )

    def _end_leftover(self) -> None:
        """End the child of an owner that was killed. We hold the lock, so it has no owner."""
        with suppress(OSError, ValueError, psutil.Error):
            pid, created = self._pid_file.read_text().split()
            leftover = psutil.Process(int(pid))
            if abs(leftover.create_time() - float(created)) < 1:  # not another with the same pid
                end_process(leftover, self.ending)

    def _open_log(self) -> int:
        if self.log_to_stdout:
            return os.dup(1)
        self._rotate_log()
        log = os.open(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._log_start = os.fstat(log).st_size
        return log

    def _rotate_log(self) -> None:
        with suppress(FileNotFoundError):
            if self.log_file.stat().st_size > LOG_LIMIT:
                self.log_file.replace(self.log_file.with_suffix(".log.1"))


def calling(function: Callable[..., object], *arguments: str) -> list[str]:
    """Return the command that calls a function of a module with strings, in a Python of its own."""
    imported = f"from {function.__module__} import {function.__name__} as function"
    program = f"import sys; {imported}; function(*sys.argv[1:])"
    return [sys.executable, "-P", "-c", program, *arguments]


def end_process(process: psutil.Process, ending: Ending) -> None:
    """End a process that need not be our child; psutil.Error where we may not."""
    for step, seconds in ending.steps:
        if has_ended(process):
            return
        with suppress(psutil.NoSuchProcess):
            process.send_signal(step)
        deadline = time.monotonic() + seconds
        while not has_ended(process) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def has_ended(process: psutil.Process) -> bool:
    """Tell whether it is over, though its parent (in a container: nobody) may not have asked yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)


def _dies_with(parent: int, death: signal.Signals) -> Callable[[], None] | None:
    if _libc is None:
        return None
    prctl = _libc.prctl

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death), 0, 0, 0)
        if os.getppid() != parent:  # it died before we could ask to be told
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child


def _tail(file: Path, start: int, size: int = 8192) -> str:
    """Return the last `size` bytes of a file, nothing of it before `start`."""
    with suppress(FileNotFoundError), file.open("rb") as log:
        log.seek(max(start, os.fstat(log.fileno()).st_size - size))
        return log.read().decode(errors="replace")
    return ""
