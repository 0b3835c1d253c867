"""How long `polaris up` takes to be ready, and what memory it takes when idle; downloads are there."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import psutil

from bench.figures import Figure, Goal, Report
from cli.up import Up
from parts import servers

BENCH = "up"
GOAL_SECONDS = Goal("≤", 20.0)
GOAL_MIB = Goal("≤", 1.2 * 1024)
_MIB = 2**20
# After a start everything has been busy; this long after it, it is idle.
_SETTLED_SECONDS = 10
_PROGRAMS = ("operator", "serve", "worker", "embedder")


def run(repetitions: int, report: Report) -> None:
    """Start it on an empty folder, then again after a stop and after a kill -9 of everything."""
    with servers.open_folder() as folder:
        up = Up(folder / "data")
        try:
            first = _seconds(up.start)
            stopped, killed = [], []
            for _ in range(repetitions):
                up.stop()
                stopped.append(_seconds(up.start))
                up.kill()
                killed.append(_seconds(up.start))
            time.sleep(_SETTLED_SECONDS)
            memory = _memory(up.processes())
        finally:
            up.end()
    report.add(
        Figure(BENCH, "first start, on an empty folder", "s", (first,)),
        Figure(BENCH, "start after a stop", "s", tuple(stopped), GOAL_SECONDS, by_most=True),
        Figure(BENCH, "start after kill -9 of everything", "s", tuple(killed), GOAL_SECONDS, by_most=True),
        *(Figure(BENCH, f"idle memory: {part}", "MiB", (size,)) for part, size in memory.items()),
        Figure(BENCH, "idle memory: all (PSS)", "MiB", (sum(memory.values()),), GOAL_MIB),
    )


def _seconds(start: Callable[[], object]) -> float:
    begun = time.perf_counter()
    start()
    return time.perf_counter() - begun


def _memory(processes: Iterable[psutil.Process]) -> dict[str, float]:
    """Return the proportional set size by part, in MiB, the largest first."""
    sizes: dict[str, float] = defaultdict(float)
    for process in processes:
        sizes[_part(process)] += process.memory_full_info().pss / _MIB
    return dict(sorted(sizes.items(), key=lambda entry: -entry[1]))


def _part(process: psutil.Process) -> str:
    named = [word for word in process.cmdline() if word in _PROGRAMS]
    return named[0] if named else {"python": "up"}.get(process.name().rstrip("3.1"), process.name())
