"""What measuring recall costs those who search meanwhile.

Rounds of search alone and of search beside a measurement that begins anew whenever it ends; an operator rests
`took / TIME_SHARE` in between, and longer where little changes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from bench import search
from bench.corpus import Corpus
from bench.figures import Figure, Goal, Report, ratios
from bench.local import NAMESPACE, BenchError, Local
from polaris.spec import Embedding, TlsMode
from polaris_operator.observe.recall import measure
from polaris_operator.plan.recall import TIME_SHARE
from polaris_operator.postgres import Identity, Postgres, Server
from polaris_operator.steps import MeasureRecall

BENCH = "sampling"
COST = Goal("≤", 0.03)


def run(local: Local, name: str, documents: Corpus, sizes: search.Sizes, report: Report) -> None:
    """Measure on an index that holds the documents."""
    action = _action(local, name)
    load = search.load_of(local, f"/v1/indexes/{NAMESPACE}/{name}/search", documents)
    load.run(search.CONNECTIONS, min(2.0, sizes.seconds))
    alone, beside, took = [], [], []
    for _ in range(sizes.rounds):
        alone.append(load.run(search.CONNECTIONS, sizes.seconds).per_second)
        with _measuring(local, action) as seconds:
            beside.append(load.run(search.CONNECTIONS, sizes.seconds).per_second)
        took += seconds
    shares = ratios(beside, alone)
    many = f"{search.CONNECTIONS} connections"
    report.add(
        Figure(BENCH, f"{many}: search alone", "1/s", tuple(alone)),
        Figure(BENCH, f"{many}: search while recall is measured", "1/s", tuple(beside)),
        Figure(BENCH, "one measurement", "s", tuple(took)),
        Figure(BENCH, "throughput while measured / alone", "ratio", shares),
        Figure(
            BENCH,
            "throughput that measuring costs at its shortest rest",
            "share of time",
            tuple((1 - share) * TIME_SHARE for share in shares),
            COST,
        ),
    )


def _action(local: Local, name: str) -> MeasureRecall:
    row = local.catalog_row(name)
    if row is None:
        raise BenchError(f"there is no index {name}")
    with local.cursor() as cursor:
        cursor.execute("SELECT embedding FROM polaris.generations WHERE index_id = %s", [row["id"]])
        ((embedding,),) = cursor.fetchall()
    return MeasureRecall(
        row["id"], row["serving"], row["schema_name"], Embedding.model_validate(embedding), (), 98, 64
    )


@contextmanager
def _measuring(local: Local, action: MeasureRecall) -> Iterator[list[float]]:
    """Measure again and again meanwhile; yields the seconds that each one took, once it is over."""
    server = Server(local.server.host, local.server.port, local.database.name, TlsMode.DISABLE)
    identity = Identity(local.server.superuser, local.server.password)
    ended = threading.Event()
    seconds: list[float] = []

    def measured() -> None:
        with closing(Postgres(server, identity)) as postgres:
            while not ended.is_set():
                seconds.append(measure(postgres, action).details.took_seconds)

    thread = threading.Thread(target=measured)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()


__all__ = ["run"]
