"""The bench itself: that it runs from end to end, at sizes that say nothing about speed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bench import __main__ as program
from bench import corpus, http_loop
from bench.corpus import Corpus
from bench.figures import Figure, Goal, Report, ratios
from bench.timing import LoadError, Timing


@pytest.mark.unit
def test_the_same_seed_makes_the_same_documents() -> None:
    one, other = Corpus(300, 5), Corpus(300, 5)
    assert np.array_equal(one.vectors, other.vectors)
    assert np.array_equal(one.questions, other.questions)
    assert one.texts == other.texts
    assert not np.array_equal(one.vectors, Corpus(300, 5, seed=1).vectors)


@pytest.mark.unit
def test_documents_have_neighbourhoods_and_no_two_are_one() -> None:
    documents = Corpus(2000, 1)
    vectors = documents.vectors.astype(np.float32)
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -1)
    assert similar.max() < 0.999
    assert similar.max(axis=1).mean() - similar.mean() > 0.05
    assert len(set(documents.texts)) == 2000


@pytest.mark.unit
def test_the_nearest_are_those_that_comparing_all_finds() -> None:
    documents = Corpus(500, 3)
    nearest = documents.nearest(10)
    for question, found in zip(documents.questions, nearest, strict=True):
        half = question.astype(np.float16).astype(np.float64)
        vectors = documents.vectors.astype(np.float64)
        cosines = vectors @ half / np.linalg.norm(vectors, axis=1)
        assert set(found.tolist()) == set(np.argsort(-cosines)[:10].tolist())


@pytest.mark.unit
def test_recall_counts_what_was_found_of_the_nearest() -> None:
    nearest = np.array([[1, 2], [3, 4]])
    assert corpus.recall([[2, 1], [3, 9]], nearest) == 0.75
    assert corpus.recall([[], []], nearest) == 0


@pytest.mark.unit
def test_a_ratio_is_made_within_its_round_and_held_against_the_goal() -> None:
    assert ratios([10, 30], [20, 20]) == (0.5, 1.5)
    goal = Goal("≤", 1.0)
    assert Figure("b", "n", "", (0.5, 0.9, 1.5), goal).reached is True
    assert Figure("b", "n", "", (0.5, 0.9, 1.5), goal, by_most=True).reached is False
    assert Figure("b", "n", "", (0.5,)).reached is None


@pytest.mark.unit
def test_percentiles_are_of_requests_that_happened() -> None:
    timing = Timing.of([float(n) for n in range(100, 0, -1)], 2.0)
    assert (timing.requests, timing.per_second, timing.p50_ms, timing.p99_ms) == (100, 50, 50, 99)
    assert Timing.parse(timing.text()) == timing
    with pytest.raises(LoadError):
        Timing.of([], 1.0)


@pytest.mark.unit
def test_without_a_word_all_are_run_at_full_size() -> None:
    asked = program.arguments([])
    assert asked.benches == ["ingest", "search", "sampling", "scale", "ready", "operator", "up"]
    assert (asked.rows, asked.indexes, asked.repetitions) == (100_000, 1000, 10)
    assert program.arguments(["search", "--rows", "10"]).benches == ["search"]


@contextmanager
def _server(status: int) -> Iterator[tuple[str, int]]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_our_own_load_generator_counts_answers_and_refuses_errors(tmp_path: Path) -> None:
    bodies = tmp_path / "bodies"
    bodies.write_text('{"a": 1}\n{"b": 2}\n')
    with _server(200) as (host, port):
        requests = http_loop.prepared(f"{host}:{port}", "/x", bodies)
        timing = http_loop.run(host, port, requests, connections=3, seconds=0.2)
    assert timing.requests > 3
    assert 0 < timing.p50_ms <= timing.p99_ms
    with _server(503) as (host, port), pytest.raises(LoadError, match="503"):
        http_loop.run(host, port, requests, connections=1, seconds=0.2)


@pytest.mark.postgres
def test_search_and_ingest_are_measured_against_their_baselines(tmp_path: Path) -> None:
    sizes = ["--rows", "1500", "--queries", "40", "--rounds", "1", "--seconds", "0.5", "--loads", "1"]
    report = program.run(program.arguments(["ingest", "search", "sampling", *sizes, "--resync", "1"]))
    figures = {figure.name: figure for figure in report.figures}
    # What measuring costs may be less than what two rounds differ by.
    assert all(figure.low > 0 for figure in report.figures if figure.unit != "share of time")
    # Both sides run one statement, so what they find is the same.
    assert figures["recall@10 over HTTP"].median == figures["recall@10 of bare SQL"].median > 0.9
    assert {figure.bench for figure in report.figures if figure.goal} == {"ingest", "search", "sampling"}
    _shown_and_written(report, tmp_path)


@pytest.mark.postgres
def test_what_grows_with_what_is_measured() -> None:
    sizes = ["--rows", "1600", "--rounds", "1", "--seconds", "0.5", "--resync", "1"]
    report = program.run(program.arguments(["scale", *sizes]))
    assert all(figure.low > 0 for figure in report.figures)
    sizes_of = [figure.median for figure in report.figures if figure.unit == "bytes/chunk"]
    # Two bytes a number of a vector, at least, in the table as in the index.
    assert len(sizes_of) == 6
    assert min(sizes_of) > 2 * 384


@pytest.mark.kubernetes
@pytest.mark.postgres
def test_the_operator_is_measured_on_a_real_api_server(tmp_path: Path) -> None:
    sizes = ["--repetitions", "1", "--indexes", "2", "--edits", "2", "--idle", "2", "--resync", "1"]
    report = program.run(program.arguments(["ready", "operator", *sizes]))
    figures = {figure.name: figure for figure in report.figures}
    # Each status is written once at least: a count of 0 would mean that nothing was counted.
    assert figures["first sight: writes to the API server"].median >= 2
    assert figures["first sight: most memory (PSS)"].median > 10
    assert figures["idle: processor of PostgreSQL"].median > 0
    assert len(figures["one edit after the other: until its status is of it"].samples) == 2
    _shown_and_written(report, tmp_path)


@pytest.mark.postgres
def test_starts_are_timed_and_memory_is_told_by_part(tmp_path: Path) -> None:
    report = program.run(program.arguments(["up", "--starts", "1"]))
    figures = {figure.name: figure.median for figure in report.figures}
    parts = {"operator", "serve", "worker", "embedder", "up", "postgres", "bao"}
    assert {f"idle memory: {part}" for part in parts} <= set(figures)
    assert min(figures.values()) > 1
    _shown_and_written(report, tmp_path)


def _shown_and_written(report: Report, folder: Path) -> None:
    with (folder / "table").open("w+", encoding="utf-8") as file:
        report.show(file)
        file.seek(0)
        table = file.read()
    report.write(folder / "bench.json")
    written = json.loads((folder / "bench.json").read_text("utf-8"))
    assert [figure["name"] for figure in written["figures"]] == [figure.name for figure in report.figures]
    assert all(figure.bench in table for figure in report.figures)
    assert written["about"]["commit"] in table
    assert all(f"| {figure.bench} | {figure.name} |" in report.markdown() for figure in report.figures)
