"""The operator and many indexes: what it writes to the API server, its memory, and how long it takes.

**First sight**: the objects are made while the operator is down; then it starts, makes all of them
Ready, and has looked at all of them once more. **Restart**: it is stopped, started again, and has
looked at each twice; nothing had changed, so nothing is to be written. Writes are counted in the audit
log of the API server, those of the operator's own ServiceAccount only.

**Edits**: one object after the other is edited in place, and a watch says when its status is of the new
generation; then all are edited at once. **Idle**: nothing is done for a while, and nothing may be written;
the processor time of operator and PostgreSQL is what it costs to look after them.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cluster import NAMESPACE, Clustered, Memory, Processor, is_ready
from bench.figures import Figure, Goal, Report
from bench.local import BenchError, index_manifest, wait_for

BENCH = "operator"
MEMORY = Goal("≤", 150)
SEEN = Goal("≤", 5)
_WRITES_EACH = 2
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    indexes: int
    edits: int
    """One after the other."""
    idle_seconds: float


def run(system: Clustered, sizes: Sizes, report: Report) -> None:
    """Measure; the objects stay, and go with the cluster."""
    _sight_and_restart(system, sizes.indexes, report)
    _edits(system, sizes, report)
    _idle(system, sizes, report)


def _sight_and_restart(system: Clustered, indexes: int, report: Report) -> None:
    system.operator.stop()
    manifests = [index_manifest(f"fleet-{number}", NAMESPACE) for number in range(indexes)]
    items = {"apiVersion": "v1", "kind": "List", "items": manifests}
    system.cluster.kubectl("create", "-f", "-", input=json.dumps(items))
    before = system.cluster.writes()
    begun = time.perf_counter()
    system.operator.start()
    with Memory(system.operator_pid()) as at_first_sight:
        wait_for("all indexes to be Ready", lambda: _all_ready(system, indexes), _LONGEST_SECONDS)
        seconds = time.perf_counter() - begun
        _look_at_all(system, 1, indexes)
    first = system.cluster.writes() - before
    system.operator.stop()
    before = system.cluster.writes()
    system.operator.start()
    with Memory(system.operator_pid()) as at_restart:
        _look_at_all(system, 2, indexes)
    again = system.cluster.writes() - before
    report.add(
        Figure(BENCH, "indexes", "", (indexes,)),
        Figure(BENCH, "first sight: until all are Ready", "s", (seconds,)),
        Figure(
            BENCH,
            "first sight: writes to the API server",
            "",
            (_counted(first),),
            Goal("≤", _WRITES_EACH * indexes),
        ),
        Figure(BENCH, "restart: writes to the API server", "", (_counted(again),), Goal("≤", 0)),
        Figure(BENCH, "first sight: most memory (PSS)", "MiB", (at_first_sight.most,), MEMORY),
        Figure(BENCH, "restart: most memory (PSS)", "MiB", (at_restart.most,), MEMORY),
    )
    report.notes += [_told("first sight", first), _told("restart", again)]


def _edits(system: Clustered, sizes: Sizes, report: Report) -> None:
    seen = []
    for number in range(sizes.edits):
        name = f"fleet-{number % sizes.indexes}"
        manifest = index_manifest(name, NAMESPACE, build={"deadlineSeconds": 1000 + number})
        begun = time.perf_counter()
        with system.applied(manifest) as versions:
            if not any(map(is_ready, versions)):
                raise BenchError(f"{name} was not Ready within a minute of its edit")
        seen.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    for number in range(sizes.indexes):
        system.edit(f"fleet-{number}", {"build": {"deadlineSeconds": 5000}})
    edited = time.perf_counter() - begun
    wait_for("all edits to be true", lambda: _all_ready(system, sizes.indexes), _LONGEST_SECONDS)
    everywhere = time.perf_counter() - begun
    report.add(
        Figure(BENCH, "one edit after the other: until its status is of it", "s", tuple(seen), SEEN),
        Figure(BENCH, "the same: 99th percentile", "s", (percentile(seen, 0.99),), SEEN),
        Figure(BENCH, "all edited at once: until the last is written", "s", (edited,)),
        Figure(BENCH, "all edited at once: until all are Ready", "s", (everywhere,)),
    )


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the least sample that so many of them are not above."""
    ordered = sorted(samples)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def _idle(system: Clustered, sizes: Sizes, report: Report) -> None:
    pid = system.server.pid
    if pid is None:
        raise BenchError("PostgreSQL does not run")
    both = Processor(system.operator_pid()), Processor(pid)
    before, used = system.cluster.writes(), [one.seconds() for one in both]
    begun = time.perf_counter()
    with Memory(system.operator_pid()) as memory:
        time.sleep(sizes.idle_seconds)
    passed = time.perf_counter() - begun
    operator, postgres = (100 * (one.seconds() - then) / passed for one, then in zip(both, used, strict=True))
    written = system.cluster.writes() - before
    report.add(
        Figure(BENCH, "idle: time", "s", (passed,)),
        Figure(
            BENCH,
            "idle: writes to the API server",
            "",
            (_counted(written),),
            Goal("≤", 0),
        ),
        Figure(BENCH, "idle: processor of the operator", "% of a core", (operator,)),
        Figure(BENCH, "idle: processor of PostgreSQL", "% of a core", (postgres,)),
        Figure(BENCH, "idle: most memory (PSS)", "MiB", (memory.most,), MEMORY),
    )
    report.notes.append(_told("idle", written))


def _all_ready(system: Clustered, indexes: int) -> bool:
    system.operator_pid()
    time.sleep(0.5)  # Every look is a list of all objects, on processors that the operator needs.
    return sum(map(is_ready, system.indexes())) == indexes


def _look_at_all(system: Clustered, times: int, indexes: int) -> None:
    """Wait until the operator has looked at every index so often from now on."""
    seen = system.passes()
    wait_for(
        "the operator to look at all indexes",
        lambda: system.passes() >= seen + times * indexes,
        _LONGEST_SECONDS,
    )


def _counted(writes: Counter[str]) -> int:
    """Return how many there were, but for the Lease: by that another replica knows that this one lives."""
    return sum(count for what, count in writes.items() if not what.endswith(" leases"))


def _told(when: str, writes: Counter[str]) -> str:
    kinds = ", ".join(f"{what} {count}" for what, count in sorted(writes.items())) or "nothing"
    return f"operator, {when}: it wrote {kinds}"
