"""`polaris down`."""

from __future__ import annotations

from typing import Annotated

import typer

from polaris.errors import Conflict, Prerequisite
from polaris.settings import FolderSettings
from polaris_cli import checks
from polaris_cli.flags import with_settings
from polaris_cli.up.folder import DataFolder


@with_settings(FolderSettings)
def down(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    settings: FolderSettings,
) -> None:
    """Remove the data of 'polaris up', with all documents in it, after asking."""
    folder = settings.data
    if not folder.exists():
        print(f"nothing to remove: there is no folder {folder}")
        return
    if not (folder / "up.lock").is_file():
        raise Prerequisite(f"{folder} is no data folder of 'polaris up', so it is left alone")
    if (pid := checks.running(folder)) is not None:
        raise Conflict(f"'polaris up' runs on {folder} (process {pid}): stop it first")
    if not yes and not typer.confirm(f"Remove {folder} with all documents in it?"):
        raise typer.Abort
    try:
        DataFolder(folder).remove()
    except OSError as error:
        raise Prerequisite(f"{error.filename} can't be removed: {error.strerror}") from None
    print(f"removed {folder}")
