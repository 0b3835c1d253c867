"""The page on metrics says what programs that run tell, and nothing else."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from docs.pages import ROOT
from observe.running import PROGRAMS, Running, families
from polaris.certificate import Certificate
from polaris_operator.measured import MeasuredObjects, samples
from polaris_operator.objects import Key
from tls.authority import Authority, mounted

pytestmark = pytest.mark.postgres

PAGE = ROOT / "docs/metrics.md"
INDEX = Key("PolarisIndex", "team", "handbook")


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    kind: str
    labels: frozenset[str]
    programs: frozenset[str]
    meaning: str


def table() -> dict[str, Row]:
    """The page's table."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert len({name for name, *_ in rows}) == len(rows)
    return {
        name: Row(kind, frozenset(re.findall(r"`(\w+)`", labels)), frozenset(programs.split(", ")), meaning)
        for name, kind, labels, programs, meaning in rows
    }


def told(system: Running, tmp_path: Any) -> dict[str, dict[str, tuple[str, frozenset[str]]]]:
    """What each program tells; service and embedder with what they tell besides where they serve HTTPS."""
    found = {program: families(system.text(program)) for program in PROGRAMS}
    secret = mounted(tmp_path / "tls", Authority().pair())
    registry = CollectorRegistry(auto_describe=True)
    Certificate(secret.folder / "tls.crt", secret.folder / "tls.key", registry)
    for program in ("operator", "service", "embedder"):
        found[program] |= families(generate_latest(registry).decode())
    return found


def test_the_table_is_what_the_programs_tell(system: Running, tmp_path: Any) -> None:
    rows, found = table(), told(system, tmp_path)
    assert {(name, program) for name, row in rows.items() for program in row.programs} == {
        (name, program) for program, metrics in found.items() for name in metrics
    }
    for program, metrics in found.items():
        for name, (kind, labels) in metrics.items():
            assert rows[name].kind == kind, name
            # Those of a metric without samples yet are not told.
            assert labels in ({*rows[name].labels}, set()), (program, name)


def test_names_end_in_their_units(system: Running, tmp_path: Any) -> None:
    for metrics in told(system, tmp_path).values():
        for name, (kind, _) in metrics.items():
            assert name.startswith("polaris_")
            assert (kind == "counter") == name.endswith("_total")
            assert kind != "histogram" or name.endswith("_seconds")


def test_an_objects_numbers_are_told_and_forgotten_with_it(system: Running) -> None:
    (ready,) = [
        sample
        for sample in system.samples("operator", "polaris_object_ready")
        if sample.labels["kind"] == "PolarisIndex"
    ]
    assert ready.labels["reason"] == "Ready"
    (chunks,) = system.samples("operator", "polaris_index_chunks")
    assert chunks.labels == {"namespace": "rag", "name": "handbook"}
    expiry = system.samples("operator", "polaris_credential_expiry_timestamp_seconds")
    logins = {sample.labels["credential"]: sample.value for sample in expiry}
    assert set(logins) == {"query", "worker", "reporting"}
    assert min(logins.values()) > time.time()
    (behind,) = system.samples("worker", "polaris_documents_behind")
    assert behind.value == 0
    (version,) = system.samples("worker", "polaris_build_info")
    assert version.value == 1


def test_numbers_are_read_from_a_status() -> None:
    status = {
        "conditions": [
            {"type": "Ready", "status": "False", "reason": "BuildingIndex"},
            {"type": "Stalled", "status": "True", "reason": "BuildFailed"},
        ],
        "candidate": {"done": 1, "total": 4},
        "verification": {"recallPercent": "97.5"},
        "active": {"rows": 12},
        "credentials": [{"name": "reporting", "expiresAt": "2026-01-01T00:00:00Z"}],
    }
    own = {name: (labels, value) for name, labels, value in samples(INDEX, status)}
    object_, index = ("PolarisIndex", "team", "handbook"), ("team", "handbook")
    assert own == {
        "polaris_object_ready": ((*object_, "BuildingIndex"), 0),
        "polaris_object_stalled": (object_, 1),
        "polaris_credential_expiry_timestamp_seconds": ((*object_, "reporting"), 1767225600),
        "polaris_index_build_ratio": (index, 0.25),
        "polaris_index_recall_ratio": (index, 0.975),
        "polaris_index_chunks": (index, 12),
    }


def test_nothing_is_told_of_an_object_that_is_gone() -> None:
    objects = MeasuredObjects()
    objects.report(INDEX, {"conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]})
    assert sum(len(family.samples) for family in objects.collect()) == 2
    objects.forget(INDEX)
    assert sum(len(family.samples) for family in objects.collect()) == 0
