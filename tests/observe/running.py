"""A system that runs: operator, service, worker and embedder, with their metrics and some requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from opentelemetry import baggage, trace
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from embed.doubles import HashedProvider, serving
from mission.system import wait_for
from observe.receiver import Receiver, receiving
from operations.site import Site, database_manifest, grant, index_manifest, site
from parts import servers
from polaris_service.embed.provider import Kind, Vectors

PROGRAMS = ("operator", "service", "worker", "embedder")
MODEL = "hashed"
"""None that is known, so that no similarity is too low for an answer."""
FOREIGN = ("python_", "process_")
"""What the library tells of every program."""


class Traced(HashedProvider):
    """Keeps which traces, and calls in them, it was asked in."""

    def __init__(self, dimension: int, model: str) -> None:
        super().__init__(dimension, model)
        self.traces: set[tuple[str, str]] = set()
        self.baggage: dict[str, object] = {}

    async def embed(self, model: str, texts: Sequence[str], kind: Kind) -> Vectors:
        context = trace.get_current_span().get_span_context()
        self.traces.add((f"{context.trace_id:032x}", f"{context.span_id:016x}"))
        self.baggage |= baggage.get_all()
        return await super().embed(model, texts, kind)


class Running:
    """The programs, and where each tells its metrics."""

    def __init__(self, of: Site, receiver: Receiver, embedder: Traced, url: str) -> None:
        self.site = of
        self.receiver = receiver
        self.embedder = embedder
        self.addresses = {
            "operator": f"http://127.0.0.1:{of.metrics_ports['operator']}",
            "service": of.url,
            "worker": f"http://127.0.0.1:{of.metrics_ports['worker']}",
            "embedder": url,
        }

    def text(self, program: str) -> str:
        """What a program answers to Prometheus."""
        answer = httpx.get(f"{self.addresses[program]}/metrics", timeout=10, trust_env=False)
        assert answer.status_code == httpx.codes.OK
        return answer.text

    def samples(self, program: str, name: str) -> list[Sample]:
        """The samples of a metric."""
        families = text_string_to_metric_families(self.text(program))
        return [sample for family in families for sample in family.samples if sample.name == name]


def families(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """The metrics of an answer by name: type, and the labels that its samples have."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for family in text_string_to_metric_families(text):
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        labels = frozenset(label for sample in samples for label in sample.labels) - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        # A counter's time of creation is told as a metric of its own, which Prometheus knows nothing of.
        if not name.startswith(FOREIGN) and not re.search("_created$", name):
            found[name] = (family.type, labels)
    return found


@contextmanager
def running(folder: Path) -> Iterator[Running]:
    """Run a system in which an index was made, filled, searched and asked."""
    with ExitStack() as stack:
        embedder, receiver = Traced(384, MODEL), stack.enter_context(receiving())
        url = stack.enter_context(serving(embedder))
        server = stack.enter_context(servers.running(servers.postgres18()))
        grant(server)
        made = stack.enter_context(
            site(
                folder / "site",
                url,
                OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
                OTEL_TRACES_SAMPLER_ARG="1",
                OTEL_BSP_SCHEDULE_DELAY="200",
            )
        )
        made.start()
        made.put(database_manifest(server.port))
        made.put(
            index_manifest(
                embedding={"model": MODEL, "dimension": 384},
                access=[{"name": "reporting", "secretName": "handbook-reporting"}],
            )
        )
        made.load([{"id": f"d{n}", "text": f"Whoever asks for leave {n} gets {n} days."} for n in range(20)])
        made.level()
        made.search(query="leave 7")
        assert made.answer("Whoever asks for leave 7 gets 7 days.")["citations"]
        made.http.get("/v1/indexes/team/none")
        system = Running(made, receiver, embedder, url)
        wait_for(
            "the worker to tell what is behind",
            lambda: bool(system.samples("worker", "polaris_documents_behind")),
        )
        wait_for(
            "the operator to tell that the index is ready",
            lambda: any(
                sample.labels["kind"] == "PolarisIndex" and sample.value == 1
                for sample in system.samples("operator", "polaris_object_ready")
            ),
        )
        yield system
