"""The operator and many indexes: what it writes to the API server, its memory, and how long it takes.

**First sight**: the objects are made while the operator is down; then it starts, makes all of them
Ready, and has looked at all of them once more. **Restart**: it is stopped, started again, and has
looked at each twice; nothing had changed, so nothing is to be written. Writes are counted in the audit
log of the API server, those of the operator's own ServiceAccount only.
"""

from __future__ import annotations

import json
import time
from collections import Counter

from bench.cluster import NAMESPACE, Clustered, Memory, is_ready
from bench.figures import Figure, Goal, Report
from bench.local import index_manifest, wait_for

BENCH = "operator"
MEMORY = Goal("≤", 150)
_WRITES_EACH = 2
_LONGEST_SECONDS = 3600.0


def run(system: Clustered, indexes: int, report: Report) -> None:
    """Measure; the objects stay, and go with the cluster."""
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
            (first.total(),),
            Goal("≤", _WRITES_EACH * indexes),
        ),
        Figure(BENCH, "restart: writes to the API server", "", (again.total(),), Goal("≤", 0)),
        Figure(BENCH, "first sight: most memory (PSS)", "MiB", (at_first_sight.most,), MEMORY),
        Figure(BENCH, "restart: most memory (PSS)", "MiB", (at_restart.most,), MEMORY),
    )
    report.notes += [_told("first sight", first), _told("restart", again)]


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


def _told(when: str, writes: Counter[str]) -> str:
    kinds = ", ".join(f"{what} {count}" for what, count in sorted(writes.items())) or "nothing"
    return f"operator, {when}: it wrote {kinds}"
