"""Prometheus metrics of one process, in a registry of its own: two apps in one process never clash."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

import polaris

# Seconds. A search takes 1 to 50 ms, a streamed answer up to a minute.
_BUCKETS = (0.00025, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# In OpenMetrics each would be a series more for Prometheus, which makes nothing of it.
disable_created_metrics()  # type: ignore[no-untyped-call]


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def build_info(registry: CollectorRegistry) -> None:
    """Say which POLARIS runs."""
    Gauge("polaris_build_info", "1; which version runs.", ("version",), registry=registry).labels(
        polaris.__version__
    ).set(1)


@dataclass(frozen=True)
class HttpMetrics:
    """What every program measures that answers over HTTP. One with more makes them in `registry`."""

    registry: CollectorRegistry = field(default_factory=_registry)
    requests: Counter = field(init=False)
    request_seconds: Histogram = field(init=False)
    requests_in_flight: Gauge = field(init=False)

    def __post_init__(self) -> None:
        registry = self.registry
        self._put(
            "requests",
            Counter(
                "polaris_http_requests",
                "Requests that were answered.",
                ("method", "route", "status"),
                registry=registry,
            ),
        )
        self._put(
            "request_seconds",
            Histogram(
                "polaris_http_request_seconds",
                "From the first byte of the request to the last of the response.",
                ("method", "route"),
                buckets=_BUCKETS,
                registry=registry,
            ),
        )
        self._put(
            "requests_in_flight",
            Gauge("polaris_http_requests_in_flight", "Requests that are being answered.", registry=registry),
        )

        build_info(registry)

    def _put(self, name: str, metric: object) -> None:
        object.__setattr__(self, name, metric)

    def exposition(self, accept: str | None) -> tuple[bytes, dict[str, str]]:
        """Return all metrics as text, and its header; who accepts OpenMetrics has it, with exemplars."""
        encode, content_type = choose_encoder(accept or "")
        return encode(self.registry), {"Content-Type": content_type}


@dataclass(frozen=True)
class Metrics(HttpMetrics):
    """What the programs measure that use the database: service and worker."""

    sql_seconds: Histogram = field(init=False)
    sql_wait_seconds: Histogram = field(init=False)
    sql_connections: Gauge = field(init=False)
    sql_errors: Counter = field(init=False)
    database_up: Gauge = field(init=False)
    login_epoch: Gauge = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        registry = self.registry
        self._put(
            "sql_seconds",
            Histogram(
                "polaris_sql_seconds",
                "Time with a connection of the pool, by what it was for.",
                ("kind",),
                buckets=_BUCKETS,
                registry=registry,
            ),
        )
        self._put(
            "sql_wait_seconds",
            Histogram(
                "polaris_sql_wait_seconds",
                "Time until the pool lent a connection, in vain too.",
                buckets=_BUCKETS,
                registry=registry,
            ),
        )
        self._put(
            "sql_connections",
            Gauge(
                "polaris_sql_connections",
                "Connections of the pool: lent, open and idle, and how many there may be.",
                ("state",),
                registry=registry,
            ),
        )
        self._put(
            "sql_errors",
            Counter(
                "polaris_sql_errors",
                "Uses of a connection that failed, by what they were for and how.",
                ("kind", "error"),
                registry=registry,
            ),
        )
        self._put(
            "database_up",
            Gauge("polaris_database_up", "1 while the database answers with this login.", registry=registry),
        )
        self._put(
            "login_epoch",
            Gauge("polaris_login_epoch", "Epoch of the login that is in use.", registry=registry),
        )
