"""What grows with what: bytes, WAL and build time by rows; throughput by processes. See docs/scale.md.

Sizes and builds are measured on tables of the layout's own shape, filled by COPY; what a document costs, and
what more processes bring, on POLARIS as it runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.corpus import COPY_COLUMNS, Corpus
from bench.figures import Figure, Report, ratios
from bench.ingest import copy_in
from bench.load import Load, Target, http
from bench.local import (
    MODEL,
    NAMESPACE,
    BenchError,
    Local,
    Service,
    index_manifest,
    program,
    started,
    wait_for,
)
from bench.timing import Timing
from polaris import layout
from polaris.spec import PolarisIndexSpec, parse_spec
from polaris.sql import identifier
from polaris_cli.up import ports
from polaris_cli.up.process import Process

BENCH = "scale"
_BARE = "scale"
_SHARES = (16, 4, 1)
"""Of all rows: a sixteenth, a quarter, all."""
_LIVE = 1000
ROWS, TEXTS = 40_000, 200
"""More would take longer than three minutes, and say no more of what a chunk costs."""
_CONNECTIONS = 4
AMPLE, SCARCE = "1GB", "4MB"
"""maintenance_work_mem: all fits; little does."""


@dataclass(frozen=True)
class Sizes:
    """How much, how often, how long."""

    rows: int
    rounds: int
    seconds: float
    texts: int
    """Embedded by each number of workers."""


def run(local: Local, sizes: Sizes, report: Report) -> None:
    """Measure all of it."""
    documents = Corpus(sizes.rows, 200)
    _tables(local, documents, report)
    path = _documents(local, documents, report)
    _services(local, path, documents, sizes, report)
    _workers(local, sizes.texts, report)


# --- tables ----------------------------------------------------------------------------------------


def _tables(local: Local, documents: Corpus, report: Report) -> None:
    spec = parse_spec(PolarisIndexSpec, index_manifest("bare", NAMESPACE)["spec"])
    table = layout.chunks(1, spec.embedding)
    index = layout.vector_index(1, spec.embedding, spec.index)
    if index is None:
        raise BenchError("the manifest of the bench has no vector index")
    name = f"{_BARE}.{table.name}"
    with local.cursor() as cursor:
        for share in _SHARES:
            part = Corpus(documents.rows // share, 1)
            cursor.execute(f"DROP SCHEMA IF EXISTS {_BARE} CASCADE; CREATE SCHEMA {_BARE}")
            cursor.execute(table.create(_BARE))
            cursor.execute(layout.set_embedding_storage(_BARE, 1, spec.embedding))
            file = part.write_copy(local.folder)["chunks"]
            copy_in(cursor, identifier(_BARE, table.name), COPY_COLUMNS["chunks"], file)
            cursor.execute(f"VACUUM (ANALYZE) {name}")
            rows = part.rows
            built = _build(cursor, index.create(_BARE), AMPLE)
            table_bytes = _value(cursor, f"SELECT pg_table_size('{name}')")
            index_bytes = _value(cursor, f"SELECT pg_relation_size('{_BARE}.{index.name}')")
            report.add(
                _figure(f"{rows:,} chunks: table", "bytes/chunk", table_bytes / rows),
                _figure(f"{rows:,} chunks: HNSW", "bytes/chunk", index_bytes / rows),
                _figure(f"{rows:,} chunks: build, {AMPLE} of memory", "µs/chunk", built / rows * 1e6),
            )
            if share == _SHARES[1]:
                cursor.execute(f'DROP INDEX {_BARE}."{index.name}"')
                scarce = _build(cursor, index.create(_BARE), SCARCE)
                report.add(
                    _figure(f"{rows:,} chunks: build time, {SCARCE} / {AMPLE}", "ratio", scarce / built)
                )
        cursor.execute(f"DROP SCHEMA {_BARE} CASCADE")


def _build(cursor: Any, statement: str, memory: str) -> float:
    """Return the seconds of a build by one process."""
    cursor.execute("SET maintenance_work_mem = %s; SET max_parallel_maintenance_workers = 0", [memory])
    begun = time.perf_counter()
    cursor.execute(statement)
    return time.perf_counter() - begun


# --- documents -------------------------------------------------------------------------------------


def _documents(local: Local, documents: Corpus, report: Report) -> str:
    """Load documents in bulk, then some while the index serves; return the index's path."""
    path = local.make_index("scale")
    ndjson = local.folder / "scale.ndjson"
    documents.write_ndjson(ndjson, str(MODEL["model"]))
    lines = ndjson.read_bytes().splitlines(keepends=True)
    bulk, live = lines[:-_LIVE], lines[-_LIVE:]
    begun = _wal(local)
    _post(local.service, path, bulk)
    wait_for("the bulk load", lambda: _is_level(local, path))
    loaded = _wal(local)
    for number in range(0, len(live), 100):
        _post(local.service, path, live[number : number + 100])
    with local.cursor() as cursor:
        size = _value(
            cursor,
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN polaris.indexes i"
            " ON c.relnamespace = i.schema_name::regnamespace WHERE i.name = 'scale' AND c.relkind = 'r'",
        )
    report.add(
        _figure(
            "a document of 500 characters: WAL, bulk load and build", "bytes", (loaded - begun) / len(bulk)
        ),
        _figure(
            "a document of 500 characters: WAL, into a serving index", "bytes", (_wal(local) - loaded) / _LIVE
        ),
        _figure("a document of 500 characters: disk, all tables and indexes", "bytes", size / documents.rows),
    )
    return path


