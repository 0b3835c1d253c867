"""What a running service is made of: explicit, made once in `app.build_parts`, handed to routes."""

from __future__ import annotations

from dataclasses import dataclass

from polaris.certificate import Certificate
from polaris.settings import ServiceSettings
from polaris_service.answer.answerer import Answerer
from polaris_service.database import Database
from polaris_service.documents.loading import Loading
from polaris_service.documents.store import Store
from polaris_service.embed.registry import Embedders
from polaris_service.gate import Gate
from polaris_service.indexes import Indexes
from polaris_service.metrics import Metrics
from polaris_service.search.sample import Sample
from polaris_service.search.searcher import Searcher


@dataclass(frozen=True)
class Parts:
    """The parts of one service. `app.create_app` starts and stops them with the application."""

    settings: ServiceSettings
    metrics: Metrics
    database: Database
    indexes: Indexes
    gate: Gate
    embedders: Embedders
    store: Store
    loading: Loading
    searcher: Searcher
    sample: Sample | None
    """None: no questions are kept."""
    answerer: Answerer
    certificate: Certificate | None
    """What it listens with; None: plain HTTP."""
