"""The embedder's process: the local model, served to others."""

from __future__ import annotations

import os

from polaris.certificate import Certificate
from polaris.settings import EmbedderSettings
from polaris.telemetry import configure_logging, configure_tracing
from polaris_service.embed import repack
from polaris_service.embed.local import LocalProvider, default_cache
from polaris_service.embed.server import create_app
from polaris_service.metrics import HttpMetrics
from polaris_service.serving import serve


def run_embedder(settings: EmbedderSettings) -> None:
    """Serve until SIGTERM or SIGINT; what is in flight is finished first."""
    configure_logging(settings.log_level)
    configure_tracing("polaris-embedder")
    provider = LocalProvider(default_cache(os.environ), settings.embedder_threads)
    metrics = HttpMetrics()
    certificate = Certificate.of(settings, metrics.registry)
    app = create_app(provider, metrics, certificate=certificate)
    serve(app, settings.host, settings.port, certificate=certificate)


def prepare_model() -> None:
    """Make the model ready in the cache, for an image whose file system can't be written later."""
    repack.prepare(default_cache(os.environ))
