"""The command line of the bench; see `bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import cluster, fleet, ingest, local, machine, ready, sampling, scale, search, up
from bench.corpus import Corpus
from bench.figures import Report
from polaris.settings import OperatorSettings

_LOCAL = ("ingest", "search", sampling.BENCH)
_SCALE = "scale"
_CLUSTER = ("ready", "operator")
_BENCHES = (*_LOCAL, _SCALE, *_CLUSTER, up.BENCH)


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure; see docs/benchmarks.md.")
    # argparse's `choices` would refuse that none is named.
    parser.add_argument(
        "benches", nargs="*", type=_bench, metavar="BENCH", help=f"of {', '.join(_BENCHES)} [all]"
    )
    parser.add_argument(
        "--rows", type=int, default=100_000, help="documents, of one chunk each [%(default)s]"
    )
    parser.add_argument("--queries", type=int, default=1000, help="different ones [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="of search [%(default)s]")
    parser.add_argument("--seconds", type=float, default=10, help="a generator and round [%(default)s]")
    parser.add_argument("--loads", type=int, default=3, help="rounds of ingest [%(default)s]")
    parser.add_argument("--repetitions", type=int, default=10, help="of ready [%(default)s]")
    parser.add_argument("--indexes", type=int, default=1000, help="of operator [%(default)s]")
    parser.add_argument("--edits", type=int, default=100, help="of operator, one by one [%(default)s]")
    parser.add_argument("--idle", type=float, default=600, help="seconds of operator [%(default)s]")
    parser.add_argument("--starts", type=int, default=3, help="of up, after a stop and a kill [%(default)s]")
    resync = OperatorSettings().resync_seconds
    parser.add_argument("--resync", type=float, default=resync, help="seconds, of the operator [%(default)s]")
    parser.add_argument(
        "--json", type=Path, default=Path("bench.json"), help="file of all samples [%(default)s]"
    )
    parser.add_argument("--markdown", type=Path, help="file for the table as in docs/benchmarks.md [none]")
    asked = parser.parse_args(given)
    asked.benches = asked.benches or [*_BENCHES]
    return asked


def _bench(name: str) -> str:
    if name not in _BENCHES:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(_BENCHES)}")
    return name


def run(asked: argparse.Namespace) -> Report:
    """Run the benches that were asked for, and return what they found."""
    settings = {name: value for name, value in vars(asked).items() if name not in ("json", "markdown")}
    report = Report({**machine.about(), "settings": settings})
    if not set(_LOCAL).isdisjoint(asked.benches):
        _run_local(asked, report)
    if _SCALE in asked.benches:
        with local.running(asked.resync) as system:
            rows, texts = min(asked.rows, scale.ROWS), min(asked.rows // 160, scale.TEXTS)
            sizes = scale.Sizes(rows, min(asked.rounds, 3), min(asked.seconds, 5), texts)
            scale.run(system, sizes, report)
    if not set(_CLUSTER).isdisjoint(asked.benches):
        _run_cluster(asked, report)
    if up.BENCH in asked.benches:
        up.run(asked.starts, report)
    return report


def _run_local(asked: argparse.Namespace, report: Report) -> None:
    documents = Corpus(asked.rows, asked.queries)
    with local.running(asked.resync) as system:
        # Search needs an index that is loaded.
        loads = asked.loads if "ingest" in asked.benches else 1
        name = ingest.run(system, documents, loads, report)
        if "search" in asked.benches:
            search.run(system, name, documents, search.Sizes(asked.rounds, asked.seconds), report)
        if sampling.BENCH in asked.benches:
            sampling.run(system, name, documents, search.Sizes(asked.rounds, asked.seconds), report)


def _run_cluster(asked: argparse.Namespace, report: Report) -> None:
    with cluster.running(asked.resync) as system:
        if "ready" in asked.benches:
            ready.run(system, asked.repetitions, report)
        if "operator" in asked.benches:
            fleet.run(system, fleet.Sizes(asked.indexes, asked.edits, asked.idle), report)


def main() -> None:
    """Measure, print the table, write the JSON."""
    asked = arguments(sys.argv[1:])
    report = run(asked)
    report.show(sys.stdout)
    report.write(asked.json)
    if asked.markdown:
        asked.markdown.write_text(report.markdown(), encoding="utf-8")
    print(f"all samples: {asked.json}")


if __name__ == "__main__":
    main()
