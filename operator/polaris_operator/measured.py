"""What the operator measures of objects: read from the status that it reports.

Of each object some numbers are kept, an index's are five; nothing is kept of one that is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import Gauge
from prometheus_client.core import REGISTRY, CollectorRegistry, GaugeMetricFamily
from prometheus_client.registry import Collector

import polaris
from polaris_operator.conditions.shared import condition
from polaris_operator.objects import Key

_OBJECT = ("kind", "namespace", "name")
_INDEX = ("namespace", "name")
_FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "polaris_object_ready": (
        "1 while the object is ready; `reason` is its condition's.",
        (*_OBJECT, "reason"),
    ),
    "polaris_object_stalled": ("1 while somebody has to do something about the object.", _OBJECT),
    "polaris_credential_expiry_timestamp_seconds": (
        "When a login ends unless it is replaced, in seconds since 1970.",
        (*_OBJECT, "credential"),
    ),
    "polaris_index_build_ratio": ("Share of the build of a vector index that is done.", _INDEX),
    "polaris_index_recall_ratio": ("Recall of the index, as it was measured last.", _INDEX),
    "polaris_index_chunks": ("Chunks of the index that serves, as PostgreSQL estimates them.", _INDEX),
}

Sample = tuple[str, tuple[str, ...], float]
"""Metric, values of its labels, and its value."""


def samples(key: Key, status: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield what the status of an object says in numbers."""
    object_ = (key.kind, key.namespace, key.name)
    if ready := condition(status, "Ready"):
        holds = float(ready["status"] == "True")
        yield "polaris_object_ready", (*object_, str(ready["reason"])), holds
    stalled = condition(status, "Stalled").get("status") == "True"
    yield "polaris_object_stalled", object_, float(stalled)
    for login in status.get("credentials") or ():
        labels = (*object_, login["name"])
        yield "polaris_credential_expiry_timestamp_seconds", labels, _seconds(login["expiresAt"])
    if key.kind == "PolarisIndex":
        yield from _of_index(object_[1:], status)


def _of_index(index: tuple[str, ...], status: Mapping[str, Any]) -> Iterator[Sample]:
    if candidate := status.get("candidate"):
        total = candidate["total"]
        yield "polaris_index_build_ratio", index, candidate["done"] / total if total else 0.0
    if percent := (status.get("verification") or {}).get("recallPercent"):
        yield "polaris_index_recall_ratio", index, float(percent) / 100
    if active := status.get("active"):
        yield "polaris_index_chunks", index, float(active["rows"])


class MeasuredObjects(Collector):
    """The numbers of each object's last status; safe for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[Key, tuple[Sample, ...]] = {}

    def report(self, key: Key, status: Mapping[str, Any]) -> None:
        """Take what an object's status says now."""
        found = tuple(samples(key, status))
        with self._lock:
            self._samples[key] = found

    def forget(self, key: Key) -> None:
        """Take it that the object is gone."""
        with self._lock:
            self._samples.pop(key, None)

    def clear(self) -> None:
        """Take it that another operator tells of the objects from now on."""
        with self._lock:
            self._samples.clear()

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the metrics without values: their names are known before there are objects."""
        return _families().values()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the metrics of all objects."""
        with self._lock:
            found = list(self._samples.values())
        families = _families()
        for of_one in found:
            for metric, labels, value in of_one:
                families[metric].add_metric(labels, value)
        return families.values()


def _families() -> dict[str, GaugeMetricFamily]:
    return {name: GaugeMetricFamily(name, said, labels=labels) for name, (said, labels) in _FAMILIES.items()}


def _seconds(moment: datetime | str) -> float:
    return (datetime.fromisoformat(moment) if isinstance(moment, str) else moment).timestamp()


def build_info(registry: CollectorRegistry = REGISTRY) -> None:
    """Say which POLARIS runs."""
    made = Gauge("polaris_build_info", "1; which version runs.", ["version"], registry=registry)
    made.labels(polaris.__version__).set(1)


OBJECTS = MeasuredObjects()
REGISTRY.register(OBJECTS)
build_info()
