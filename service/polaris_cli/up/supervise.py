"""Keeps the parts of `polaris up` running, and takes all of them down again.

::

    with Supervisor(folder, report) as supervisor:
        supervisor.start(postgres)          # returns when it is ready, raises where it is not
        …                                   # steps of your own, between parts
        supervisor.start(Process(…))
        supervisor.watch()                  # until SIGINT, SIGTERM or SIGHUP

Call it from the main thread only: signals arrive there, and children die with the thread that
started them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from polaris.errors import PolarisError
from polaris_cli.up.process import Lock

State = Literal["starting", "ready", "failed", "died", "restarting", "stopping", "stopped"]
Report = Callable[[str, State, str], None]
"""Called with the part's name, what it does now, and a detail (may be empty)."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LOOK_SECONDS = 0.2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_STEADY_SECONDS = 60.0


class Part(Protocol):
    """Something that runs beside us: `Process`, `LocalPostgres`, `LocalOpenBao`."""

    @property
    def name(self) -> str:
        """What it is called in reports."""
        ...

    def start(self) -> None:
        """Start it and return once it is ready; raise PolarisError where that fails."""
        ...

    def spawn(self) -> None:
        """Start it again, without waiting."""
        ...

    def ready(self) -> bool:
        """Tell at once whether it is ready."""
        ...

    def poll(self) -> int | None:
        """Return its exit status once it has ended, None while it runs."""
        ...

    def stop(self) -> None:
        """End it within a bounded time; nothing happens where it is not running."""
        ...


def pause(deaths: int) -> float:
    """Return the seconds to wait before a restart, after so many deaths in a row."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(deaths - 1, 16))


@dataclass
class _Watched:
    part: Part
    since: float
    """When it was started last, on the monotonic clock."""
    deaths: int = 0
    """In a row, without a steady run between."""
    due: float | None = None
    """When it is to be restarted; None while it runs."""
    awaited: bool = False
    """Restarted, and not seen ready since."""


class Supervisor:
    """Starts parts in order, restarts those that die, stops them in reverse order."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder = folder.absolute()
        self._report = report
        self._lock = Lock(self.folder / "up.lock", "polaris up")
        self._watched: list[_Watched] = []
        self._stops = ExitStack()  # calls them all, in reverse order, whatever one of them raises
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Lock the folder (Conflict with the pid of who has it), and listen to signals.

        Each raises KeyboardInterrupt in whatever the main thread does: a stop may come at any step.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        self._handlers = {each: signal.signal(each, signal.default_int_handler) for each in STOP_SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop all parts; further signals do not cut that short, it is bounded as it is."""
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        try:
            self._stops.close()
        finally:
            for each, handler in self._handlers.items():
                signal.signal(each, handler)
            self._lock.release()

    def start(self, part: Part) -> None:
        """Start a part and keep it running from now on; PolarisError where it does not come up."""
        self._report(part.name, "starting", "")
        self._watched.append(_Watched(part, since=time.monotonic()))
        self._stops.callback(self._stop, part)
        try:
            part.start()
        except PolarisError as error:
            self._report(part.name, "failed", str(error))
            raise
        self._report(part.name, "ready", "")

    def watch(self) -> None:
        """Restart what dies, until a signal says stop."""
        try:
            while True:
                for watched in self._watched:
                    self._look_after(watched, time.monotonic())
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            return

    def _look_after(self, watched: _Watched, now: float) -> None:
        if watched.due is not None:
            if now >= watched.due:
                self._restart(watched, now)
        elif (status := watched.part.poll()) is not None:
            self._bury(watched, now, f"exit status {status}")
        elif watched.awaited and watched.part.ready():
            watched.awaited = False
            self._report(watched.part.name, "ready", "")

    def _restart(self, watched: _Watched, now: float) -> None:
        self._report(watched.part.name, "restarting", "")
        watched.since, watched.due, watched.awaited = now, None, True
        try:
            watched.part.spawn()
        except (PolarisError, OSError) as error:
            self._bury(watched, now, str(error))

    def _bury(self, watched: _Watched, now: float, why: str) -> None:
        watched.deaths = 1 if now - watched.since > _STEADY_SECONDS else watched.deaths + 1
        seconds = pause(watched.deaths)
        watched.due = now + seconds
        self._report(watched.part.name, "died", f"{why}; restart in {seconds:g} s")

    def _stop(self, part: Part) -> None:
        try:
            self._report(part.name, "stopping", "")
        finally:  # a report may fail: the terminal may be gone
            part.stop()
        self._report(part.name, "stopped", "")
