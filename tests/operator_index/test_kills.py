"""The operator is killed while it builds, again and again: PostgreSQL ends what it began, and it once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from operator_index.place import PATIENCE_SECONDS, Place, index_manifest
from operator_index.watch import valid, vector_index
from parts import servers
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.objects import Key
from polaris_operator.world.index import build_lock
from soak import SOAKING, times

pytestmark = [pytest.mark.postgres, pytest.mark.soak]

ROWS = 3000
DIMENSION = 32
EMBEDDING = {"model": "wide", "dimension": DIMENSION}
KINDS = ("plain", "concurrently", "reindex")
POINTS = times(1, 20)
SEEDS = times(1, 5)
_LIVE = "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()"


class Killed:
    """An index that a real operator looks after, which is killed and started again."""

    def __init__(self, place: Place) -> None:
        self.place, self.key = place, Key("PolarisIndex", "team", "handbook")
        self.schema = ""
        self.names: list[str] = []
        """Of the vector indexes that are asked for in turn."""
        self.log = place.data.parent / "operator.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        place = self.place
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("POLARIS_", "KUBE"))}
        arguments = ["operator", "--files", str(place.manifests), "--data", str(place.data)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "polaris_cli.main", *arguments],
                stdout=log,
                stderr=log,
                env={
                    **environment,
                    "POLARIS_RESYNC_SECONDS": "1",
                    "POLARIS_METRICS_HOST": "127.0.0.1",
                    "POLARIS_METRICS_PORT": "0",
                },
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wait(self, what: str, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > end:
                raise AssertionError(f"{what}: it does not come to that\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)

    def make(self) -> None:
        """Have the index made, of rows enough that a build can be met."""
        place = self.place
        self.wait("the catalog is there", lambda: bool(place.one("SELECT to_regclass('polaris.fences')")))
        place.offer("wide", DIMENSION)
        for neighbours in (8, 16):
            place.put(index_manifest(embedding=EMBEDDING, index={"m": neighbours, "efConstruction": 64}))
            self.wait("it serves", lambda: self.present() not in (None, *self.names))
            self.names.append(self.wanted())
            if neighbours == 8:
                self.schema = place.schema(self.key)
                place.fill(self.key, ROWS, dimension=DIMENSION)

    # How it stands

    def present(self) -> str | None:
        found = self.place.sql("SELECT vector_index FROM polaris.generations")
        return str(found[0][0]) if found and found[0][0] else None

    def state(self) -> str:
        return str(self.place.one("SELECT state FROM polaris.generations"))

    def wanted(self) -> str:
        return str(vector_index(self.place, self.key))

    def is_worked_on(self) -> bool:
        """Whether a session of ours builds something on the chunks, or works it over."""
        names = self.place.sql(
            "SELECT DISTINCT regexp_replace(relname, '_cc(new|old)[0-9]*$', '') FROM pg_class"
            " WHERE relnamespace = to_regnamespace(%s) AND relname LIKE 'g1_chunks%%'",
            self.schema,
        )
        keys = [build_lock(self.schema, name) for name in {*self.names, *(name for (name,) in names)}]
        held = self.place.one(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND"
            " ((classid::bigint << 32) | objid::bigint) = ANY(%s::bigint[])",
            keys,
        )
        return bool(held)

    def end_builds(self) -> int:
        """End the sessions that build, as the server does when it has to; return how many."""
        return int(
            self.place.one(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE '%/build/%'"
            )
        )

    def dead(self) -> int:
        return int(
            self.place.one("SELECT pg_stat_get_dead_tuples(to_regclass(%s))", f"{self.schema}.g1_chunks")
        )

    # What there is to do

    def plain(self) -> None:
        """As after a load: workers stand still, and there is no index."""
        drops = [f"DROP INDEX {self.schema}.{name};" for name in valid(self.place, self.key)]
        self.place.sql(
            f"{' '.join(drops)} UPDATE polaris.generations SET state = 'building', vector_index = NULL"
        )

    def concurrently(self) -> None:
        """An edit: another index beside the one that serves."""
        serving = self.wanted()
        for name in valid(self.place, self.key):
            if name != serving:
                self.place.sql(f"DROP INDEX {self.schema}.{name}")
        other = 16 if serving == self.names[0] else 8
        self.place.put(index_manifest(embedding=EMBEDDING, index={"m": other, "efConstruction": 64}))

    def reindex(self) -> None:
        """Enough rows come and go that the graph is built anew."""
        table = f"{self.schema}.g1_chunks"
        self.place.sql(
            f"INSERT INTO {table} SELECT document_id + 1000000, version, ordinal, span_start, span_end,"
            f" text_hash, attributes, (SELECT array_agg(random() + 0 * (g + document_id))"
            f" FROM generate_series(1, {DIMENSION}) g)::real[]::halfvec FROM {table} LIMIT 1200"
        )
        self.place.sql(f"DELETE FROM {table} WHERE document_id > 1000000")

    def is_done(self, how: str, before: str) -> bool:
        if how == "reindex":
            return self.dead() < 1000 and not self.is_worked_on()
        pointer = self.wanted()
        moved = how == "plain" or pointer != before
        return moved and pointer in self.names and self.state() == "serving" and not self.is_worked_on()

    def is_sound(self) -> bool:
        """Whether all indexes are valid, and none is left that nobody asked for."""
        found = valid(self.place, self.key)
        return set(found) <= set(self.names) and all(found.values())


@contextmanager
def counting(place: Place) -> Iterator[list[int]]:
    """Look all the time at how many builds there are at once."""
    most = [0]
    stop = threading.Event()

    def look() -> None:
        with closing(servers.connect(place.database.dsn)) as connection, connection.cursor() as cursor:
            while not stop.wait(0.005):
                cursor.execute(_LIVE)
                (now,) = cursor.fetchone() or (0,)
                most[0] = max(most[0], now)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def deadlocks(log: Path, since: int) -> int:
    with log.open("rb") as opened:
        opened.seek(since)
        return opened.read().count(b"deadlock detected")


@pytest.mark.parametrize("hows", [(how,) for how in (KINDS if SOAKING else ("concurrently",))], ids="-".join)
def test_a_build_ends_once_and_valid_whenever_the_operator_is_killed(
    place: Place, postgres: LocalPostgres, hows: tuple[str, ...]
) -> None:
    """At points spread over the build; in every other round its session is ended as well."""
    log, since = postgres.log_file, postgres.log_file.stat().st_size
    place.stop()
    it = Killed(place)
    try:
        it.start()
        it.make()
        with counting(place) as most:
            for how in hows:
                sweep(it, how)
    finally:
        it.kill()
        place.start()
    print(f"at most {most[0]} build at once, {deadlocks(log, since)} deadlocks")
    assert most[0] == 1
    assert deadlocks(log, since) == 0
    assert place.one("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


def sweep(it: Killed, how: str) -> None:
    """Kill the operator at each point of a build, and see that it ends well."""
    took = build_seconds(it, how) if SOAKING else 0.5
    kills = ended = 0
    for seed in range(SEEDS):
        dice = random.Random(seed)  # noqa: S311
        for point in range(POINTS):
            before = it.wanted()
            getattr(it, how)()
            it.wait("it begins", partial(begun_or_done, it, how, before))
            time.sleep(took * (point + dice.random()) / POINTS)
            it.kill()
            kills += 1
            if (seed + point) % 2:
                ended += it.end_builds()
            it.start()
            it.wait(f"kill {kills}", partial(it.is_done, how, before))
            it.wait(f"after kill {kills}", it.is_sound)
    print(f"{how}: {kills} kills, {ended} sessions ended with them; a build takes {took:.1f} s")


def begun_or_done(it: Killed, how: str, before: str) -> bool:
    return it.is_worked_on() or it.is_done(how, before)


def build_seconds(it: Killed, how: str) -> float:
    """Return how long it takes when nobody is killed."""
    before = it.wanted()
    getattr(it, how)()
    it.wait("the first begins", it.is_worked_on)
    began = time.monotonic()
    it.wait("the first ends", lambda: not it.is_worked_on())
    took = time.monotonic() - began
    it.wait("the first is done", lambda: it.is_done(how, before))
    return took
