"""`polaris get [NAME]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
import yaml

from polaris.errors import NotFound
from polaris.settings import FolderSettings
from polaris_cli import names, show
from polaris_cli.flags import Format, Output, with_settings
from polaris_operator.folder import peek
from polaris_operator.objects import Resource

_COLUMNS = ("KIND", "NAME", "READY", "REASON", "ROWS", "BUILD", "RECALL", "MESSAGE")


@with_settings(FolderSettings)
def get(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="namespace/name, or name.")] = None,
    *,
    output: Output = Format.TEXT,
    settings: FolderSettings,
) -> None:
    """List the databases and indexes of the data folder; of one NAME, everything that is known."""
    found = peek(settings.data)
    if name is not None:
        wanted = names.parse(name)
        found = [each for each in found if (each.key.namespace, each.key.name) == wanted]
        if not found:
            raise NotFound(f"there is no {wanted} in {settings.data}")
    if output is Format.JSON:
        show.json_out([_document(each) for each in found])
    elif name is not None:
        print(show.clean(yaml.safe_dump_all([_document(each) for each in found], sort_keys=False)), end="")
    elif found:
        show.table(_COLUMNS, [_row(each) for each in found])
    elif settings.data.is_dir():
        show.say(f"there are no objects in {settings.data}")
    else:
        show.say(f"there is no folder {settings.data}: name the one of `polaris up` with --data")


def _row(resource: Resource) -> list[str]:
    status = resource.status
    said: Mapping[str, Any] = next((c for c in status.get("conditions", ()) if c["type"] == "Ready"), {})
    recall = (status.get("verification") or {}).get("recallPercent")
    return [
        resource.key.kind,
        f"{resource.key.namespace}/{resource.key.name}",
        said.get("status", "Unknown"),
        said.get("reason", ""),
        str((status.get("active") or {}).get("rows", "")),
        (status.get("candidate") or {}).get("progress", ""),
        f"{recall}%" if recall else "",
        said.get("message", "the operator has not looked at it yet"),
    ]


def _document(resource: Resource) -> dict[str, Any]:
    return {
        "kind": resource.key.kind,
        "metadata": {
            "namespace": resource.key.namespace,
            "name": resource.key.name,
            "generation": resource.generation,
        },
        "spec": dict(resource.spec),
        "status": dict(resource.status),
    }
