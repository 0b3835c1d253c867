"""The commands that run until they are told to stop: `operator`, `serve`, `worker`, `embedder`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from polaris.settings import EmbedderSettings, OperatorSettings, ServiceSettings, WorkerSettings
from polaris_cli.flags import WrongUsage, with_settings


@with_settings(OperatorSettings)
def operator(
    files: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Reconcile the manifests of a folder, without a cluster."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --files: where Secrets and status go. [.polaris]"),
    ] = None,
    *,
    settings: OperatorSettings,
) -> None:
    """Run the operator, on a cluster or on a folder of manifests."""
    if files is None and data is not None:
        raise WrongUsage("--data goes with --files only: a cluster keeps its Secrets and status")
    if files is not None and not files.is_dir():
        raise WrongUsage(f"there is no folder {files}")
    from polaris.telemetry import configure_logging, configure_tracing
    from polaris_operator import main

    configure_logging(settings.log_level)
    configure_tracing("polaris-operator")
    if files is None:
        main.run_operator(settings, os.environ.get("KUBECONFIG", ""))
    else:
        main.run_folder(settings, files, data or Path(".polaris"))


@with_settings(ServiceSettings)
def serve(*, settings: ServiceSettings) -> None:
    """Run the query service."""
    from polaris_service import app

    app.run(settings)


@with_settings(WorkerSettings)
def worker(*, settings: WorkerSettings) -> None:
    """Run a worker, which embeds what was put in."""
    from polaris_service import worker as program

    program.run_worker(settings)


@with_settings(EmbedderSettings)
def embedder(
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Make the model ready in the cache and end; for images.")
    ] = False,
    *,
    settings: EmbedderSettings,
) -> None:
    """Serve the local embedding model over HTTP."""
    from polaris_service import embedder as program

    if prepare:
        program.prepare_model()
    else:
        program.run_embedder(settings)
