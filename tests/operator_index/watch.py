"""What tests of builds look at, and how they hold builds up and kill who began them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from operator_index.place import PATIENCE_SECONDS, Place
from parts import servers
from polaris_operator.objects import Key


def builds(place: Place) -> list[int]:
    return [
        pid
        for (pid,) in place.sql(
            "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database()"
        )
    ]


def the_build(place: Place) -> int:
    """The one build, which may need a moment to be seen once its session has its lock."""
    eventually(lambda: bool(builds(place)))
    (pid,) = builds(place)
    return pid


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def vector_index(place: Place, key: Key) -> str | None:
    found: str | None = place.one(
        "SELECT g.vector_index FROM polaris.generations g JOIN polaris.indexes i ON i.id = g.index_id"
        " WHERE i.name = %s",
        key.name,
    )
    return found


def valid(place: Place, key: Key) -> dict[str, bool]:
    return dict(
        place.sql(
            "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE c.relnamespace = to_regnamespace(%s) AND c.relname LIKE 'g1_chunks_vector_%%'",
            place.schema(key),
        )
    )


@contextmanager
def started(place: Place) -> Iterator[subprocess.Popen[str]]:
    """Another process of the same installation that has begun what there was to begin."""
    place.stop()
    command = [sys.executable, "-m", "operator_index.starter", str(place.data), str(place.manifests)]
    paths = os.pathsep.join(["tests", *sys.path])
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and line != "begun\n":
            pass
        assert line == "begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()
        place.start()


@contextmanager
def held_up(place: Place, key: Key, *, document: int = 1) -> Iterator[None]:
    """A writer that does not come to an end: CREATE INDEX CONCURRENTLY waits for it, alive."""
    with closing(servers.connect(place.database.dsn)) as writer, writer.cursor() as cursor:
        schema = place.schema(key)
        cursor.execute(f"BEGIN; UPDATE {schema}.g1_chunks SET version = 1 WHERE document_id = {document}")
        yield
        writer.rollback()
