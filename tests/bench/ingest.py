"""Bulk ingest of ready vectors over HTTP until all is searchable with the index built, against COPY.

The baseline is what somebody would do by hand who has the same tables: binary COPY of the same rows
into tables of the same shape, keys and all, and a bare CREATE INDEX with the maintenance settings of
the spec. It leaves out what a search does not read: the books of what was applied.
"""

from __future__ import annotations

import json
import mmap
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any

from psycopg2 import sql

from bench.corpus import COPY_COLUMNS, Corpus
from bench.figures import Figure, Goal, Report, ratios
from bench.local import MODEL, NAMESPACE, BenchError, Local, index_manifest, wait_for
from polaris import layout
from polaris.spec import PolarisIndexSpec, parse_spec
from polaris.sql import identifier

BENCH = "ingest"
GOAL = Goal("≥", 0.8)
_BARE = "bare"
_LONGEST_SECONDS = 3600.0
_AGAIN = (429, 503)


@dataclass(frozen=True)
class Files:
    """The documents, as each side takes them."""

    ndjson: Path
    copy: dict[str, Path]

    @classmethod
    def write(cls, documents: Corpus, folder: Path) -> Files:
        """Write them."""
        ndjson = folder / "documents.ndjson"
        documents.write_ndjson(ndjson, str(MODEL["model"]))
        return cls(ndjson, documents.write_copy(folder))


@dataclass(frozen=True)
class Loaded:
    """Seconds until the rows were in, and until all of them were found through the index."""

    rows: float
    all: float


def run(local: Local, documents: Corpus, rounds: int, report: Report) -> str:
    """Measure, and return the name of the index that the last round loaded."""
    files = Files.write(documents, local.folder)
    bare: list[Loaded] = []
    ours: list[Loaded] = []
    for number in range(rounds):
        if number:
            local.drop_index(f"load-{number - 1}")
        bare.append(_baseline(local, files))
        ours.append(_load(local, f"load-{number}", files, documents.rows))
    for side, loads in (("COPY, CREATE INDEX", bare), ("POLARIS", ours)):
        report.add(
            _seconds(f"{side}: rows in", [load.rows for load in loads]),
            _seconds(f"{side}: all searchable by the index", [load.all for load in loads]),
        )
    ratio = ratios([load.all for load in bare], [load.all for load in ours])
    report.add(Figure(BENCH, "documents a second, POLARIS / COPY, CREATE INDEX", "ratio", ratio, GOAL))
    return f"load-{rounds - 1}"


def _seconds(name: str, samples: Sequence[float]) -> Figure:
    return Figure(BENCH, name, "s", tuple(samples))


# --- by hand ---------------------------------------------------------------------------------------


def _baseline(local: Local, files: Files) -> Loaded:
    spec = parse_spec(PolarisIndexSpec, index_manifest("bare", NAMESPACE)["spec"])
    tables = {
        "documents": layout.STORED_DOCUMENTS,
        "versions": layout.STORED_VERSIONS,
        "chunks": layout.chunks(1, spec.embedding),
    }
    index = layout.vector_index(1, spec.embedding, spec.index)
    if index is None:
        raise BenchError("the manifest of the bench has no vector index")
    with local.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {_BARE}")
        for table in tables.values():
            cursor.execute(table.create(_BARE))
        cursor.execute(layout.DOCUMENTS_BY_SEQUENCE.create(_BARE))
        cursor.execute(layout.set_embedding_storage(_BARE, 1, spec.embedding))
        # Kubernetes' Mi is PostgreSQL's MB.
        cursor.execute("SET maintenance_work_mem = %s", [spec.build.maintenance_work_mem.replace("i", "B")])
        cursor.execute("SET max_parallel_maintenance_workers = %s", [spec.build.parallel_workers])
        begun = time.perf_counter()
        for kind, table in tables.items():
            copy_in(cursor, identifier(_BARE, table.name), COPY_COLUMNS[kind], files.copy[kind])
        copied = time.perf_counter() - begun
        cursor.execute(index.create(_BARE))
        indexed = time.perf_counter() - begun
        cursor.execute(f"DROP SCHEMA {_BARE} CASCADE")
    return Loaded(copied, indexed)