def _post(service: Service, path: str, lines: Sequence[bytes]) -> None:
    status, text = service.raw("POST", f"{path}/documents", b"".join(lines), "application/x-ndjson")
    if status != 200 or b'"detail"' in text:
        raise BenchError(f"a batch was answered with {status}: {text[-300:]!r}")


def _is_level(local: Local, path: str) -> bool:
    row = local.catalog_row("scale")
    if not row or row["state"] != "serving" or row["load_requested_at"] or not row["vector_index"]:
        return False
    status, served = local.service.ask("GET", path)
    return bool(status == 200 and served["pending"] == 0)


def _wal(local: Local) -> int:
    with local.cursor() as cursor:
        return _value(cursor, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")


# --- processes -------------------------------------------------------------------------------------


def _services(local: Local, path: str, documents: Corpus, sizes: Sizes, report: Report) -> None:
    """Searches a second of one service and of two, with the same number of connections in all."""
    bodies = local.folder / "scale.bodies"
    bodies.write_text("".join(f"{body}\n" for body in documents.bodies(10)))
    with _another(local) as second:
        one, two = (
            http(Target(service.host, service.port, f"{path}/search", bodies))
            for service in (local.service, second)
        )
        _together([one, two], 1.0)
        rounds = [
            (_together([one], sizes.seconds), _together([one, two], sizes.seconds))
            for _ in range(sizes.rounds)
        ]
    ones, twos = [each[0] for each in rounds], [each[1] for each in rounds]
    report.add(
        Figure(BENCH, f"searches, 1 service, {_CONNECTIONS} connections", "1/s", tuple(ones)),
        Figure(BENCH, f"searches, 2 services, {_CONNECTIONS} connections", "1/s", tuple(twos)),
        Figure(BENCH, "searches a second, 2 services / 1", "ratio", ratios(twos, ones)),
    )
    report.notes.append("scale: PostgreSQL, services and the load share the machine's cores")


def _together(loads: Sequence[Load], seconds: float) -> float:
    """Return the searches a second of all, at the same time."""
    with ThreadPoolExecutor(len(loads)) as threads:
        timings: Iterator[Timing] = threads.map(
            lambda load: load.run(_CONNECTIONS // len(loads), seconds), loads
        )
        return sum(timing.per_second for timing in timings)


@contextmanager
def _another(local: Local) -> Iterator[Service]:
    """One more replica of the service."""
    port = ports.any_free()
    with ExitStack() as stack:
        process = program(
            "service-2",
            local.folder,
            ["serve"],
            POLARIS_PORT=str(port),
            POLARIS_AUTH="none",
            POLARIS_DATABASE_SECRET=str(Path(local.folder, "data", "secrets", NAMESPACE, "polaris-query")),
        )
        stack.enter_context(started([process]))
        service = Service(ports.LOOPBACK, port)
        wait_for("the second service", lambda: service.serves("/v1/indexes"))
        yield service


def _workers(local: Local, texts: int, report: Report) -> None:
    """Documents a second that one worker embeds, and two, each with the model in its own process."""
    model = {"provider": "default", "model": "multilingual-e5-small", "revision": "1", "dimension": 384}
    told = Corpus(2 * texts, 1).texts
    with ExitStack() as stack:
        stack.enter_context(started([_embedding_worker(local, 1)]))
        path = local.make_index("embedded", embedding=model)
        one = _embedded(local, path, "one", told[:texts])
        stack.enter_context(started([_embedding_worker(local, 2)]))
        wait_for("the second worker", lambda: _offers(local) == 2)
        two = _embedded(local, path, "two", told[texts:])
    report.add(
        _figure("documents of 500 characters embedded, 1 worker", "1/s", one),
        _figure("documents of 500 characters embedded, 2 workers", "1/s", two),
        _figure("documents embedded a second, 2 workers / 1", "ratio", two / one),
    )
    report.notes.append("scale: a worker's model uses all cores, so a second worker on them brings little")


def _embedding_worker(local: Local, number: int) -> Process:
    return program(
        f"embedding-worker-{number}",
        local.folder,
        ["worker"],
        POLARIS_METRICS_PORT="0",
        POLARIS_DATABASE_SECRET=str(Path(local.folder, "data", "secrets", NAMESPACE, "polaris-worker")),
    )


def _embedded(local: Local, path: str, prefix: str, texts: Sequence[str]) -> float:
    lines = [
        json.dumps({"id": f"{prefix}-{n}", "text": text}).encode() + b"\n" for n, text in enumerate(texts)
    ]
    begun = time.perf_counter()
    _post(local.service, path, lines)
    wait_for("the texts to be embedded", lambda: local.service.ask("GET", path)[1]["pending"] == 0)
    return len(texts) / (time.perf_counter() - begun)


def _offers(local: Local) -> int:
    with local.cursor() as cursor:
        return _value(cursor, "SELECT count(*) FROM polaris.models WHERE provider = 'default'")


def _figure(name: str, unit: str, value: float) -> Figure:
    return Figure(BENCH, name, unit, (value,))


def _value(cursor: Any, statement: str) -> int:
    cursor.execute(statement)
    return int(cursor.fetchone()[0])


__all__ = ["Sizes", "run"]
