"""`polaris apply -f PATH`."""

from __future__ import annotations

from typing import Annotated

import typer

from polaris.settings import FolderSettings
from polaris.telemetry import configure_logging
from polaris_cli import show
from polaris_cli.commands.plan import Files
from polaris_cli.flags import Format, Output, with_settings
from polaris_cli.local import manifests
from polaris_cli.local.apply import apply as apply_all


@with_settings(FolderSettings)
def apply(
    *,
    file: Files,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until all is ready.", min=0)] = 600,
    output: Output = Format.TEXT,
    settings: FolderSettings,
) -> None:
    """Make manifests true, without a cluster; they go into the data folder's manifests."""
    configure_logging(settings.log_level)
    outcomes = apply_all(manifests.read(file), settings.data, timeout, show.say)
    if output is Format.JSON:
        keys = [(each.key.kind, each.key.namespace, each.key.name) for each in outcomes]
        names = ("kind", "namespace", "name")
        show.json_out(
            [
                {
                    **dict(zip(names, key, strict=True)),
                    "ready": each.ready,
                    "reason": each.reason,
                    "message": each.message,
                }
                for key, each in zip(keys, outcomes, strict=True)
            ]
        )
    else:
        for each in outcomes:
            print(show.clean(f"{each.key}: {'ready' if each.ready else each.reason}: {each.message}"))
    if not all(each.ready for each in outcomes):
        raise typer.Exit(1)