def copy_in(cursor: Any, table: str, columns: Sequence[str], path: Path) -> None:
    """Fill a table from a file of binary COPY."""
    listed = sql.SQL(", ").join(map(sql.Identifier, columns))
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(sql.SQL(table), listed)
    with path.open("rb") as file:
        cursor.copy_expert(statement, file, size=2**20)


# --- over HTTP -------------------------------------------------------------------------------------


def _load(local: Local, name: str, files: Files, rows: int) -> Loaded:
    """Make an index, load it by one batch, and wait until its vector index stands."""
    path = local.make_index(name)
    with files.ndjson.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begun = time.perf_counter()
        _put_all(local, f"{path}/documents", data)
        accepted = time.perf_counter() - begun
    wait_for(f"{name} to be searchable", lambda: _settled(local, name, path), _LONGEST_SECONDS)
    indexed = time.perf_counter() - begun
    status, served = local.service.ask("GET", path)
    if status != 200 or (served["documents"], served["chunks"]) != (rows, rows):
        raise BenchError(f"{rows} documents were loaded, and the service says {served}")
    return Loaded(accepted, indexed)


def _settled(local: Local, name: str, path: str) -> bool:
    row = local.catalog_row(name)
    if not row or row["state"] != "serving" or row["load_requested_at"] or not row["vector_index"]:
        return False
    status, served = local.service.ask("GET", path)
    return bool(status == 200 and served["pending"] == 0)


def _put_all(local: Local, path: str, data: mmap.mmap) -> None:
    """Send all documents; those that are to be sent again, again."""
    ends = [0, *_line_ends(data)]
    spans = list(pairwise(ends))
    body: Any = memoryview(data)
    deadline = time.monotonic() + _LONGEST_SECONDS
    while spans:
        results = _post(local, path, body)
        if len(results) != len(spans):
            raise BenchError(f"{len(spans)} lines were sent, {len(results)} answered for: {results[-1:]}")
        refused = [result for result in results if result.get("status", 202) >= 400]
        for result in refused:
            if result["status"] not in _AGAIN or time.monotonic() > deadline:
                raise BenchError(f"a document was refused: {result}")
        if not refused:
            break
        time.sleep(0.5)
        spans = [span for span, result in zip(spans, results, strict=True) if result in refused]
        body = b"".join(data[begin:end] for begin, end in spans)
    if isinstance(body, memoryview):
        body.release()


def _line_ends(data: mmap.mmap) -> list[int]:
    ends, at = [], data.find(b"\n")
    while at >= 0:
        ends.append(at + 1)
        at = data.find(b"\n", at + 1)
    return ends


def _post(local: Local, path: str, body: Any) -> list[dict[str, Any]]:
    """POST one batch, reading results while it is sent: they are streamed, and would fill the socket."""
    service = local.service
    with closing(HTTPConnection(service.host, service.port, timeout=_LONGEST_SECONDS)) as connection:
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/x-ndjson")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        sender = threading.Thread(target=_send, args=(connection.sock, body), daemon=True)
        sender.start()
        answer = connection.getresponse()
        text = answer.read()
    sender.join()
    if answer.status in _AGAIN:
        problem = {"status": answer.status}
        return [problem] * bytes(body).count(b"\n")
    if answer.status >= 400:
        raise BenchError(f"the batch was refused with {answer.status}: {text[:500].decode()}")
    return [json.loads(line) for line in text.splitlines()]


def _send(socket: Any, body: Any) -> None:
    try:
        socket.sendall(body)
    except OSError:
        return  # The service has answered already; the answer says why.


__all__ = ["copy_in", "run"]
